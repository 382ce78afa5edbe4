"""Drawing tokens: each setting against its definition in NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl import OptionError, QwenVL
from mlx_qwenvl.engine.options import (
    GREEDY,
    CallOptions,
    Options,
    Sampling,
    checkpoint_sampling,
    read_options,
)
from mlx_qwenvl.engine.sampling import Sampled, Sampler, draw, settings_of
from mlx_qwenvl.kernels.ops import TWINS
from mlx_qwenvl.kernels.sample import kept_mass

V = 40
NO_PROMPT = np.empty(0, dtype=np.int32)


def options(**settings: Any) -> Options:
    sampling = {k: settings.pop(k) for k in list(settings) if hasattr(Sampling(), k)}
    return replace(Options(sampling=Sampling(**sampling)), **settings)


def some_logits(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=V).astype(np.float32) * 3


def drawn_by(sampler: Sampler, logits: mx.array | np.ndarray) -> Sampled:
    """Draw from logits [V]."""
    return draw(mx.array(logits)[None], [sampler], TWINS)[0]


def kept_by_definition(logits: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    order = np.argsort(-logits)
    kept = list(order[: top_k or V])
    p = np.exp(logits[kept] - logits.max())
    p /= p.sum()
    if top_p < 1:
        kept = kept[: max(1, int(np.searchsorted(np.cumsum(p), top_p) + 1))]
    floor = min_p * np.exp(logits).max()
    return {int(i) for i in kept if np.exp(logits[i]) >= floor}


@pytest.mark.parametrize("top_k", [0, 1, 5])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 0.0])
@pytest.mark.parametrize("min_p", [0.0, 0.2, 1.0])
def test_filters_keep_what_their_definition_keeps(top_k: int, top_p: float, min_p: float) -> None:
    for seed in range(5):
        logits = some_logits(seed)
        _, filters = settings_of((Sampling(top_k=top_k, top_p=top_p, min_p=min_p),))
        kept = np.array(kept_mass(mx.softmax(mx.array(logits)[None], axis=-1), filters))[0]
        ours = set(np.flatnonzero(kept).tolist())
        assert ours == kept_by_definition(logits, top_k, top_p, min_p)


def test_draws_follow_the_distribution() -> None:
    logits = some_logits()
    sampler = Sampler(options(temperature=0.7, seed=3), V, NO_PROMPT)
    draws = [drawn_by(sampler, logits).token_id for _ in range(3000)]
    seen = np.bincount(draws, minlength=V) / len(draws)
    p = np.exp((logits - logits.max()) / 0.7)
    p /= p.sum()
    assert np.abs(seen - p).max() < 4 * np.sqrt(0.25 / len(draws))


def test_filtered_draws_stay_inside_the_filter() -> None:
    logits = some_logits(1)
    allowed = kept_by_definition(logits / 2, 6, 0.8, 0.05)
    sampler = Sampler(options(temperature=2.0, top_k=6, top_p=0.8, min_p=0.05), V, NO_PROMPT)
    assert {drawn_by(sampler, logits).token_id for _ in range(200)} == allowed


def test_a_seed_repeats_its_draws_and_another_does_not() -> None:
    logits = mx.array(some_logits())

    def draws(seed: int) -> list[int]:
        sampler = Sampler(options(temperature=2.0, seed=seed), V, NO_PROMPT)
        return [drawn_by(sampler, logits).token_id for _ in range(20)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(-1) == draws(-1)


def test_without_a_seed_draws_differ_from_call_to_call() -> None:
    logits = mx.array(some_logits())
    samplers = [Sampler(options(temperature=2.0), V, NO_PROMPT) for _ in range(2)]
    one, other = ([drawn_by(sampler, logits).token_id for _ in range(30)] for sampler in samplers)
    assert one != other


def test_repetition_penalty_counts_the_prompt_and_the_answer() -> None:
    logits = np.zeros(V, dtype=np.float32)
    logits[[3, 4, 5]] = [9.0, 8.5, 8.0]
    sampler = Sampler(options(temperature=0, repetition_penalty=2.0), V, np.array([3]))
    assert [drawn_by(sampler, logits).token_id for _ in range(4)] == [4, 5, 3, 3]


def test_repetition_penalty_pushes_negative_logits_down() -> None:
    logits = np.full(V, -10.0, dtype=np.float32)
    logits[[3, 4]] = [-1.0, -1.5]
    sampler = Sampler(options(temperature=0, repetition_penalty=2.0), V, np.array([3]))
    assert drawn_by(sampler, logits).token_id == 4


def test_presence_penalty_counts_the_answer_once_and_never_the_prompt() -> None:
    logits = np.zeros(V, dtype=np.float32)
    logits[[3, 4]] = [9.0, 8.0]
    sampler = Sampler(options(temperature=0, presence_penalty=1.5), V, np.array([3]))
    assert [drawn_by(sampler, logits).token_id for _ in range(4)] == [3, 4, 3, 3]


def test_frequency_penalty_counts_every_time() -> None:
    logits = np.zeros(V, dtype=np.float32)
    logits[[3, 4]] = [9.0, 7.8]
    sampler = Sampler(options(temperature=0, frequency_penalty=1.0), V, np.array([3]))
    # 9 8 7 against 7.8 6.8: 3, 3, 4, 3
    assert [drawn_by(sampler, logits).token_id for _ in range(4)] == [3, 3, 4, 3]


def test_logit_bias_forces_and_forbids() -> None:
    logits = mx.array(some_logits())
    best = int(np.argmax(some_logits()))
    forced = Sampler(options(temperature=0, logit_bias={7: 100.0}), V, NO_PROMPT)
    assert drawn_by(forced, logits).token_id == 7
    without = Sampler(options(temperature=0, logit_bias={best: -100.0}), V, NO_PROMPT)
    assert drawn_by(without, logits).token_id != best
    with pytest.raises(OptionError, match=f"vocabulary has {V}"):
        Sampler(options(logit_bias={V: 1.0}), V, NO_PROMPT)


def test_logprobs_are_the_models_own_and_sorted() -> None:
    logits = some_logits()
    sampler = Sampler(options(temperature=0.0, logprobs=True, top_logprobs=4), V, NO_PROMPT)
    drawn = drawn_by(sampler, logits)
    expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    order = np.argsort(-logits)[:4]
    assert drawn.top_tokens is not None and drawn.top_logprobs is not None
    assert drawn.logprob is not None
    assert np.array(drawn.top_tokens).tolist() == order.tolist()
    np.testing.assert_allclose(np.array(drawn.top_logprobs), expected[order], atol=1e-5)
    np.testing.assert_allclose(float(np.array(drawn.logprob)), expected[order[0]], atol=1e-5)


def test_each_token_of_a_reply_has_its_logprob(tiny: QwenVL) -> None:
    reply = tiny.generate("Hello", max_tokens=5, temperature=0, top_logprobs=3)
    assert [entry.token_id for entry in reply.logprobs] == list(reply.token_ids)
    for entry in reply.logprobs:
        assert entry.logprob <= 0
        assert entry.top[0][0] == entry.token_id
        assert entry.top[0][1] == pytest.approx(entry.logprob)
        assert len(entry.top) == 3


def test_the_checkpoints_settings_hold_as_a_whole_or_not_at_all() -> None:
    own = checkpoint_sampling({"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001})
    assert own == Sampling(temperature=0.01, top_k=1, top_p=0.001)
    assert read_options({"max_tokens": 5}, own).sampling == own
    assert read_options({"temperature": 0.8}, own).sampling == Sampling(temperature=0.8)
    assert read_options({"temperature": None}, own).sampling == own
    assert checkpoint_sampling({}) == GREEDY
    assert checkpoint_sampling({"do_sample": False, "temperature": 0.7}) == GREEDY


def test_a_named_temperature_is_not_overruled_by_the_checkpoint(tiny: QwenVL) -> None:
    assert tiny.sampling.top_k == 1, "the tiny checkpoint comes with top_k 1, as the hub's do"
    greedy = tiny.generate("Hello", max_tokens=20)
    hot = tiny.generate("Hello", max_tokens=20, temperature=5.0, seed=1)
    assert greedy.token_ids == tiny.generate("Hello", max_tokens=20, temperature=0).token_ids
    assert hot.token_ids != greedy.token_ids


WRONG: list[tuple[CallOptions, str]] = [
    ({"temperature": -1}, "temperature is -1"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": float("inf")}, "temperature is inf"),
    ({"top_p": 1.5}, "top_p is 1.5"),
    ({"min_p": -0.1}, "min_p is -0.1"),
    ({"top_k": -1}, "top_k is -1"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ({"max_tokens": 0}, "max_tokens is 0"),
    ({"max_tokens": True}, "max_tokens is True"),
    ({"top_logprobs": 21}, "top_logprobs is 21"),
    ({"seed": 2**63}, "seed is"),
    ({"stop": ""}, "stop holds ''"),
    ({"stop": ["a", ""]}, "stop holds ''"),
    ({"kv_bits": 3}, "kv_bits is 3"),
    ({"logit_bias": {1: 1e9}}, r"logit_bias\[1\]"),
    ({"prefill_step": 0}, "prefill_step is 0"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[m for _, m in WRONG])
def test_a_value_outside_its_range_is_refused_by_name(given: CallOptions, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        read_options(given, GREEDY)
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_refused_by_name(tiny: QwenVL) -> None:
    with pytest.raises(OptionError, match="unknown option 'temprature'"):
        tiny.generate("Hello", temprature=1)  # type: ignore[call-arg]
