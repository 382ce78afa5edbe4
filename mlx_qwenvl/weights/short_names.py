"""Short names of published models, and the Hugging Face repositories that they stand for.

A name is a member, a size, `thinking` where the model was trained for it, and the bits of its
weights: `qwen3-vl-8b-thinking-8bit`. Without bits it is the conversion that comes first below.
`2b`, `7b` and `72b` are Qwen2-VL's. Only conversions that are published have names.
"""

from __future__ import annotations

from collections.abc import Iterator

_ELDEST = "qwen2-vl-"  # which is left out of the names that are shown
_PLAIN = "-instruct"  # so is this
# Member, kind, sizes, bits.
_CONVERSIONS = (
    ("Qwen2-VL", "Instruct", ("2B", "7B", "72B"), (4, 8)),
    ("Qwen2.5-VL", "Instruct", ("3B", "7B", "32B", "72B"), (4, 8)),
    ("Qwen3-VL", "Instruct", ("2B", "4B", "8B", "32B", "30B-A3B"), (4, 8)),
    ("Qwen3-VL", "Instruct", ("235B-A22B",), (4, 3)),
    ("Qwen3-VL", "Thinking", ("2B", "4B", "8B", "32B"), (4, 8)),
    ("Qwen3-VL", "Thinking", ("30B-A3B",), (4,)),
    ("Qwen3-VL", "Thinking", ("235B-A22B",), (3,)),
)


def _named() -> Iterator[tuple[str, str]]:
    for member, kind, sizes, all_bits in _CONVERSIONS:
        for size in sizes:
            model = f"{member}-{size}-{kind}"
            for bits in all_bits:
                repository = f"mlx-community/{model}-{bits}bit"
                if bits == all_bits[0]:
                    yield plain(model), repository
                yield plain(f"{model}-{bits}bit"), repository


def plain(name: str) -> str:
    """A name without what goes without saying, in small letters."""
    return name.lower().removeprefix(_ELDEST).replace(_PLAIN, "")


SHORT_NAMES = dict(_named())
# One for each model, without its bits.
MODEL_NAMES = tuple(name for name in SHORT_NAMES if not name.endswith("bit"))
