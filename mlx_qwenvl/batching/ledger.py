"""What is answered already, and what is written about each picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlx_qwenvl.batching.lines import Entry, FileLines, Lines
from mlx_qwenvl.engine.reply import Reply
from mlx_qwenvl.errors import QwenVLError


class Ledger:
    """Answers by key, and the names that they were written for.

    An answer is never taken out again. A picture's error is, once a later line tells more of it.

    Args:
        lines: Where new ones are written.
        earlier: The lines that are there, by place.
    """

    def __init__(self, lines: Lines, earlier: Iterable[tuple[int, Entry]] = ()) -> None:
        self._lines = lines
        self._places: dict[str, object] = {}
        self._written: set[tuple[str, str]] = set()
        self._failed: dict[tuple[str, object], int] = {}  # of a file's errors, the last
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

    def holds(self, image: str, key: str) -> bool:
        """Whether an answer was written for a picture of that name."""
        return (image, key) in self._written

    def knows(self, key: str) -> bool:
        """Whether an answer was written, for a picture of whatever name."""
        return key in self._places

    def answer(self, image: str, key: str, prompt: str, reply: Reply, more: dict[str, Any]) -> None:
        """Write an answer.

        Args:
            image: Name of the picture.
            key: Of the answer.
            prompt: What was asked.
            reply: The answer.
            more: What else is to stand in the line.
        """
        said = reply.to_dict()
        wanted = ("text", "finish_reason", "model", "usage", "boxes")
        told = {name: said[name] for name in wanted if name in said}
        self._add({"image": image, "key": key, "prompt": prompt} | told | more)

    def repeat(self, image: str, key: str) -> None:
        """Write an answer that is known for one more picture of the same content."""
        self._add(self._lines.at(self._places[key]) | {"image": image})

    def fail(self, image: str, key: str, prompt: str, error: QwenVLError) -> None:
        """Write why there is no answer; the key is "" where the picture could not be read."""
        told = {"type": type(error).__name__, "message": str(error)}
        named = {"key": key} if key else {}
        self._add({"image": image, **named, "prompt": prompt, "error": told})

    def _add(self, entry: Entry) -> None:
        self._note(self._lines.append(entry), entry)

    def _note(self, place: object, entry: Entry) -> None:
        image, key, prompt = entry["image"], entry.get("key"), entry.get("prompt")
        failed = self._failed.pop((image, prompt), None)
        if failed is not None and isinstance(self._lines, FileLines):
            self._lines.drop(failed)
        if "error" in entry:
            if isinstance(place, int):
                self._failed[image, prompt] = place
        elif isinstance(key, str):
            self._places.setdefault(key, place)
            self._written.add((image, key))
