"""Proposals from the text itself: what followed the last tokens when they stood there before.

Answers about documents quote them, and lists, tables and code repeat themselves. An index of all
runs of three tokens finds the earlier place in constant time, whatever the prompt's length.
"""

from __future__ import annotations

import numpy as np

from mlx_qwenvl.inputs.prompt import Prompt

SIZE = 3  # tokens that have to be the same before their continuation is proposed
TOKEN_BITS = 21  # three token ids fit into one 64-bit key
PICTURE = -1  # stands in image slots; nothing that touches one is ever found or proposed


class Lookup:
    """The conversation's tokens, and where each run of `SIZE` of them went on.

    Args:
        prompt: The whole conversation.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._tokens: list[int] = []
        self._next: dict[int, int] = {}  # the place behind a run's last occurrence
        self._place: int | None = None  # of the token that is proposed next
        self.confidence = 0  # tokens that agree with those before `_place`

    def prepare(self) -> None:
        """Index the prompt and what was appended so far."""
        ids = self._prompt.token_ids.astype(np.int64)
        for start, seen in (run for slot in self._prompt.slots for run in slot.runs):
            ids[start : start + seen.n_tokens] = PICTURE
        ids = np.concatenate([ids, np.array(self._tokens, dtype=np.int64)])
        self._tokens, self._next = ids.tolist(), _index(ids)
        self._find()

    def append(self, token: int) -> None:
        """Note the answer's next token."""
        tokens = self._tokens
        key = _key(tokens[-SIZE:])
        if key is not None:
            self._next[key] = len(tokens)
        tokens.append(token)
        if self._place is not None and tokens[self._place] == token:
            self._place += 1
            self.confidence += 1
        else:
            self._find()

    def propose(self, most: int) -> list[int]:
        """At most `most` tokens that followed last time; none where nothing matches.

        They are no more than agree already: the longer a quotation has been, the longer it may be.
        """
        if self._place is None:
            return []
        most = min(most, self.confidence)
        # Where the match reaches the end, the text goes round in a circle of this length.
        period = len(self._tokens) - self._place
        run = [self._tokens[self._place + index % period] for index in range(most)]
        return run[: run.index(PICTURE)] if PICTURE in run else run

    def learn(self, proposed: int, accepted: int) -> None:
        """Hear how many of the last proposal's tokens were right; the text itself tells."""

    def _find(self) -> None:
        """Look the last tokens up."""
        key = _key(self._tokens[-SIZE:])
        self._place = None if key is None else self._next.get(key)
        self.confidence = 0 if self._place is None else SIZE


def _key(run: list[int]) -> int | None:
    """One number for a run of tokens, or None where it is too short or touches a picture."""
    if len(run) < SIZE or PICTURE in run:
        return None
    first, second, third = run
    return (first << TOKEN_BITS | second) << TOKEN_BITS | third


def _index(ids: np.ndarray) -> dict[int, int]:
    """The place behind the last occurrence of every run that something follows; ids is [L]."""
    first, second, third = ids[:-3], ids[1:-2], ids[2:-1]
    whole = (first != PICTURE) & (second != PICTURE) & (third != PICTURE)
    keys = (first << TOKEN_BITS | second) << TOKEN_BITS | third
    return dict(zip(keys[whole].tolist(), (np.flatnonzero(whole) + SIZE).tolist(), strict=True))
