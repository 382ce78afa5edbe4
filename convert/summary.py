"""What a conversion did, in a few lines for a person."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from mlx_qwenvl.models.config import Config
from mlx_qwenvl.sizes import in_bytes
from mlx_qwenvl.weights.bundle import open_bundle
from mlx_qwenvl.weights.describe import Description, describe

from .convert import Outcome

_LAYER = re.compile(r"(?<=layers|blocks)\.\d+\.")


def summary(outcome: Outcome, seconds: float, peak_bytes: int) -> list[str]:
    """Sizes, bits of each part, time, memory, and what stayed dense.

    Args:
        outcome: What `convert` or `dequantize` gave back.
        seconds: That it took.
        peak_bytes: Most memory that the process held.
    """
    before, after = outcome.source_bytes, outcome.output_bytes
    lines = [
        *outcome.notes,
        f"{outcome.output}: {in_bytes(before)} became {in_bytes(after)} in {seconds:.1f} s; memory "
        f"peaked at {in_bytes(peak_bytes)}",
    ]
    for number, variant in enumerate(outcome.variants):
        with open_bundle(outcome.output, variant) as bundle:
            description = describe(Config.from_folder(bundle.folder), bundle.tensors)
        is_chosen = len(outcome.variants) > 1 and number == 0
        name = f"{variant} (default)" if is_chosen else variant
        lines.append(f"{name}: {in_bytes(outcome.variants[variant])}, {_bits(description)}")
    return lines + _dense(outcome.ungrouped)


def _dense(ungrouped: Mapping[str, str]) -> list[str]:
    """A line for each kind of matrix, however many layers have one."""
    kinds = Counter((_LAYER.sub(".*.", path), why) for path, why in sorted(ungrouped.items()))
    return [
        f"{kind} stays dense" + (f" in {count} layers" if ".*." in kind else "") + f": {why}"
        for (kind, why), count in kinds.items()
    ]


def _bits(description: Description) -> str:
    parts = ", ".join(f"{part.name} {part.bits_per_weight:.2f}" for part in description.parts)
    return f"{description.bits_per_weight:.2f} bits a weight ({parts})"
