"""The one face of the runtime: load a model, ask it about pictures.

vlm = load("demo")
print(vlm.generate("What is shown?", images=["shapes.png"]))
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_qwenvl.bars import bar
from mlx_qwenvl.dialogue import Chat
from mlx_qwenvl.engine import shown
from mlx_qwenvl.engine.agreed import ALONE
from mlx_qwenvl.engine.answer import Stopwatch, answer
from mlx_qwenvl.engine.compiler import Compiler
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.disk_tier import DISK_BYTES, DiskTier
from mlx_qwenvl.engine.draft import DraftModel
from mlx_qwenvl.engine.draft_model import load_draft
from mlx_qwenvl.engine.fit import check_answer, check_weights, room_for_answer, wire_memory
from mlx_qwenvl.engine.options import CallOptions, Options, checkpoint_sampling, read_options
from mlx_qwenvl.engine.prefill import prefill
from mlx_qwenvl.engine.reply import Chunk, Reply
from mlx_qwenvl.engine.scheduler import MAX_RUNNING, Scheduler
from mlx_qwenvl.engine.stops import end_ids
from mlx_qwenvl.engine.stores import Stores, disk_folder
from mlx_qwenvl.engine.turnstile import Turnstile
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.media import DEFAULT_LIMITS, ImageSource, MediaLimits
from mlx_qwenvl.inputs.messages import (
    ImagePart,
    Message,
    TextPart,
    question_messages,
    sources_of,
)
from mlx_qwenvl.inputs.processor import Processor
from mlx_qwenvl.inputs.prompt import ChatTemplate, Prompt, build_prompt, check_length
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.inputs.video import VideoPatches, in_words
from mlx_qwenvl.inputs.video_part import VideoPart, VideoSource
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import member_of
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.sizes import in_bytes, in_numbers
from mlx_qwenvl.weights.bundle import open_bundle
from mlx_qwenvl.weights.choice import default_model
from mlx_qwenvl.weights.identity import model_identity
from mlx_qwenvl.weights.load import DTYPES, device_dtype, load_model, parts_of
from mlx_qwenvl.weights.loaded import Loaded, look_at
from mlx_qwenvl.weights.memory import weight_bytes
from mlx_qwenvl.weights.plan import make_plan
from mlx_qwenvl.weights.recipes import read_recipe
from mlx_qwenvl.weights.resolve import resolve_model
from mlx_qwenvl.weights.topology import Topology

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mlx_qwenvl.distributed.ranks import Ranks
    from mlx_qwenvl.engine.asker import Asker

log = logging.getLogger(__name__)


def load(
    model: str | Path | None = None,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
    topology: str | Path | None = None,
    variant: str | None = None,
    prefix_bytes: int | None = None,
    feature_bytes: int | None = None,
    disk_cache: str | Path | bool | None = None,
    disk_cache_bytes: int = DISK_BYTES,
    draft: str | Path | None = None,
    progress: bool = False,
    ranks: Ranks | None = None,
) -> QwenVL:
    """Load a model.

    Args:
        model: `demo`, a folder, a single-file model, a short name such as `2b`, or a Hugging Face
            name. By default `$MLX_QWENVL_MODEL`, else what `mlx-qwenvl use` chose, else `demo`.
        dtype: "float32", "float16" or "bfloat16" for weights and activations; by default what
            suits the device.
        quantize: Quantize the decoder in place: "4bit", "8bit", "mxfp4", ...
        topology: A YAML file that says which parts to quantize otherwise (`docs/topology.md`).
        variant: Which of several stored quantizations to take; by default the model's first.
        prefix_bytes: Keys and values of earlier prompts to keep in memory, in bytes; 0 keeps none.
        feature_bytes: Vision features of earlier pictures to keep in memory; 0 keeps none.
        disk_cache: A folder where both outlive the process, or True for the user's cache folder;
            by default `$MLX_QWENVL_DISK_CACHE`, else nothing is written. See `docs/caches.md`.
        disk_cache_bytes: Bytes to keep there at most.
        draft: A smaller model of the same vocabulary that proposes tokens for this one to verify;
            the answers stay this one's (`docs/speed.md`).
        progress: Show bars while downloading, while loading, and later while a long prompt is
            read: widgets in notebooks that have them, else text on stderr.
        ranks: The processes that hold the model together, from `mlx_qwenvl.distributed.join`;
            each of them loads its part (`docs/distributed.md`).

    Raises:
        ModelNotFound: The name leads to no model.
        CheckpointError: The model's files are incomplete, damaged or of another family.
        MemoryExceeded: The weights do not fit into memory.
        OptionError: An unknown dtype, quantization or variant, a bad topology, bound or folder,
            a draft model of another vocabulary, or a bad value of an environment variable; or
            ranks that cannot share this model evenly.
        RanksLost: A rank is gone, or loads something else.
    """
    begin = time.perf_counter()
    name = default_model() if model is None else str(model)
    rules = None if topology is None else Topology.from_file(Path(topology))
    recipe = read_recipe(quantize or "none")
    outliving = disk_folder(disk_cache)
    if disk_cache_bytes < 0:
        raise OptionError(
            f"disk_cache_bytes is {disk_cache_bytes}, expected a number of bytes from 0 up"
        )
    if ranks is not None and (draft is not None or outliving is not None):
        what = "a draft model" if draft is not None else "a cache on disk"
        raise OptionError(f"{what} is for one process, and {ranks.size} hold this model together")
    path = resolve_model(name, variant, progress=progress)
    with open_bundle(path, variant) as bundle:
        folder = bundle.folder
        config = Config.from_folder(folder)
        plan = make_plan(config, recipe, topology=rules)
        for note in plan.notes:
            log.warning(note)
        processor = Processor.from_folder(folder, member_of(config).video_budget)
        tokenizer = Tokenizer.from_folder(folder)
        template = ChatTemplate.from_folder(folder)
        file = folder / "generation_config.json"
        generation = read_json(file) if file.exists() else {}
        target = DTYPES[dtype] if dtype in DTYPES else device_dtype(bundle.tensors.values())
        tensors, text, share = bundle.tensors, config.text, None
        if ranks is not None:
            from mlx_qwenvl.distributed.same import facts_of

            ends, share = end_ids(generation, tokenizer), ranks.share
            ranks.compare(facts_of(folder, config, tensors, plan.formats, target, ends))
            tensors, text = parts_of(tensors, config, plan, share), share.of_text(text)
        check_weights(weight_bytes(tensors, text, target.size, plan.formats))
        network = load_model(
            tensors,
            config,
            processor.normalization,
            dtype=dtype,
            plan=plan,
            progress=progress,
            share=share,
        )
        disk = None
        if outliving is not None:
            from mlx_qwenvl import __version__

            identity = model_identity(
                __version__, network, bundle.tensors, processor.normalization, repr(plan.formats)
            )
            disk = DiskTier(outliving, disk_cache_bytes, identity)
    drafting = None
    if draft is not None:
        small = load_draft(
            str(draft), tokenizer, processor.geometry, dtype=dtype, progress=progress
        )
        drafting = small, Stores.of(small, prefix_bytes, feature_bytes)
    wire_memory()
    log.info("fused steps: %s", network.ops.name)
    agreed = ALONE if ranks is None else ranks.agreed
    stores = Stores.of(network, prefix_bytes, feature_bytes, disk, agreed)
    load_s = time.perf_counter() - begin
    vlm = QwenVL(
        name, network, tokenizer, template, processor, generation, load_s, stores, drafting, ranks
    )
    vlm.progress = progress
    return vlm


class QwenVL:
    """A loaded model. Several questions may be asked side by side.

    Args:
        name: What it was loaded by.
        model: The network.
        tokenizer: Its vocabulary.
        template: Its dialogue form.
        processor: How it takes pictures.
        generation: Its `generation_config.json`, or an empty mapping.
        load_s: Seconds that loading took.
        stores: What is kept of earlier questions; by default new ones with the usual bounds.
        draft: A model that proposes tokens, and what it keeps of earlier questions.
        ranks: The processes that hold the model together.

    Attributes:
        ranks: As given; None where this process is alone.
        progress: Whether to show a bar while a long prompt is read, where the caller has no
            `on_prefill` of its own. Answers for event loops show none: several are read at once.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        processor: Processor,
        generation: Mapping[str, Any],
        load_s: float,
        stores: Stores | None = None,
        draft: tuple[Model, Stores] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.processor = processor
        self.stores = stores or Stores.of(model)
        self.draft = draft
        self.ranks = ranks
        self.load_s = load_s
        self.progress = False
        self.turnstile = Turnstile()
        self.sampling = checkpoint_sampling(generation)
        self.end_ids = end_ids(generation, tokenizer)
        self.grammars = Compiler(tokenizer, self.end_ids, model.config.text.vocab_size)

    @property
    def config(self) -> Config:
        """The model's shape."""
        return self.model.config

    @property
    def loaded(self) -> Loaded:
        """How many weights there are, what they are kept in, and their bytes."""
        return look_at(self.model)

    def __repr__(self) -> str:
        """Name, size and place."""
        told = dict(self._facts())
        return (
            f"QwenVL({self.name!r}, {told['parameters']} parameters in {told['weights']}, "
            f"{told['memory']} on {told['device']}, context of {told['context']})"
        )

    def _repr_markdown_(self) -> str:
        """What is loaded, as a notebook shows it."""
        kept = ("kept of earlier questions", in_bytes(self.stores.nbytes))
        heading = f"**QwenVL** {shown.safe_markdown(self.name)}"
        return shown.joined([heading, shown.table_markdown([*self._facts(), kept])])

    def _facts(self) -> list[tuple[str, str]]:
        loaded, device = self.loaded, mx.default_device()
        chip = f" ({mx.device_info().get('device_name')})" if device == mx.gpu else ""
        return [
            ("parameters", in_numbers(loaded.parameters)),
            ("weights", loaded.formats),
            ("memory", in_bytes(loaded.nbytes)),
            ("device", f"the {device.type.name.upper()}{chip}"),
            ("context", f"{self.config.text.max_position_embeddings} tokens"),
        ]

    def generate(
        self,
        prompt: str | None = None,
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        messages: str | Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Reply:
        """Answer a question.

        Args:
            prompt: The question. It becomes one user turn, its pictures before its text.
            images: Paths, URLs, `data:` URLs, base64, bytes, files, PIL images or numpy arrays.
            videos: Paths, URLs, `data:` URLs, base64, bytes or files of videos, which need the
                extra `video`; or lists of frames, each an image as above. See `docs/video.md`.
            messages: A whole conversation in OpenAI's form, instead of `prompt` and `system`. An
                assistant's message at its end is the beginning of the answer.
            system: A system message; by default the model's own.
            **options: See `Options` and `Sampling` in `engine/options.py`.

        Raises:
            MediaError: A picture or a video cannot be read.
            PromptError: Nothing was asked, or messages make no prompt.
            OptionError: An option is unknown or outside its range.
            ContextError: The prompt is longer than the model's context or `max_kv_size`.
            MemoryExceeded: It would need more memory than there is.
        """
        watch = Stopwatch(self.load_s)
        read = read_options(options, self.sampling)
        turns = question_messages(prompt, images, messages, system, videos)
        chunks = list(self._answer(self.prompt(turns, read), read, watch))
        return Reply.of(chunks, self.name, sources_of(turns))

    def stream(
        self,
        prompt: str | None = None,
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        messages: str | Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Iterator[Chunk]:
        """Answer a question piece by piece; arguments and errors are those of `generate`."""
        watch = Stopwatch(self.load_s)
        read = read_options(options, self.sampling)
        turns = question_messages(prompt, images, messages, system, videos)
        built = self.prompt(turns, read)
        return self._answer(built, read, watch)

    async def agenerate(
        self,
        prompt: str | None = None,
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        messages: str | Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Reply:
        """Answer a question without holding up the event loop (`docs/notebooks.md`).

        Questions asked at once are answered side by side. Cancelling the task ends the answer
        within a token. Arguments and errors are those of `generate`.
        """
        watch = Stopwatch(self.load_s)
        read = read_options(options, self.sampling)
        turns = question_messages(prompt, images, messages, system, videos)
        chunks = [chunk async for chunk in self._hear(turns, read, watch)]
        return Reply.of(chunks, self.name, sources_of(turns))

    def astream(
        self,
        prompt: str | None = None,
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        messages: str | Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[Chunk, None]:
        """Answer a question piece by piece, for `async for`; otherwise as `agenerate`.

        Leaving the loop ends the answer.
        """
        watch = Stopwatch(self.load_s)
        read = read_options(options, self.sampling)
        return self._hear(question_messages(prompt, images, messages, system, videos), read, watch)

    def chat(self, system: str | None = None) -> Chat:
        """Begin a conversation that remembers its pictures and computes nothing twice.

        Args:
            system: A system message; by default the model's own.
        """
        return Chat(self, system)

    def scheduler(self, max_running: int = MAX_RUNNING, *, in_bulk: bool = False) -> Scheduler:
        """What answers many questions side by side; one thread owns it.

        Args:
            max_running: Answers decoded together at most.
            in_bulk: Whether only the time until the last answer counts, as where one question is
                asked about many pictures. Of prompts it keeps the newest alone, which holds
                the beginning that all have in common.
        """
        stores = self.stores
        if in_bulk:
            one = Stores.of(self.model, prefix_bytes=1, feature_bytes=0)
            stores = replace(stores, prefixes=one.prefixes)
        start, drafting, ranks = self.grammars.start, self._drafting, self.ranks
        of_model = self.model, self.tokenizer, stores, self.end_ids, start, drafting, max_running
        if ranks is None:
            return Scheduler(*of_model, in_bulk=in_bulk)
        if not ranks.leads:
            return Scheduler(*of_model, in_bulk=in_bulk, agreed=ranks.agreed)
        from mlx_qwenvl.distributed.lead import LeadingScheduler

        return LeadingScheduler(ranks, *of_model, in_bulk=in_bulk)

    def follow(self) -> int:
        """Compute what rank 0 is asked, where this is another rank; give the code to exit with.

        Raises:
            RanksLost: A rank is gone.
        """
        if self.ranks is None or self.ranks.leads:
            raise OptionError("rank 0 is asked and does not follow")
        from mlx_qwenvl.distributed.follow import follow

        return follow(self.ranks, lambda most, in_bulk: self.scheduler(most, in_bulk=in_bulk))

    def logits(
        self,
        prompt: str | None = None,
        *,
        images: Sequence[ImageSource] = (),
        videos: Sequence[VideoSource] = (),
        messages: str | Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        fps: float | None = None,
        n_frames: int | None = None,
        max_frames: int | None = None,
    ) -> np.ndarray:
        """Logits [L, V] float32 of the whole templated prompt, for parity and perplexity.

        The arguments are those of `generate`.
        """
        if self.ranks is not None:
            raise OptionError("logits are computed by one process, and several hold this model")
        options = Options(
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            fps=fps,
            n_frames=n_frames,
            max_frames=max_frames,
        )
        built = self.prompt(question_messages(prompt, images, messages, system, videos), options)

        def compute() -> np.ndarray:
            check_answer(self.model, built, options, Stores.of(self.model, 0, 0), self.stores)
            filled = prefill(
                self.model,
                Conversation(self.model),
                built,
                step=options.prefill_step,
                all_logits=True,
            )
            return np.array(filled.logits[0].astype(mx.float32))

        return self.turnstile.step(compute)

    def open(
        self, part: ImagePart, options: Options, limits: MediaLimits = DEFAULT_LIMITS
    ) -> ImagePatches:
        """A picture as the model takes it; arguments and errors are those of `prompt`."""
        return self.processor.open(
            part,
            min_pixels=options.min_pixels,
            max_pixels=options.max_pixels,
            store=self.stores.patches if options.cache else None,
            limits=limits,
        )

    def open_video(
        self, part: VideoPart, options: Options, limits: MediaLimits = DEFAULT_LIMITS
    ) -> VideoPatches:
        """A video as the model takes it; arguments and errors are those of `prompt`."""
        return self.processor.open_video(
            part,
            options.video,
            self.config.text.max_position_embeddings,
            store=self.stores.patches if options.cache else None,
            limits=limits,
        )

    def prompt(
        self, turns: Sequence[Message], options: Options, limits: MediaLimits = DEFAULT_LIMITS
    ) -> Prompt:
        """What the model is given for a conversation; any thread may make it.

        Args:
            turns: The conversation.
            options: The call's.
            limits: What each picture may cost and where it may come from.

        Raises:
            MediaError: A picture or a video cannot be read.
            PromptError: Nothing was asked.
            ContextError: The text or a video is far longer than the model's context.
        """
        texts = [part.text for turn in turns for part in turn.parts if isinstance(part, TextPart)]
        check_length(texts, self.tokenizer, self.config.text.max_position_embeddings)
        built = build_prompt(
            turns,
            self.template,
            self.tokenizer,
            lambda part: self.open(part, options, limits),
            lambda part: self.open_video(part, options, limits),
            tells_times=self.model.tells_times,
        )
        for number, slot in enumerate(built.slots, start=1):
            log.info("%s", in_words(number, slot.image))
        return replace(built, counts_seconds=self.model.counts_seconds)

    def _answer(self, prompt: Prompt, options: Options, watch: Stopwatch) -> Iterator[Chunk]:
        # What cannot be answered is refused before anything of it is computed.
        options = replace(options, max_tokens=room_for_answer(self.config, prompt, options))
        if options.grammar is not None:
            self.grammars.compile(options.grammar)
        watch.reading_s = time.perf_counter() - watch.called
        if self.ranks is not None:
            return self._in_steps(self._with_ranks(prompt, options, watch))
        stores = self.stores if options.cache else Stores.of(self.model, 0, 0)
        check_answer(self.model, prompt, options, stores, self.stores)
        return self._in_steps(self._in_conversation(prompt, stores, options, watch))

    def _hear(
        self, turns: Sequence[Message], options: Options, watch: Stopwatch
    ) -> AsyncGenerator[Chunk, None]:
        def prepare() -> Prompt:
            if options.grammar is not None:
                self.grammars.compile(options.grammar)
            return self.prompt(turns, options)

        return self._asker.listen(prepare, options, watch)

    @cached_property
    def _asker(self) -> Asker:
        from mlx_qwenvl.engine.asker import Asker  # asyncio is for those who wait in a loop

        return Asker(self.scheduler, self.stores, self.turnstile)

    def _in_steps(self, chunks: Generator[Chunk, None, None]) -> Iterator[Chunk]:
        """The same, computed while no other thread computes."""
        try:
            while (chunk := self.turnstile.step(lambda: next(chunks, None))) is not None:
                yield chunk
        finally:
            self.turnstile.step(chunks.close)

    def _in_conversation(
        self, prompt: Prompt, stores: Stores, options: Options, watch: Stopwatch
    ) -> Generator[Chunk, None, None]:
        """Answer in a kept conversation, and keep it also where the answer is broken off."""
        kv = options.kv.for_heads(self.config.text.head_dim)
        conversation = stores.prefixes.take(prompt, kv)
        shows = self.progress and options.on_prefill is None
        try:
            with bar("reading", "tokens") if shows else nullcontext() as advance:
                yield from answer(
                    self.model,
                    self.tokenizer,
                    conversation,
                    prompt,
                    stores.features,
                    replace(options, on_prefill=advance) if shows else options,
                    self.end_ids,
                    watch,
                    self._drafting(options),
                    None if options.grammar is None else self.grammars.start(options.grammar),
                )
        except (GeneratorExit, KeyboardInterrupt):
            stores.prefixes.put(conversation)
            raise
        stores.prefixes.put(conversation)

    def _with_ranks(
        self, prompt: Prompt, options: Options, watch: Stopwatch
    ) -> Generator[Chunk, None, None]:
        from mlx_qwenvl.distributed.lead import LeadingScheduler, answer_in

        scheduler = self.scheduler(1)
        assert isinstance(scheduler, LeadingScheduler), "only rank 0 is asked"
        yield from answer_in(scheduler, prompt, options, watch)

    def _drafting(self, options: Options) -> DraftModel | None:
        if self.draft is None or not options.speculation:
            return None
        model, kept = self.draft
        stores = kept if options.cache else Stores.of(model, 0, 0)
        return DraftModel(model, stores.prefixes, stores.features)
