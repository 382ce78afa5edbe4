"""Where an answer ends: at a token that says so, or before a stop text, wherever the seams lie.

Text that may yet turn out to begin a stop text is held back, so that no part of one is ever shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_qwenvl.inputs.tokenizer import Tokenizer

FAMILY_ENDS = ("<|im_end|>", "<|endoftext|>")


def end_ids(generation: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end an answer: those the checkpoint states, and the family's."""
    stated = generation.get("eos_token_id") or []
    family = [tokenizer.special_ids.get(content) for content in FAMILY_ENDS]
    ids = [*([stated] if isinstance(stated, int) else stated), *family]
    return frozenset(index for index in ids if index is not None)


class StopText:
    """Watches a stream of text for the first of several stop texts.

    Args:
        stops: Texts before which to end; none of them is empty.

    Attributes:
        hit: The one that was found, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit: str | None = None

    @property
    def found(self) -> bool:
        """Whether the text ends here."""
        return self.hit is not None

    def feed(self, text: str) -> str:
        """Text that may be shown now; after `found` nothing more comes."""
        if self.found:
            return ""
        self._held += text
        places = {stop: place for stop in self._stops if (place := self._held.find(stop)) >= 0}
        if places:
            self.hit = min(places, key=places.__getitem__)
            shown, self._held = self._held[: places[self.hit]], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back and turned out to be no stop text."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
