"""What the next answer is drawn with, and the commands that change it."""

from __future__ import annotations

from typing import Final, cast

from mlx_qwenvl.engine.options import CallOptions, Sampling, read_options
from mlx_qwenvl.errors import OptionError

# Command: the option it sets and the kind of its value.
SETTERS: Final[dict[str, tuple[str, type]]] = {
    "temperature": ("temperature", float),
    "topk": ("top_k", int),
    "topp": ("top_p", float),
    "minp": ("min_p", float),
    "seed": ("seed", int),
    "maxtokens": ("max_tokens", int),
}
SAMPLING: Final = ("temperature", "top_k", "top_p", "min_p")
KEPT: Final = (  # in saved files
    *SAMPLING,
    *("seed", "max_tokens", "min_pixels", "max_pixels", "fps", "n_frames", "max_frames"),
)
RETRY: Final = {"temperature": 0.8, "top_p": 0.95}  # where the likeliest words would come again


def changed(options: CallOptions, command: str, text: str, own: Sampling) -> CallOptions:
    """The options with one of them set anew.

    Args:
        options: The options so far.
        command: One of `SETTERS`.
        text: The value as it was typed; "default" takes the setting back.
        own: The checkpoint's sampling.

    Raises:
        OptionError: The value is no number or outside its range.
    """
    name, kind = SETTERS[command]
    if text.lower() == "default":
        value = None
    else:
        try:
            value = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise OptionError(f"\\{command} takes {wanted} or default, got {text!r}") from None
    new = cast(CallOptions, {**options, name: value})
    read_options(new, own)
    return new


def described(options: CallOptions, own: Sampling) -> str:
    """The settings in force, in one line."""
    read = read_options(options, own)
    sampling = read.sampling
    if sampling.is_greedy:
        drawn = "always the likeliest word (temperature 0)"
    else:
        top_k = sampling.top_k or "off"
        drawn = f"temperature {sampling.temperature:g}, top-k {top_k}, top-p {sampling.top_p:g}"
        drawn += f", min-p {sampling.min_p:g}" if sampling.min_p else ""
    seed = "" if read.seed is None else f", seed {read.seed}"
    return f"{drawn}{seed}; at most {read.max_tokens} tokens an answer"


def for_retry(options: CallOptions, own: Sampling, attempt: int) -> tuple[CallOptions, bool]:
    """Options for another answer to the same question.

    Args:
        options: The options so far.
        own: The checkpoint's sampling.
        attempt: How many answers the question has had.

    Returns:
        The options, and whether they draw where the options so far did not.
    """
    read = read_options(options, own)
    other: dict[str, object] = {**options}
    if read.seed is not None:
        other["seed"] = (read.seed + attempt) % 2**63
    if read.sampling.is_greedy:
        other |= dict.fromkeys(SAMPLING) | RETRY
    return cast(CallOptions, other), read.sampling.is_greedy
