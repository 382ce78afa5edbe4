"""The same frames at another pace: another place in time where seconds count, none elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlx_qwenvl import QwenVL
from mlx_qwenvl.engine.stores import Stores
from tests.golden.tiny import picture

FRAMES = [[picture(seed, 56, 84) for seed in range(6)]]


def ask(vlm: QwenVL, fps: float) -> tuple[tuple[int, ...], int]:
    """The answer's tokens and the cached ones, about frames that are that many a second."""
    reply = vlm.generate("What happens?", videos=FRAMES, fps=fps, temperature=0, max_tokens=8)
    return reply.token_ids, reply.usage.cached_tokens


def test_keys_are_not_reused_where_positions_follow_seconds(
    younger: Callable[..., QwenVL], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = younger("qwen2_5_vl")
    monkeypatch.setattr(vlm, "stores", Stores.of(vlm.model))
    slow, _ = ask(vlm, 1)
    assert ask(vlm, 1)[1] > 3 * 6  # all frames again
    quick, cached = ask(vlm, 8)
    built = vlm.stores.prefixes._kept[-1].slots[0]
    assert cached <= built.start
    monkeypatch.setattr(vlm, "stores", Stores.of(vlm.model))
    assert ask(vlm, 8)[0] == quick and quick != slow


def test_keys_are_reused_where_positions_count_frames(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "stores", Stores.of(tiny.model))
    slow, _ = ask(tiny, 1)
    assert ask(tiny, 8) == (slow, ask(tiny, 1)[1])
