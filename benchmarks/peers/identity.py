"""Whose greedy tokens are whose, token by token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from benchmarks.peers.rows import OURS, ROWS

REFERENCE, PACKED_REFERENCE = "transformers", "mlx-vlm-float32-openblas"
NOT_QUANTIZED = ("demo",)  # whose packed form has the same weights as the dense one

Answers = Mapping[tuple[str, int], Sequence[int]]  # tokens by case and round


def identity(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Do our answers equal those of a peer with the same weights in float32? One model's entries.

    What is not quantized is held against Transformers, what is against mlx-vlm on the same files.
    Cases whose prompts differ by what the peer's chat makes of them are left out.
    """
    answers: dict[str, dict[tuple[str, int], Sequence[int]]] = defaultdict(dict)
    for entry in entries:
        if entry.get("tokens") and not entry["case"].startswith("next"):
            answers[entry["row"]][entry["case"], entry["round"]] = entry["tokens"]
    lines = []
    for row, own in answers.items():
        if ROWS[row].runtime != OURS:
            continue
        same_weights = ROWS[row].folder == "dense" or entries[0]["model"] in NOT_QUANTIZED
        reference = REFERENCE if same_weights else PACKED_REFERENCE
        if own.keys() & answers.get(reference, {}).keys():
            lines.append(_line(row, reference, own, answers[reference]))
    if lines:
        yield "Greedy tokens, compared one by one with those of the same weights in float32:\n"
        yield "| | held against | answers that are equal | tokens up to the first difference |"
        yield "|---|---|---|---|"
        yield from lines


def _line(row: str, reference: str, own: Answers, theirs: Answers) -> str:
    shared = sorted(own.keys() & theirs.keys())
    same = sum(list(own[key]) == list(theirs[key]) for key in shared)
    pairs = [list(zip(own[key], theirs[key], strict=False)) for key in shared]
    equal = sum(len(list(takewhile(lambda pair: pair[0] == pair[1], one))) for one in pairs)
    count = sum(len(theirs[key]) for key in shared)
    return f"| {row} | {reference} | {same} of {len(shared)} | {equal} of {count} |"
