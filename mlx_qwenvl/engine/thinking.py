"""Thoughts that a model writes before its answer, between `<think>` and `</think>`, told apart.

The mark that opens them may be the end of the prompt, where the chat template has written it, or
the beginning of the answer; anywhere else it is text. Models without such tokens never think.
What keeps to a grammar is the answer: where the prompt opens thoughts, it begins behind them, and
otherwise with the first token.
"""

from __future__ import annotations

from typing import Final

from mlx_qwenvl.engine.constraint import Constraint
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.tokenizer import Tokenizer

OPEN: Final = "<think>"
CLOSE: Final = "</think>"
TAIL: Final = 4  # tokens at a prompt's end among which the mark and a line's end are


class Thoughts:
    """Tells thoughts from the answer while both come.

    Args:
        begun: Whether the prompt has opened them.

    Attributes:
        is_inside: Whether what comes next is still thought.
    """

    def __init__(self, begun: bool) -> None:
        self._held = ""
        self.is_inside = begun
        self._is_behind = False
        self._at_start = True  # of thoughts or of the answer behind them, where lines may be empty

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, prompt: Prompt, constraint: Constraint | None = None
    ) -> Thoughts | None:
        """For the answer to a prompt, or None where there can be no thoughts before it.

        Args:
            tokenizer: The model's vocabulary.
            prompt: What is answered.
            constraint: What the answer keeps to; told where that begins.
        """
        close = tokenizer.find_token(CLOSE)
        if close is None or tokenizer.find_token(OPEN) is None:
            return None
        tail = tokenizer.decode(prompt.token_ids[-TAIL:].tolist())
        begun = tail.rstrip().endswith(OPEN)
        if constraint is not None:
            if not begun:
                return None
            constraint.begin_behind(close)
        return cls(begun)

    def feed(self, text: str) -> tuple[str, str]:
        """What is certain with this text: more thoughts, and more of the answer."""
        self._held += text
        thought = ""
        if not self.is_inside and not self._is_behind:
            begun = self._held.lstrip()
            if OPEN.startswith(begun):
                return "", ""
            if not begun.startswith(OPEN):
                self._is_behind, self._at_start = True, False
            else:
                self.is_inside, self._held = True, begun.removeprefix(OPEN)
        if self.is_inside:
            thought = self._taken_inside()
        return thought, self._taken_behind() if self._is_behind else ""

    def finish(self) -> tuple[str, str]:
        """What was held back: text that never became a mark."""
        rest, self._held = self._held, ""
        return (rest.rstrip("\n"), "") if self.is_inside else ("", rest)

    def _taken_inside(self) -> str:
        at = self._held.find(CLOSE)
        if at >= 0:
            thought = self._held[:at].rstrip("\n")
            self._held = self._held[at + len(CLOSE) :]
            self.is_inside, self._is_behind = False, True
        else:
            # Ends of lines wait too: those before the mark belong to it.
            cut = len(self._held) - _begun(self._held)
            cut = len(self._held[:cut].rstrip("\n"))
            thought, self._held = self._held[:cut], self._held[cut:]
        return self._without_empty_lines(thought, is_over=at >= 0)

    def _taken_behind(self) -> str:
        answer, self._held = self._held, ""
        return self._without_empty_lines(answer, is_over=False)

    def _without_empty_lines(self, text: str, *, is_over: bool) -> str:
        if self._at_start:
            text = text.lstrip("\n")
        self._at_start = is_over or (self._at_start and not text)
        return text


def _begun(text: str) -> int:
    """Letters at the end of a text that may be the beginning of the closing mark."""
    sizes = range(min(len(CLOSE) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(CLOSE[:size])), 0)
