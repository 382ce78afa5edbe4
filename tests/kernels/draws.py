"""Rows for `sample`, and what is drawn from them by definition, in NumPy's integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_qwenvl.engine.options import GREEDY, Sampling
from mlx_qwenvl.engine.sampling import settings_of
from mlx_qwenvl.kernels.sample import Filters
from tests.kernels.checks import SEED
from tests.kernels.references import Exact, normal

SampleOp = Callable[[mx.array, mx.array, Filters], mx.array]

ALL = Sampling()
K5 = Sampling(top_k=5)
P90 = Sampling(temperature=0.7, top_p=0.9)
P50 = Sampling(top_p=0.5)
K9_P70 = Sampling(temperature=1.3, top_k=9, top_p=0.7)
MIN10 = Sampling(temperature=2.0, min_p=0.1)
EVERY = Sampling(temperature=1.5, top_k=12, top_p=0.95, min_p=0.02)


@dataclass(frozen=True)
class Draws:
    """Rows of one step.

    Attributes:
        vocabulary: V.
        settings: Of each row.
        spread: Standard deviation of the logits; 0 makes all tokens equal.
        levels: Rounds the logits to multiples of 1 / levels, which makes ties; 0 leaves them.
        broken: A row that is NaN.
    """

    vocabulary: int
    settings: tuple[Sampling, ...]
    spread: float = 3.0
    levels: int = 0
    broken: int | None = None

    def inputs(self, dtype: mx.Dtype) -> tuple[mx.array, mx.array, Filters]:
        """Probabilities, chance and filters. Chance is near where one token ends and one begins."""
        rng = np.random.default_rng(SEED)
        logits = normal(rng, mx.float32, len(self.settings), self.vocabulary) * self.spread
        if self.levels:
            logits = mx.round(logits * self.levels) / self.levels
        if self.broken is not None:
            logits[self.broken, self.vocabulary // 2] = float("nan")
        scale, filters = settings_of(self.settings)
        p = mx.softmax(logits.astype(dtype).astype(mx.float32) * scale, axis=-1)
        chance = []
        for row, sampling in zip(np.array(p), self.settings, strict=True):
            if np.isnan(row).any():
                chance.append([0])
                continue
            ends = np.cumsum(kept_by_definition(row, sampling))
            end = int(rng.choice(ends[ends > 0])) - int(rng.integers(2))
            chance.append([min(-(-end * 2**32 // int(ends[-1])), 2**32 - 1)])
        return p, mx.array(np.array(chance, dtype=np.uint64)), filters

    def check(self, op: SampleOp, dtype: mx.Dtype) -> None:
        p, chance, filters = self.inputs(dtype)
        token = op(p, chance, filters)
        assert (token.dtype, token.shape) == (mx.int32, (len(self.settings),))
        rows = zip(np.array(p), self.settings, np.array(chance)[:, 0], strict=True)
        assert np.array(token).tolist() == [drawn_by_definition(*row) for row in rows]


def kept_by_definition(p: NDArray[np.float32], sampling: Sampling) -> NDArray[np.int64]:
    """Masses [V] of probabilities [V] as `sample` defines them, 0 where a filter leaves one out."""
    mass: NDArray[np.int64] = (p * np.float32(2**31) + np.float32(0.5)).astype(np.int64)
    order = np.argsort(-p, kind="stable")
    if sampling.is_greedy:
        mass[order[1:]] = 0
        return mass
    mass[order[sampling.top_k or p.size :]] = 0
    total, before = int(mass.sum()), np.cumsum(mass[order]) - mass[order]
    beyond = min(round((1 - sampling.top_p) * 2**32), 2**32 - 1)
    mass[order[before >= total - (total * beyond >> 32)]] = 0
    mass[p < p.max() * np.float32(sampling.min_p)] = 0
    return mass


def drawn_by_definition(p: NDArray[np.float32], sampling: Sampling, chance: int) -> int:
    """The token of one row."""
    if np.isnan(p).any():
        return -1
    reached = np.cumsum(kept_by_definition(p, sampling))
    return int(np.searchsorted(reached, int(reached[-1]) * int(chance) >> 32, side="right"))


def kept_of_sorted_logits(logits: Exact, sampling: Sampling, slack: float = 0.0) -> set[int]:
    """What top-k, top-p and min-p mean: the logits in float64, sorted. Of equals the first id.

    Slack is added to top-p.
    """
    order = np.argsort(-logits, kind="stable")[: sampling.top_k or logits.size]
    weights = np.exp((logits - logits.max()) / sampling.temperature)
    before = np.cumsum(weights[order]) - weights[order]
    likely = before < (sampling.top_p + slack) * weights[order].sum()
    return {int(i) for i in order[likely] if weights[i] >= sampling.min_p}


DRAWS = (
    Draws(40, (P90, GREEDY, K5, ALL, P50, K9_P70, MIN10, EVERY), broken=3),
    Draws(77, (K5, P50, EVERY, Sampling(min_p=1.0)), levels=1),  # ties at every cut
    Draws(64, (K9_P70, ALL), spread=60.0),  # fewer that have a mass than top-k asks for
    Draws(530, (P50, Sampling(top_k=7), ALL), spread=0.0),  # all equal
    Draws(1025, (Sampling(top_k=600), P90)),  # one more than there are bins
    Draws(7, (P50, K5, ALL)),  # all inputs below 8 elements but p
    Draws(1, (P50,)),
)
