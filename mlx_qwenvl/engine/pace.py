"""When proposals are worth a step: what they cost and brought, measured while decoding.

Nothing is known of the device beforehand, and little of the text. So every verifying step is held
against the plain steps before it. A source of proposals whose last one did not pay has to be more
confident for the next by a factor; one that paid is asked for half as much.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import Protocol

FORGIVEN_AFTER = 128  # plain tokens after which a loss is half forgotten
PRIOR_COST = 2.0  # plain steps that a round is taken to cost before either was measured
MEASURED = 3  # plain steps that have to be timed before their median counts
REMEMBERED = 15  # plain steps whose median counts


class Proposer(Protocol):
    """Guesses tokens.

    Attributes:
        confidence: How much speaks for its proposals, in tokens.
    """

    confidence: int

    def prepare(self) -> None:
        """Do what has to be done once; called when the answer has begun, before all others."""

    def append(self, token: int) -> None:
        """Note the answer's next token."""

    def propose(self, most: int) -> list[int]:
        """At most `most` next tokens."""

    def learn(self, proposed: int, accepted: int) -> None:
        """Hear how many of the last proposal's tokens were right."""


class Pace:
    """When proposals of one source are worth a step: what they cost and brought, measured.

    Args:
        least: Confidence that a proposal needs where all goes well.
        first: Confidence that the first one needs.
        growth: How many times as much is asked after a loss.
    """

    def __init__(self, least: int, first: int, growth: int = 2) -> None:
        self._least = least
        self._growth = growth
        self.needed = first
        self._plain: deque[float] = deque(maxlen=REMEMBERED)
        self._since_loss = 0

    def plain(self, seconds: float) -> None:
        """Note a plain step."""
        self._plain.append(seconds)
        self._since_loss += 1
        if self._since_loss % FORGIVEN_AFTER == 0:
            self._ease()

    def round(self, seconds: float, tokens: int) -> None:
        """Note a verifying step and the tokens that it gave."""
        measured = len(self._plain) >= MEASURED
        cost = seconds / statistics.median(self._plain) if measured else PRIOR_COST
        # The model's own token alone never pays; a clock on a busy machine may say that it did.
        if tokens == 1 or tokens < cost:
            self.lost()
        else:
            self._ease()

    def lost(self) -> None:
        """Note that a proposal was wrong, or right and too dear."""
        self.needed = max(self._growth * self.needed, 4)
        self._since_loss = 0

    def _ease(self) -> None:
        halved = self.needed // 2
        self.needed = self._least if halved <= self._least else halved
