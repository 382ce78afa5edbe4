"""What a caller may ask of an answer, checked once.

Sampling settings come as a whole: where the caller says nothing about sampling, the checkpoint's
own settings hold; as soon as one is named, the checkpoint's are left aside and the others take the
neutral values of `Sampling`. So `temperature=0.8` means what it says, even for checkpoints that
come with `top_k: 1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.frames import VideoWishes
from mlx_qwenvl.models.quantized_cache import KV_BITS, KV_GROUP_SIZES, KVFormat

MAX_TOKENS = 1024  # tokens of an answer where the caller sets no limit
MAX_TOP_LOGPROBS = 20  # alternatives per token, OpenAI's limit
PREFILL_STEP = 1024  # prompt tokens computed at once; bounds the activations' memory
SEED_LIMIT = 2**63
LEAST_FPS, MOST_FPS = 1e-6, 1000  # frames taken of a second of a video


def _real(name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise OptionError(f"{name} is {value!r}, expected a number from {least} to {most}", name)
    if not least <= value <= most:
        raise OptionError(f"{name} is {value}, expected a number from {least} to {most}", name)


def _whole(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        upper = f" to {most}" if most < 2**31 else " up"
        raise OptionError(f"{name} is {value!r}, expected a whole number from {least}{upper}", name)


class CallOptions(TypedDict, total=False):
    """Keyword options of `generate`, `stream` and `ask`; each is explained in `Options`."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Sequence[str] | None
    grammar: Grammar | None
    logprobs: bool | None
    top_logprobs: int | None
    min_pixels: int | None
    max_pixels: int | None
    fps: float | None
    n_frames: int | None
    max_frames: int | None
    kv_bits: int | None
    kv_group_size: int | None
    kv_start: int | None
    max_kv_size: int | None
    cache: bool | None
    speculation: bool | None
    prefill_step: int | None
    on_prefill: Callable[[int, int], None] | None


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. The filters apply in the order of the fields.

    Attributes:
        temperature: 0 takes the likeliest token; 1 draws from the model's own distribution.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the likeliest tokens whose probabilities reach p together; 1 keeps all.
        min_p: Keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
        repetition_penalty: Divides (multiplies, where negative) the logits of tokens in the prompt
            or the answer; 1 changes nothing.
        presence_penalty: Subtracted once for every token in the answer.
        frequency_penalty: Subtracted for every time a token is in the answer.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        _real("temperature", self.temperature, 0, 100)
        _whole("top_k", self.top_k, 0, 2**31)
        _real("top_p", self.top_p, 0, 1)
        _real("min_p", self.min_p, 0, 1)
        _real("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _real("presence_penalty", self.presence_penalty, -100, 100)
        _real("frequency_penalty", self.frequency_penalty, -100, 100)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 or self.top_k == 1 or self.top_p == 0


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Options:
    """Everything that an answer depends on beside the prompt.

    Attributes:
        sampling: How tokens are drawn.
        max_tokens: Most tokens of the answer.
        logit_bias: Added to the logits of token ids, within -100..100.
        seed: Makes drawing repeatable; None draws anew each time.
        stop: Texts before which the answer ends.
        grammar: What the answer has to look like (`docs/structured.md`).
        logprobs: Whether chunks carry the chosen tokens' log-probabilities.
        top_logprobs: How many alternatives they carry, at most 20.
        min_pixels: Least pixels of a picture or a video's frame after resizing; None for the
            model's.
        max_pixels: Most pixels of a picture or a video's frame after resizing; None for the
            model's.
        fps: Frames taken of a second of a video; None for the model's.
        n_frames: Frames taken of a video, however long it is, in place of `fps`.
        max_frames: Most frames taken of a video; None for the model's.
        kv_bits: 8 or 4 for quantized keys and values; None for the activations' dtype.
        kv_group_size: How many of them share a scale: 32, 64 or 128; None for 64.
        kv_start: Tokens that a conversation may have before its keys and values are quantized.
        max_kv_size: Most tokens of prompt and answer together; None for the model's context. A
            longer prompt is refused, and an answer ends there: nothing is dropped.
        cache: Whether to reuse what was computed for earlier questions, and to keep what is now.
        speculation: Whether greedy answers may be sped up by verifying proposed tokens, which
            come from the text itself and from the draft model where there is one.
        prefill_step: Prompt tokens computed at once.
        on_prefill: Called with prompt tokens done and in all, after every step.
    """

    sampling: Sampling = GREEDY
    max_tokens: int = MAX_TOKENS
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    n_frames: int | None = None
    max_frames: int | None = None
    kv_bits: int | None = None
    kv_group_size: int | None = None
    kv_start: int = 0
    max_kv_size: int | None = None
    cache: bool = True
    speculation: bool = True
    prefill_step: int = PREFILL_STEP
    on_prefill: Callable[[int, int], None] | None = None

    @property
    def kv(self) -> KVFormat:
        """How keys and values are kept."""
        return KVFormat(self.kv_bits, self.kv_group_size, self.kv_start)

    @property
    def video(self) -> VideoWishes:
        """How videos are sampled."""
        return VideoWishes(
            fps=self.fps,
            n_frames=self.n_frames,
            max_frames=self.max_frames,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )

    def __post_init__(self) -> None:
        """Refuse values outside their ranges."""
        if self.fps is not None:
            _real("fps", self.fps, LEAST_FPS, MOST_FPS)
        for name, frames in (("n_frames", self.n_frames), ("max_frames", self.max_frames)):
            if frames is not None:
                _whole(name, frames, 1, 2**31)
        VideoWishes(fps=self.fps, n_frames=self.n_frames)  # which refuses both together
        _whole("max_tokens", self.max_tokens, 1, 2**31)
        _whole("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        _whole("prefill_step", self.prefill_step, 1, 2**31)
        if self.seed is not None:
            _whole("seed", self.seed, -SEED_LIMIT, SEED_LIMIT - 1)
        if self.kv_bits is not None and self.kv_bits not in KV_BITS:
            raise OptionError(f"kv_bits is {self.kv_bits!r}, expected one of {KV_BITS}")
        if self.kv_group_size is not None and self.kv_group_size not in KV_GROUP_SIZES:
            raise OptionError(
                f"kv_group_size is {self.kv_group_size!r}, expected one of {KV_GROUP_SIZES}"
            )
        _whole("kv_start", self.kv_start, 0, 2**31)
        if self.max_kv_size is not None:
            _whole("max_kv_size", self.max_kv_size, 1, 2**31)
        for name, value in (("cache", self.cache), ("speculation", self.speculation)):
            if not isinstance(value, bool):
                raise OptionError(f"{name} is {value!r}, expected True or False")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise OptionError(f"grammar is a {type(self.grammar).__name__}, expected a Grammar")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise OptionError(f"stop holds {text!r}, expected texts that are not empty", "stop")
        for token, bias in self.logit_bias.items():
            _whole("logit_bias token id", token, 0, 2**31)
            _real(f"logit_bias[{token}]", bias, -100, 100)


def read_options(given: Mapping[str, Any], checkpoint: Sampling) -> Options:
    """Options of one call.

    Args:
        given: Keyword options; None counts as not given.
        checkpoint: The checkpoint's own sampling.

    Raises:
        OptionError: An unknown name or a value outside its range.
    """
    named = {name: value for name, value in given.items() if value is not None}
    unknown = sorted(set(given) - set(CallOptions.__annotations__))
    if unknown:
        known = ", ".join(CallOptions.__annotations__)
        raise OptionError(f"unknown option {unknown[0]!r}; expected one of {known}")
    of_sampling = {f.name for f in fields(Sampling)}
    sampling = {name: named.pop(name) for name in list(named) if name in of_sampling}
    if "stop" in named:
        stop = named["stop"]
        if not isinstance(stop, (str, Sequence)):
            raise OptionError(
                f"stop is a {type(stop).__name__}, expected a text or a list of texts"
            )
        named["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    if named.get("top_logprobs"):
        named["logprobs"] = True
    return replace(Options(sampling=Sampling(**sampling) if sampling else checkpoint), **named)


def checkpoint_sampling(generation_config: Mapping[str, Any]) -> Sampling:
    """The sampling that a checkpoint's `generation_config.json` asks for; greedy if it is silent.

    Raises:
        OptionError: A value outside its range.
    """
    if not generation_config.get("do_sample", False):
        penalty = generation_config.get("repetition_penalty")
        return GREEDY if penalty is None else replace(GREEDY, repetition_penalty=penalty)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    said = {n: generation_config[n] for n in names if generation_config.get(n) is not None}
    return Sampling(**said)
