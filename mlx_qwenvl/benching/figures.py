"""What was measured, and what else can be said of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx_qwenvl.benching.machine import Machine


@dataclass(frozen=True)
class Spread:
    """One figure from several rounds.

    Attributes:
        median: The middle one.
        low: The least.
        high: The most.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Figures:
    """All figures of one model on one machine; times in seconds, rates in tokens per second.

    Attributes:
        model: What the model was loaded by.
        machine: Where.
        rounds: How often each was measured.
        image: (width, height) of the picture in pixels.
        prompt_tokens: Tokens of the prompt, the picture's among them.
        image_tokens: Tokens of the picture.
        answer_tokens: Tokens of each answer.
        load: Loading the model, which was done once.
        vision: Reading the picture and the vision tower.
        prefill: Computing the prompt.
        prefill_rate: Prompt tokens by it.
        first_token: From the question to the first token.
        decode_rate: Tokens after the first.
        next_first_token: From the second question of a conversation to its first token.
        batch_rates: Tokens of all sequences, by how many they are.
        peak_memory: Most bytes that MLX held.
        resident: Most bytes that the process held.
        ceiling: The rate of decoding that memory's bandwidth allows; None where it is not known.
    """

    model: str
    machine: Machine
    rounds: int
    image: tuple[int, int]
    prompt_tokens: int
    image_tokens: int
    answer_tokens: int
    load: float
    vision: Spread
    prefill: Spread
    prefill_rate: Spread
    first_token: Spread
    decode_rate: Spread
    next_first_token: Spread
    batch_rates: dict[int, Spread]
    peak_memory: int
    resident: int
    ceiling: float | None

    @property
    def ceiling_share(self) -> float | None:
        """The measured rate of decoding as a share of `ceiling`."""
        return None if self.ceiling is None else self.decode_rate.median / self.ceiling

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it."""
        found = asdict(self)
        found["machine"]["bandwidth"] = self.machine.bandwidth
        found["batch_rates"] = {str(rows): asdict(rate) for rows, rate in self.batch_rates.items()}
        return found | {"ceiling_share": self.ceiling_share}
