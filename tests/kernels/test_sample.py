"""`sample`: the kernel, its twin and the sorted definition keep and draw the same, to the token."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl.engine.options import GREEDY, Options, Sampling
from mlx_qwenvl.engine.sampling import Sampler, draw, settings_of
from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.kernels.ops import METAL, TWINS, Ops
from mlx_qwenvl.kernels.sample import NO_TOKEN, kept_mass, sample_twin
from tests.kernels.draws import (
    ALL,
    DRAWS,
    EVERY,
    K5,
    K9_P70,
    MIN10,
    P50,
    P90,
    Draws,
    kept_of_sorted_logits,
)
from tests.kernels.references import DTYPES, exact, normal
from tests.metal_emulator import Launch, emulator_options

LARGE = Draws(152_064, (P90, K5))  # the 7B's
LARGE_2B = Draws(151_936, (Sampling(temperature=0.7, top_p=0.9, top_k=50, min_p=0.01),))

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).split(".")[-1])


@pytest.mark.parametrize("case", DRAWS)
def test_kernel_draws_the_token_of_the_definition(case: Draws, launches: Counter[str]) -> None:
    case.check(METAL.sample, mx.float32)
    assert launches == {"sample": 1}


@dtypes
@pytest.mark.parametrize("case", [*DRAWS, LARGE, LARGE_2B])
def test_twin_draws_the_token_of_the_definition(case: Draws, dtype: mx.Dtype) -> None:
    case.check(TWINS.sample, dtype)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_kernel_draws_from_logits_of_16_bits(dtype: mx.Dtype, launches: Counter[str]) -> None:
    Draws(333, (K5, P90, EVERY)).check(METAL.sample, dtype)
    assert launches == {"sample": 1}


@pytest.mark.parametrize("case", [LARGE, LARGE_2B])
def test_kernel_draws_from_the_whole_vocabulary(case: Draws, emulated: list[Launch]) -> None:
    with emulator_options(orders=("random",)):
        case.check(METAL.sample, mx.bfloat16)
    assert not emulated[0].copied


@pytest.mark.parametrize("contract", ["fast", "off"])
def test_kernel_takes_inputs_that_begin_anywhere_fused_or_not(
    contract: Any, emulated: list[Launch]
) -> None:
    with emulator_options(misalign=1, contract=contract, orders=("reverse",)):
        Draws(50, (EVERY, P50, MIN10)).check(METAL.sample, mx.float32)
    assert [launch.name for launch in emulated] == ["sample"]


@pytest.mark.parametrize(
    ("vocabulary", "levels", "dtype"),
    [
        *product((5, 40, 1001), (0, 1), DTYPES),
        (152_064, 0, mx.float32),
        (152_064, 1, mx.bfloat16),
    ],
)
def test_kept_are_those_of_logits_sorted_in_float64(
    vocabulary: int, levels: int, dtype: mx.Dtype
) -> None:
    settings = (ALL, K5, P90, P50, K9_P70, MIN10, EVERY, Sampling(top_k=200, top_p=0.8))
    rng = np.random.default_rng(7)
    logits = (normal(rng, mx.float32, len(settings), vocabulary) * 3).astype(dtype)
    logits = mx.round(logits) if levels else logits
    scale, filters = settings_of(settings)
    mass = np.array(kept_mass(mx.softmax(logits.astype(mx.float32) * scale, axis=-1), filters))
    for row, sampling, kept in zip(exact(logits), settings, mass, strict=True):
        ours = set(np.flatnonzero(kept).tolist())
        # Logits times 1 / temperature are rounded to float32, which moves a share by this much.
        slack = 1e-6 if vocabulary > 2000 and sampling.top_p < 1 else 0.0
        least, most = (kept_of_sorted_logits(row, sampling, s) for s in (-slack, slack))
        if sampling == ALL:  # what is less likely than 2^-32 is never drawn
            least = {i for i in least if np.exp(row[i] - row.max()) > 1e-6}
        assert least <= ours <= most
        assert len(most) - len(least) <= 3 or sampling == ALL


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_k=3), {0, 1, 4}),  # the first of equals
        (Sampling(top_p=0.5), {1, 4}),  # 2/8 2/8 reach a half; the next would be beyond it
        (Sampling(top_p=0.51), {0, 1, 4}),
        (Sampling(top_p=0.75), {0, 1, 2, 4}),
        (Sampling(top_k=3, top_p=0.79), {1, 4}),  # 4/5 of what top-k leaves
        (Sampling(top_k=3, top_p=0.81), {0, 1, 4}),
        (Sampling(min_p=0.5), {0, 1, 2, 3, 4, 5}),
        (Sampling(min_p=0.51), {1, 4}),
    ],
)
def test_kept_of_a_row_worked_by_hand(
    sampling: Sampling, kept: set[int], launches: Counter[str]
) -> None:
    p = mx.array([[1, 2, 1, 1, 2, 1, 0, 0, 0]], dtype=mx.float32) / 8
    _, filters = settings_of((sampling,))
    assert set(np.flatnonzero(np.array(kept_mass(p, filters))[0]).tolist()) == kept
    weights = [round(float(np.array(p)[0, i]) * 8) for i in sorted(kept)]
    want = np.repeat(sorted(kept), weights).tolist()  # one draw for each eighth
    chance = mx.array([[(2 * i + 1) * 2**31 // len(want)] for i in range(len(want))], mx.uint64)
    _, filters = settings_of((sampling,) * len(want))
    rows = mx.repeat(p, len(want), axis=0)
    for op in (sample_twin, METAL.sample):
        assert np.array(op(rows, chance, filters)).tolist() == want


def test_rows_of_nan_draw_no_token_and_leave_the_others_alone(launches: Counter[str]) -> None:
    nan, inf = float("nan"), float("inf")
    logits = np.zeros((8, 9), dtype=np.float32)
    logits[0, 8] = logits[1, 0] = nan
    logits[2] = -inf
    logits[3, 4] = inf
    logits[4, :7] = -inf
    logits[5] = logits[6] = -3e38
    logits[6, 2] = 3e38
    settings = (ALL, P50, K5, EVERY, P90, P50, MIN10, GREEDY)
    scale, filters = settings_of(settings)
    p = mx.softmax(mx.array(logits) * scale, axis=-1)
    chance = mx.full((8, 1), 2**32 - 1, dtype=mx.uint64)
    want = [NO_TOKEN] * 4 + [8, 4, 2, 0]
    for op in (sample_twin, METAL.sample):
        assert np.array(op(p, chance, filters)).tolist() == want


def test_an_answer_from_nan_ends_in_an_error() -> None:
    sampler = Sampler(Options(sampling=P90), 12, np.empty(0, dtype=np.int32))
    (drawn,) = draw(mx.full((1, 12), float("nan")), [sampler], TWINS)
    with pytest.raises(QwenVLError, match="computed NaN or infinity, expected logits"):
        _ = drawn.token_id


def test_draws_follow_the_distribution_by_chi_square() -> None:
    logits = np.random.default_rng(1).normal(size=12).astype(np.float32)
    rows = 20_000
    scale, filters = settings_of((Sampling(temperature=0.8, top_k=9),) * rows)
    sampler = Sampler(Options(seed=4), 12, np.empty(0, dtype=np.int32))
    chance = mx.array([[sampler.chance()] for _ in range(rows)], dtype=mx.uint64)
    p = mx.softmax(mx.array(np.tile(logits, (rows, 1))) * scale, axis=-1)
    seen = np.bincount(np.array(sample_twin(p, chance, filters)), minlength=12)
    kept = sorted(kept_of_sorted_logits(logits.astype(np.float64), Sampling(top_k=9)))
    want = np.exp(logits[kept].astype(np.float64) / 0.8)
    want *= rows / want.sum()
    assert seen.sum() == seen[kept].sum() == rows
    statistic = float(((seen[kept] - want) ** 2 / want).sum())
    assert 1.34 < statistic < 21.95  # 8 degrees of freedom: 0.5 % on either side


def adjusted_by_definition(
    logits: np.ndarray, options: Options, prompt: set[int], answered: list[int]
) -> np.ndarray:
    """Logits [V] after bias and penalties, in float64."""
    sampling, z = options.sampling, logits.astype(np.float64)
    for token, bias in (options.logit_bias or {}).items():
        z[token] += bias
    if sampling.repetition_penalty != 1:
        for token in prompt | set(answered):
            r = sampling.repetition_penalty
            z[token] = z[token] / r if z[token] > 0 else z[token] * r
    for token, count in Counter(answered).items():
        z[token] -= sampling.frequency_penalty * count + sampling.presence_penalty
    return z


@pytest.mark.parametrize("ops", [TWINS, METAL], ids=["twin", "kernel"])
def test_a_batch_draws_row_by_row_what_each_row_draws_alone(
    ops: Ops, launches: Counter[str]
) -> None:
    vocabulary, prompt = 60, np.array([3, 5, 8, 8])
    given = [
        Options(sampling=GREEDY),
        Options(sampling=replace(GREEDY, presence_penalty=1.5), logit_bias={4: 9.0}),
        Options(sampling=replace(P90, repetition_penalty=1.3), seed=1),
        Options(sampling=replace(K5, frequency_penalty=0.7, presence_penalty=-0.2), seed=2),
        Options(sampling=EVERY, seed=2, logit_bias={7: -50.0, 9: 6.0}),
    ]
    rng = np.random.default_rng(3)
    steps = [rng.normal(size=(len(given), vocabulary)).astype(np.float32) * 3 for _ in range(6)]

    def run(rows: list[int], ops: Ops) -> list[list[int]]:
        samplers = [Sampler(given[row], vocabulary, prompt) for row in rows]
        drawn = [draw(mx.array(logits[rows]), samplers, ops) for logits in steps]
        return [[one.token_id for one in step] for step in drawn]

    together = run(list(range(len(given))), ops)
    assert launches == ({"sample": len(steps)} if ops is METAL else {})
    alone = [run([row], TWINS) for row in range(len(given))]
    assert together == [[alone[row][step][0] for row in range(len(given))] for step in range(6)]
    for row, options in enumerate(given):
        answered: list[int] = []
        for step, logits in enumerate(steps):
            z = adjusted_by_definition(logits[row], options, set(prompt.tolist()), answered)
            token = together[step][row]
            if options.sampling.is_greedy:
                assert token == z.argmax()
            else:
                assert token in kept_of_sorted_logits(z, options.sampling)
            answered.append(token)
