"""Positions against grids worked by hand, rotations against their definition."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl.kernels.rotate_qkv import rotate_qkv_twin
from mlx_qwenvl.models.rope import MRope, prompt_positions, vision_angles
from tests.golden.hand_worked import HAND_WORKED
from tests.golden.tiny import TOKEN_ID

PAD = TOKEN_ID["<|image_pad|>"]


def slots_of(
    ids: tuple[int, ...], grids: tuple[tuple[int, int, int], ...]
) -> list[tuple[int, tuple[int, int, int]]]:
    starts = [i for i, token in enumerate(ids) if token == PAD and ids[i - 1] != PAD]
    return list(zip(starts, grids, strict=True))


@pytest.mark.parametrize("name", HAND_WORKED)
def test_positions_equal_the_hand_worked_grid(name: str) -> None:
    worked = HAND_WORKED[name]
    positions, rope_delta = prompt_positions(
        len(worked.input_ids), slots_of(worked.input_ids, worked.grid_thw), merge_size=2
    )
    assert positions.tolist() == [list(row) for row in worked.position_ids]
    assert rope_delta == worked.rope_delta


def test_text_alone_counts_up_on_all_axes() -> None:
    positions, rope_delta = prompt_positions(5, [], merge_size=2)
    assert positions.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert rope_delta == 0


def rotated_by_definition(x: np.ndarray, positions: np.ndarray, section: list[int]) -> np.ndarray:
    """Rotate pair (i, i + D/2) of x [L, D] by positions[axis of i] * theta^(-2i/D), in float64."""
    length, width = x.shape
    axis = np.repeat([0, 1, 2], section)
    out = np.empty_like(x)
    for i in range(width // 2):
        angle = positions[axis[i]] * 1e6 ** (-2 * i / width)
        a, b = x[:, i], x[:, i + width // 2]
        out[:, i] = a * np.cos(angle) - b * np.sin(angle)
        out[:, i + width // 2] = b * np.cos(angle) + a * np.sin(angle)
    assert length == out.shape[0]
    return out


def rotated(rope: MRope, positions: np.ndarray, x: mx.array) -> mx.array:
    """x [B, L, H, D] as queries at positions."""
    batch, length, heads, width = x.shape
    values = mx.zeros((batch, length, 2 * width))
    qkv = mx.concatenate([x.reshape(batch, length, -1), values], axis=-1)
    return rotate_qkv_twin(qkv, None, rope(positions), heads, 1)[0].transpose(0, 2, 1, 3)


@pytest.mark.parametrize(("width", "section"), [(32, (4, 6, 6)), (128, (16, 24, 24))])
def test_three_axis_rotation_equals_its_definition(
    width: int, section: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, width))
    positions = rng.integers(0, 300, size=(3, 9))
    rope = MRope(width, 1e6, section)
    ours = rotated(rope, positions, mx.array(x[None, :, None].astype(np.float32)))
    expected = rotated_by_definition(x, positions, list(section))
    np.testing.assert_allclose(np.array(ours)[0, :, 0], expected, atol=2e-4)


def test_each_row_of_a_batch_may_have_its_own_positions() -> None:
    rope = MRope(32, 1e6, (4, 6, 6))
    x = mx.random.normal((2, 3, 5, 32), key=mx.random.key(2))
    rows = np.random.default_rng(1).integers(0, 300, size=(3, 2, 3))
    both = rotated(rope, rows, x)
    alone = [rotated(rope, rows[:, row], x[row : row + 1]) for row in range(2)]
    assert float(mx.abs(both - mx.concatenate(alone)).max()) < 1e-6


def test_vision_angles_follow_merge_order() -> None:
    # 4 x 4 patches, squares of 2 x 2: the third patch is the first of its square's second row.
    angles = vision_angles((1, 4, 4), head_dim=8, merge_size=2)
    rows, columns = angles[:, 0], angles[:, 2]  # the first frequency of each half is 1
    assert rows.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    assert columns.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3]
