"""The one error: a kernel that Metal would refuse, or whose result it would not promise."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal[
    "compile",
    "lint",
    "out-of-bounds",
    "write-to-input",
    "uninitialised-read",
    "unwritten-output",
    "data-race",
    "barrier-divergence",
    "simdgroup-divergence",
    "threadgroup-memory",
    "undefined-behaviour",
    "schedule-dependent",
    "timeout",
    "unsupported",
    "crash",
]


class MetalError(Exception):
    """A kernel was refused.

    Args:
        kind: what is wrong, one of ``Kind``. "compile" and "lint" come before the kernel runs,
            the others while it runs or after.
        text: where, and what came.
    """

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind: Kind = kind


def as_kind(word: str) -> Kind:
    """A kind that the running kernel reports, checked."""
    for kind in get_args(Kind):
        if kind == word:
            found: Kind = kind
            return found
    raise ValueError(f"the runtime reports {word!r}, which is no kind of MetalError")
