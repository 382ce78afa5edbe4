"""What is answered already, and what is written about each picture or video."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlx_qwenvl.batching.lines import Entry, FileLines, Lines
from mlx_qwenvl.batching.named import Named
from mlx_qwenvl.engine.reply import Reply
from mlx_qwenvl.errors import QwenVLError


class Ledger:
    """Answers by key, and the names that they were written for.

    An answer is never taken out again. An error is, once a later line tells more of it.

    Args:
        lines: Where new ones are written.
        earlier: The lines that are there, by place.
    """

    def __init__(self, lines: Lines, earlier: Iterable[tuple[int, Entry]] = ()) -> None:
        self._lines = lines
        self._places: dict[str, object] = {}
        self._written: set[tuple[Named, str]] = set()
        self._failed: dict[tuple[Named, object], int] = {}  # of a file's errors, the last
        for place, entry in earlier:
            self._note(place, entry)

    @classmethod
    def of_file(cls, file: FileLines) -> Ledger:
        """The ledger that a file holds, which goes on there."""
        return cls(file, file.read())

    @property
    def keys(self) -> Iterable[str]:
        """Of all answers."""
        return self._places.keys()

    def holds(self, named: Named, key: str) -> bool:
        """Whether an answer was written under that name."""
        return (named, key) in self._written

    def knows(self, key: str) -> bool:
        """Whether an answer was written, under whatever name."""
        return key in self._places

    def answer(
        self, named: Named, key: str, prompt: str, reply: Reply, more: dict[str, Any]
    ) -> None:
        """Write an answer.

        Args:
            named: What it is about.
            key: Of the answer.
            prompt: What was asked.
            reply: The answer.
            more: What else is to stand in the line.
        """
        said = reply.to_dict()
        wanted = ("text", "finish_reason", "model", "usage", "boxes")
        told = {name: said[name] for name in wanted if name in said}
        self._add({**named.field, "key": key, "prompt": prompt} | told | more)

    def repeat(self, named: Named, key: str) -> None:
        """Write an answer that is known for one more file of the same content."""
        self._add(self._lines.at(self._places[key]) | named.field)

    def fail(self, named: Named, key: str, prompt: str, error: QwenVLError) -> None:
        """Write why there is no answer; the key is "" where the file could not be read."""
        told = {"type": type(error).__name__, "message": str(error)}
        known = {"key": key} if key else {}
        self._add({**named.field, **known, "prompt": prompt, "error": told})

    def _add(self, entry: Entry) -> None:
        self._note(self._lines.append(entry), entry)

    def _note(self, place: object, entry: Entry) -> None:
        named, key, prompt = Named.of_line(entry), entry.get("key"), entry.get("prompt")
        assert named is not None, "every line names something"
        failed = self._failed.pop((named, prompt), None)
        if failed is not None and isinstance(self._lines, FileLines):
            self._lines.drop(failed)
        if "error" in entry:
            if isinstance(place, int):
                self._failed[named, prompt] = place
        elif isinstance(key, str):
            self._places.setdefault(key, place)
            self._written.add((named, key))
