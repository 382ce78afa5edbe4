"""Kernels and twins against float64, and against each other."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl.kernels.ops import CPU, METAL, TWINS
from tests.kernels.checks import NORM, QKV, VISION, Norm, Qkv, Vision
from tests.kernels.references import DTYPES, ROUNDING, exact
from tests.metal_emulator import Launch, emulator_options

ALL: list[tuple[str, Any]] = [
    *(("rotate_vision", case) for case in VISION),
    *(("rotate_qkv", case) for case in QKV),
    *(("add_rms_norm", case) for case in NORM),
]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).split(".")[-1])
cases = pytest.mark.parametrize(
    ("name", "case"), ALL, ids=[f"{name}-{number}" for number, (name, _) in enumerate(ALL)]
)


@dtypes
@cases
def test_kernel_is_the_float64_definition_up_to_rounding(
    name: str, case: Any, dtype: mx.Dtype, launches: Counter[str]
) -> None:
    case.check(getattr(METAL, name), dtype)
    assert launches == {name: 1}


@dtypes
@cases
def test_twin_is_the_float64_definition_up_to_rounding(
    name: str, case: Any, dtype: mx.Dtype
) -> None:
    case.check(getattr(TWINS, name), dtype)


@dtypes
@pytest.mark.parametrize(
    "case", [Norm((1,), 192), Norm((1,), 8192), Norm((1,), 35), Norm((3,), 64), Norm((1, 1), 64)]
)
def test_norm_of_few_cpu_ops_is_the_float64_definition_up_to_rounding(
    case: Norm, dtype: mx.Dtype
) -> None:
    case.check(CPU.add_rms_norm, dtype)


@dtypes
@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("rotate_vision", Vision(batch=2, rows=4, columns=6, heads=16, width=80)),
        ("rotate_qkv", Qkv(1, 1, 28, 4, (16, 24, 24))),
        ("rotate_qkv", Qkv(2, 17, 12, 2, (16, 24, 24), farthest=1_000)),
        ("add_rms_norm", Norm((4,), 1536)),
        ("add_rms_norm", Norm((3,), 35)),
    ],
)
def test_kernel_and_twin_agree_to_the_last_places(
    name: str, case: Any, dtype: mx.Dtype, launches: Counter[str]
) -> None:
    inputs = case.inputs(dtype)
    if name == "rotate_vision":
        arguments = inputs[0], mx.cos(inputs[1]), mx.sin(inputs[1])
    elif name == "rotate_qkv":
        arguments = *inputs, case.heads, case.kv_heads
    else:
        arguments = *inputs, case.eps
    for ours, twin in zip(
        getattr(METAL, name)(*arguments), getattr(TWINS, name)(*arguments), strict=True
    ):
        one, other = exact(ours), exact(twin)
        # In 16 bits the last place but one. In float32 the libraries' sines and the order of sums
        # show: some places more.
        places = 2 * ROUNDING[dtype] * np.maximum(np.abs(other), 1)
        assert (np.abs(one - other) <= (16 if dtype == mx.float32 else 2) * places).all()
        if dtype != mx.float32:
            assert (one == other).mean() > 0.99
    assert launches == {name: 1}


@dtypes
def test_values_and_sums_are_the_twins_to_the_bit(dtype: mx.Dtype, launches: Counter[str]) -> None:
    case = Qkv(2, 9, 12, 2, (16, 24, 24))
    arguments = *case.inputs(dtype), case.heads, case.kv_heads
    values = METAL.rotate_qkv(*arguments)[1][1], TWINS.rotate_qkv(*arguments)[1][1]
    rows = Norm((3,), 1536)
    norm_arguments = *rows.inputs(dtype), rows.eps
    sums = METAL.add_rms_norm(*norm_arguments)[0], TWINS.add_rms_norm(*norm_arguments)[0]
    for one, other in (values, sums):
        assert mx.array_equal(one, other)
    assert launches == {"rotate_qkv": 1, "add_rms_norm": 1}


def test_launchers_take_inputs_that_are_views_of_others(launches: Counter[str]) -> None:
    case = Norm((6,), 64)
    x, delta, weight = case.inputs(mx.float32)
    sliced = METAL.add_rms_norm(x[1::2], delta[:3], weight, 1e-6)
    want = TWINS.add_rms_norm(x[1::2], delta[:3], weight, 1e-6)
    for one, other in zip(sliced, want, strict=True):
        assert mx.allclose(one, other, rtol=1e-6, atol=1e-6)
    assert launches == {"add_rms_norm": 1}


def test_what_a_kernel_does_not_support_its_twin_computes(launches: Counter[str]) -> None:
    x, delta, weight = Norm((2,), 64).inputs(mx.float16)
    for arguments in (
        (x, delta, weight.astype(mx.float32), 1e-6),  # mixed dtypes
        (x, delta[:1], weight, 1e-6),  # broadcast
        (x[:0], delta[:0], weight, 1e-6),  # nothing to do
    ):
        got, want = METAL.add_rms_norm(*arguments), TWINS.add_rms_norm(*arguments)
        assert all(mx.array_equal(one, other) for one, other in zip(got, want, strict=True))
    tokens = Qkv(2, 3, 2, 1, (2, 1, 1))
    qkv, bias, rotation = tokens.inputs(mx.float16)
    assert bias is not None
    got = METAL.rotate_qkv(qkv, bias.astype(mx.float32), rotation, 2, 1)
    want = TWINS.rotate_qkv(qkv, bias.astype(mx.float32), rotation, 2, 1)
    assert all(mx.array_equal(one, other) for one, other in zip(got, want, strict=True))
    pictures, angles = Vision(1, 2, 2, 2, 8).inputs(mx.float32)
    half = mx.cos(angles).astype(mx.float16), mx.sin(angles).astype(mx.float16)
    got, want = METAL.rotate_vision(pictures, *half), TWINS.rotate_vision(pictures, *half)
    assert all(mx.array_equal(one, other) for one, other in zip(got, want, strict=True))
    assert not launches


@pytest.mark.parametrize("contract", ["fast", "off"])
@dtypes
@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("rotate_vision", Vision(batch=1, rows=2, columns=3, heads=16, width=80)),
        ("rotate_qkv", Qkv(1, 3, 12, 2, (16, 24, 24))),
        ("add_rms_norm", Norm((3,), 1536)),
    ],
)
def test_kernel_takes_inputs_that_begin_anywhere_fused_or_not(
    name: str, case: Any, dtype: mx.Dtype, contract: Any, emulated: list[Launch]
) -> None:
    with emulator_options(misalign=1, contract=contract):
        case.check(getattr(METAL, name), dtype)
    assert [launch.name for launch in emulated] == [name]
