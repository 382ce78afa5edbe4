"""Whether a question fits into memory, told before anything of it is computed.

On a Mac the GPU's memory is the system's: what does not fit can take the machine down. The peak is
computed from shapes (`weights/memory.py`), held against what the device offers, and refused in one
line that says what would fit. `$MLX_QWENVL_MEMORY_LIMIT` says otherwise: bytes, or `off`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from mlx_qwenvl.engine.agreed import ALONE, Agreed
from mlx_qwenvl.engine.looking import VISION_BATCH
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.errors import ContextError, MemoryExceeded, OptionError
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.video import View
from mlx_qwenvl.models.cache import GROWTH
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.quantized_cache import KV_GROUP_SIZES, PLAIN, KVFormat
from mlx_qwenvl.sizes import in_bytes
from mlx_qwenvl.weights.describe import Description
from mlx_qwenvl.weights.memory import Backend, memory_here, memory_needed
from mlx_qwenvl.weights.pad import mlp_padding, on_metal

SWITCH = "MLX_QWENVL_MEMORY_LIMIT"
MEMINFO = Path("/proc/meminfo")
SLOT_COPIES = 2  # keys and values of one answer that a slot has room for, at most


def memory_limit() -> int | None:
    """Bytes that MLX may hold in this process in all, or None for no limit.

    Raises:
        OptionError: `$MLX_QWENVL_MEMORY_LIMIT` is neither a number of bytes nor "off".
    """
    said = os.environ.get(SWITCH)
    if said == "off":
        return None
    if said is not None:
        if not (said.isascii() and said.isdigit()):
            raise OptionError(f"{SWITCH} is {said!r}; expected a number of bytes, or off")
        return int(said)
    device = mx.device_info()
    recommended = device.get("max_recommended_working_set_size")
    if recommended:
        return int(recommended)
    free = device.get("free_memory")  # of a GPU with memory of its own
    free = available_memory() if free is None else int(free)
    if free is None:
        return None
    return mx.get_active_memory() + mx.get_cache_memory() + free


def check_weights(nbytes: int) -> None:
    """Refuse to load weights that do not fit beside what is held already.

    Args:
        nbytes: Of the model as it will be held.

    Raises:
        MemoryExceeded: They do not fit.
    """
    limit, needed = memory_limit(), mx.get_active_memory() + nbytes
    if limit is not None and needed > limit:
        raise MemoryExceeded(
            f"the model needs {in_bytes(needed)} of memory and {in_bytes(limit)} are there; take a "
            f"smaller or quantized one ({SWITCH}=off loads it all the same)"
        )


def room_for_answer(config: Config, prompt: Prompt, options: Options) -> int:
    """Tokens that an answer may have: `max_tokens`, or fewer where `max_kv_size` ends it.

    Nothing is ever dropped to make room: a picture without some of its tokens is another picture.

    Raises:
        ContextError: The prompt leaves no room for an answer.
    """
    context, asked = config.text.max_position_embeddings, options.max_kv_size
    limit = context if asked is None else min(asked, context)
    room = limit - prompt.token_ids.size
    if room < 1:
        whose = "the model's context" if limit == context else "max_kv_size"
        moving = f", {prompt.video_tokens} videos" if prompt.video_tokens else ""
        fewer = " or max_frames" if moving else ""
        raise ContextError(
            f"the prompt has {prompt.token_ids.size} tokens ({prompt.image_tokens} of them "
            f"pictures{moving}), {whose} {limit}; shorten it or lower max_pixels{fewer}"
        )
    return min(options.max_tokens, room)


def check_answer(
    model: Model,
    prompt: Prompt,
    options: Options,
    stores: Stores,
    kept: Stores,
    *,
    is_shared: bool = False,
    agreed: Agreed = ALONE,
) -> None:
    """Refuse a question whose prompt and first answer tokens do not fit.

    What is kept of earlier questions goes before that, where it is in the way.

    Args:
        model: The model, loaded.
        prompt: The whole conversation.
        options: The call's.
        stores: Those that the answer will use.
        kept: Those that may make room.
        is_shared: Whether others run beside it, so that its keys and values are copied to theirs.
        agreed: Gives the bytes that count.

    Raises:
        MemoryExceeded: It does not fit.
    """
    limit = memory_limit()
    most = memory_here() if limit is None else limit
    copies = SLOT_COPIES if is_shared else 0
    question = _Question.of(model, prompt, options, stores, copies=copies)
    lacking = agreed.number(question.peak() - most)
    if lacking > 0:
        # Cut pictures are rank 0's alone, so what they free is told before the rest is.
        kept.make_room(lacking - agreed.number(kept.patches.make_room(lacking)))
        mx.synchronize()  # what is still being computed holds memory that is free afterwards
        question = _Question.of(model, prompt, options, stores, copies=copies)
    _refuse_beyond(question, limit, agreed)


def check_ever(model: Model, prompt: Prompt, options: Options, free: int) -> None:
    """Refuse a question that would not fit with nothing else running.

    Args:
        model: The model, loaded.
        prompt: The whole conversation.
        options: The call's.
        free: Bytes held now that would be free then.

    Raises:
        MemoryExceeded: It would not fit.
    """
    nothing = Stores.of(model, 0, 0)
    _refuse_beyond(_Question.of(model, prompt, options, nothing, free=free), memory_limit())


def _refuse_beyond(question: _Question, limit: int | None, agreed: Agreed = ALONE) -> None:
    needed = question.peak()
    if agreed.number(0 if limit is None else needed - limit) <= 0:
        return
    if limit is None:
        raise MemoryExceeded("the answer needs more memory than rank 0 has")
    raise MemoryExceeded(
        f"the answer needs about {in_bytes(needed)} of memory and {in_bytes(limit)} are there; "
        f"{_advice(question, limit)} ({SWITCH}=off tries it all the same)"
    )


def vector_bytes(config: Config, tokens: int, pictures: int, backend: Backend) -> int:
    """Bytes of features, and of token vectors before and after features take their slots.

    Args:
        config: The model's shape.
        tokens: Of the prompt.
        pictures: Tokens of it that are pictures'.
        backend: What computes.
    """
    vectors = pictures * config.vision.feature_size + 2 * tokens * config.text.hidden_size
    return vectors * backend.float_bytes


def wire_memory() -> None:
    """Keep weights resident on a Mac, so that the first token after a pause is not slow."""
    limit = mx.device_info().get("max_recommended_working_set_size")
    if mx.metal.is_available() and limit:
        mx.set_wired_limit(int(limit))


@dataclass(frozen=True)
class _Question:
    """What the peak of one answer depends on.

    Attributes:
        model: The model, loaded.
        prompt: The whole conversation.
        options: The call's.
        new: Pictures and temporal patches that the vision tower has to look at.
        in_place: Bytes of kept keys and values that the answer goes on from.
        free: Bytes held now that count as free.
        copies: How many times its keys and values are held beside its own cache.
    """

    model: Model
    prompt: Prompt
    options: Options
    new: tuple[View, ...]
    in_place: int
    free: int = 0
    copies: int = 0

    @classmethod
    def of(
        cls,
        model: Model,
        prompt: Prompt,
        options: Options,
        stores: Stores,
        *,
        free: int = 0,
        copies: int = 0,
    ) -> _Question:
        """A question as it stands before anything of it is computed."""
        kv = options.kv.for_heads(model.config.text.head_dim)
        known, in_place = stores.prefixes.known(prompt, kv)
        placed = [(start, view) for slot in prompt.slots for start, view in slot.views]
        views = {view.digest: view for start, view in placed if start + view.n_tokens > known}
        seen = {digest for digest in views if stores.features.holds(digest)}
        new = [view for digest, view in views.items() if digest not in seen]
        return cls(model, prompt, options, tuple(new), in_place, free, copies)

    @property
    def largest(self) -> int:
        """Patches of the largest picture or temporal patch, whether it was seen or not."""
        return max((view.patches.shape[0] for view in self._views()), default=0)

    def _views(self) -> Iterator[View]:
        return (view for slot in self.prompt.slots for _, view in slot.views)

    def _looks(self, most: int) -> Iterator[tuple[int, int]]:
        """Patches that the tower looks at together, at most, and frames that each of them holds.

        Pictures and videos never go through it together, so each kind counts for itself.
        """
        vision = self.model.config.vision
        counts: dict[int, list[int]] = {}
        for view in self.new:
            patches, values = view.patches.shape
            frames = values // (vision.in_channels * vision.patch_size**2)
            counts.setdefault(frames, []).append(min(patches, most))
        for frames, seen in counts.items():
            yield max(min(sum(seen), VISION_BATCH), *seen), frames
        if not counts:
            yield 0, 1

    def peak(self, most: int | None = None, kv: KVFormat | None = None) -> int:
        """Bytes at the peak, what is held now included.

        Args:
            most: Patches that no picture has more of; None leaves them as they are.
            kv: How keys and values are kept; None for what was asked.
        """
        config, merge = self.model.config, self.model.config.vision.spatial_merge_size**2
        most = self.largest if most is None else most
        kv = self.options.kv if kv is None else kv
        pictures = sum(min(view.n_tokens, most // merge) for view in self._views())
        tokens = self.prompt.token_ids.size - self.prompt.seen_tokens + pictures
        context = tokens + min(self.options.max_tokens, GROWTH)
        backend = _backend(self.model)
        description = Description(config, (), mlp_padding(self.model), self.model.visual.is_narrow)
        needed = max(
            (
                memory_needed(
                    description,
                    backend,
                    context=context,
                    patches=patches,
                    frames=frames,
                    prefill_step=self.options.prefill_step,
                    kv=PLAIN if context <= kv.start else kv,
                )
                for patches, frames in self._looks(most)
            ),
            key=lambda memory: memory.total,
        )
        if self.model.share is not None:  # what a layer computes counts in full, which is too much
            needed = replace(needed, kv_cache=needed.kv_cache // self.model.share.size)
        vectors = vector_bytes(config, tokens, pictures, backend)
        held = mx.get_active_memory() - self.free - min(self.in_place, needed.kv_cache)
        return held + needed.total + vectors + self.copies * needed.kv_cache


def _advice(question: _Question, limit: int) -> str:
    """What would make it fit: fewer pixels, packed keys and values, or a smaller model."""
    vision, options = question.model.config.vision, question.options
    token = vision.spatial_merge_size**2
    if question.largest > token and question.peak(token) <= limit:
        low, high = 1, question.largest // token  # tokens of a picture: fits, does not fit
        while high - low > 1:
            middle = (low + high) // 2
            fits = question.peak(middle * token) <= limit
            low, high = (middle, high) if fits else (low, middle)
        return f"lower max_pixels to {low * token * vision.patch_size**2}"
    packed = KVFormat(8, options.kv_group_size)
    if options.kv_bits is None and _packs(question.model) and question.peak(kv=packed) <= limit:
        return "keep keys and values in 8 bits (kv_bits)"
    return "shorten the prompt or take a smaller model"


def _packs(model: Model) -> bool:
    """Whether the model's keys and values can be quantized."""
    return model.config.text.head_dim % min(KV_GROUP_SIZES) == 0


def _backend(model: Model) -> Backend:
    """What computes, with the dtype that the model was loaded in."""
    on_gpu = mx.default_device() == mx.gpu
    floats = model.model.norm.weight.dtype.size
    return Backend(
        "gpu" if on_gpu else "cpu",
        float_bytes=floats,
        fuses_attention=on_gpu,
        is_metal=on_metal(),
    )


def available_memory() -> int | None:
    """Bytes of memory that nobody needs; None where the system does not say."""
    try:
        for line in MEMINFO.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
