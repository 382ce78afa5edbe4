"""What ran in emulation is, letter by letter, what MLX hands to Metal."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwenvl.kernels import add_rms_norm, rotate_qkv, rotate_vision, sample
from mlx_qwenvl.kernels.ops import METAL
from mlx_qwenvl.kernels.rotate_qkv import Rotation
from mlx_qwenvl.kernels.sample import Filters
from tests.kernels.checks import NORM, QKV, VISION, Norm, Qkv, Vision
from tests.kernels.draws import DRAWS, Draws
from tests.kernels.references import DTYPES
from tests.metal_emulator import metal_kernel, unavailable

ROTATIONS_AND_NORM: list[tuple[ModuleType, Any]] = [
    *((rotate_vision, case) for case in VISION),
    *((rotate_qkv, case) for case in QKV),
    *((add_rms_norm, case) for case in NORM),
]
CASES = [
    *((*case, dtype) for dtype in DTYPES for case in ROTATIONS_AND_NORM),
    *((sample, case, mx.float32) for case in (DRAWS[0], *DRAWS[-2:])),
]


def launch(case: Vision | Qkv | Norm | Draws, *arrays: mx.array) -> tuple[mx.array, ...]:
    """Launch a case's kernel on arrays that stand for its own."""
    if isinstance(case, Draws):
        p, chance, top_k, beyond, min_p = arrays
        return (METAL.sample(p, chance, Filters(top_k, beyond, min_p, True, True, True)),)
    if isinstance(case, Vision):
        return METAL.rotate_vision(*arrays)
    if isinstance(case, Norm):
        x, delta, weight = arrays
        return METAL.add_rms_norm(x, delta, weight, case.eps)
    *given, positions, inverse = arrays
    rotation = Rotation(positions, inverse, case.section, case.interleaved)
    bias = given[1] if case.biased else None
    return METAL.rotate_qkv(given[0], bias, rotation, case.heads, case.kv_heads)


def arrays_of(case: Vision | Qkv | Norm | Draws, dtype: mx.Dtype) -> list[mx.array]:
    if isinstance(case, Draws):
        p, chance, filters = case.inputs(dtype)
        return [p, chance, filters.top_k, filters.beyond, filters.min_p]
    if isinstance(case, Vision):
        qkv, angles = case.inputs(dtype)
        return [qkv, mx.cos(angles), mx.sin(angles)]
    if isinstance(case, Norm):
        return list(case.inputs(dtype))
    qkv, bias, rotation = case.inputs(dtype)
    given = [qkv] if bias is None else [qkv, bias]
    return [*given, rotation.positions, rotation.inverse]


@pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "available")
@pytest.mark.skipif(mx.metal.is_available(), reason="a trace with Metal reports another text")
@pytest.mark.parametrize(("module", "case", "dtype"), CASES)
def test_mlx_makes_the_text_that_the_emulator_ran(
    module: ModuleType,
    case: Any,
    dtype: mx.Dtype,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays = arrays_of(case, dtype)
    theirs: list[str] = []

    def note(primitive: dict[str, Any]) -> None:
        for argument in primitive.get("arguments", ()):
            if isinstance(argument, str) and "[[kernel]]" in argument:
                theirs.append(argument)

    monkeypatch.setattr(module, "KERNEL", replace(module.KERNEL))
    mx.export_function(note, lambda *given: launch(case, *given), *arrays)
    assert len(theirs) == 1

    def talkative(**given: Any) -> Any:
        emulated = metal_kernel(**given)
        return lambda **call: emulated(**call, verbose=True)

    monkeypatch.setattr(mx.fast, "metal_kernel", talkative)
    monkeypatch.setattr(module, "KERNEL", replace(module.KERNEL))
    launch(case, *arrays)
    ours = capsys.readouterr().out
    assert f"```\n{theirs[0]}\n```" in ours
