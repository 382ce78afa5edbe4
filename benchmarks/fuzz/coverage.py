"""Which ways through Python code an input takes: what tells new inputs from more of the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Edge: TypeAlias = tuple[CodeType, int, int]  # one line after another


class Coverage:
    """Edges between lines of the code in some folders, by this thread.

    Args:
        folders: Whose code counts.
    """

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self._roots = tuple(str(folder) for folder in folders)
        self._counts: dict[CodeType, bool] = {}
        self.edges: set[Edge] = set()

    @property
    def lines(self) -> int:
        """How many lines were reached."""
        return len({(code.co_filename, line) for code, _, line in self.edges})

    def of(self, run: Callable[[], T]) -> tuple[T, bool]:
        """Run something; tells also whether it took a way that nothing took before."""
        known = len(self.edges)
        former = sys.gettrace()
        sys.settrace(self._enter)
        try:
            result = run()
        finally:
            sys.settrace(former)
        return result, len(self.edges) > known

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        counts = self._counts.get(code)
        if counts is None:
            counts = self._counts[code] = code.co_filename.startswith(self._roots)
        if not counts:
            return None
        edges, last = self.edges, 0

        def follow(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            if event == "line":
                edges.add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return follow

        return follow
