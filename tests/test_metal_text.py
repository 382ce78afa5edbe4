"""The text that the emulator compiles, and its complaints, are those of MLX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.metal_emulator import metal_kernel
from tests.metal_emulator.dtypes import TemplateValue
from tests.metal_emulator.mlx_adapter import _numpy_dtype, to_numpy
from tests.metal_emulator.text import KernelSource, kernel_text, signature

REAL: Callable[..., Any] = mx.fast.metal_kernel
OURS: Callable[..., Any] = metal_kernel
F16, BF16, F32, I32 = mx.float16, mx.bfloat16, mx.float32, mx.int32
Template = list[tuple[str, Any]]

POSITION = "o[thread_position_in_grid.x] = x[thread_position_in_grid.x];"
# source, inputs, template, dtypes of the outputs
TEXTS: dict[str, tuple[str, list[mx.array], Template, list[mx.Dtype]]] = {
    "templates of every sort": (
        POSITION, [mx.zeros((3, 4), BF16)], [("T", BF16), ("D", 128), ("B", True), ("C", False)],
        [BF16],
    ),
    "no template": (POSITION, [mx.zeros((3, 4), F16)], [], [F16]),
    "scalar, seven and eight elements": (
        POSITION, [mx.array(1.0), mx.zeros(7, I32), mx.zeros(8, I32)], [("T", F32)], [F32],
    ),
    "shapes where the source has their names": (
        "o[thread_position_in_grid.x] = x_shape[0] + x_strides[1] + x_ndim + y_shape[0];",
        [mx.zeros((9, 3), mx.uint8), mx.zeros((), mx.uint32)], [], [mx.uint8],
    ),
    "shapes in comments and in longer names": (
        "// y_strides\nint xx_shape = 1; o[thread_position_in_grid.x] = xx_shape;",
        [mx.zeros((9, 3), mx.int64), mx.zeros(2, mx.uint64)], [], [F32],
    ),
    "many attributes": (
        "o[0] = simdgroups_per_threadgroup + thread_index_in_simdgroup + threads_per_grid.x "
        "+ threads_per_threadgroup.x + dispatch_threads_per_threadgroup.x;",
        [mx.zeros(9, mx.bool_)], [], [mx.bool_],
    ),
    "two outputs": (POSITION, [mx.zeros(9, mx.int8)], [("T", mx.int16)], [F16, mx.complex64]),
    "no attribute": ("o[0] = x[0];", [mx.zeros(9)], [], [F32]),
    "no attribute, but shapes": ("o[0] = x_shape[0];", [mx.zeros(9)], [], [F32]),
    "no attribute, shapes and two outputs": ("o[0] = x_shape[0];", [mx.zeros(9)], [], [F32, F32]),
    "no input": ("o[thread_position_in_grid.x] = 1;", [], [], [F32]),
}  # fmt: skip


def mlx_text(
    kernel: KernelSource, inputs: list[mx.array], template: Template, dtypes: list[mx.Dtype]
) -> str:
    """What MLX itself makes, which it hands out while a graph is exported, without Metal too."""
    found: list[str] = []

    def note(primitive: dict[str, Any]) -> None:
        found.extend(
            text
            for text in primitive.get("arguments", ())
            if isinstance(text, str) and "[[kernel]]" in text
        )

    def call(*arrays: mx.array) -> Any:
        made = REAL(
            name=kernel.name,
            input_names=list(kernel.input_names),
            output_names=list(kernel.output_names),
            source=kernel.source,
            header=kernel.header,
            atomic_outputs=kernel.atomic_outputs,
        )
        return made(
            inputs=list(arrays),
            template=template or None,
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(4,)] * len(dtypes),
            output_dtypes=dtypes,
        )

    mx.export_function(note, call, *inputs)
    assert len(found) == 1
    return str(found[0])


def our_text(
    kernel: KernelSource, inputs: list[mx.array], template: Template, dtypes: list[mx.Dtype]
) -> str:
    ours: list[tuple[str, TemplateValue]] = [
        (name, _numpy_dtype(value) if isinstance(value, mx.Dtype) else value)
        for name, value in template
    ]
    arrays = [to_numpy(array) for array in inputs]
    return kernel_text(kernel, signature(kernel, arrays, ours, [_numpy_dtype(d) for d in dtypes]))


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_the_one_that_mlx_makes(name: str, atomic: bool) -> None:
    source, inputs, template, dtypes = TEXTS[name]
    kernel = KernelSource(
        "made", ("x", "y", "z")[: len(inputs)], ("o", "p")[: len(dtypes)], source,
        "// x_shape stands here\n", atomic_outputs=atomic,
    )  # fmt: skip
    assert our_text(kernel, inputs, template, dtypes) == mlx_text(kernel, inputs, template, dtypes)


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises((ValueError, TypeError)) as refused:
        act()
    return f"{refused.type.__name__}: {str(refused.value).strip()}"


@pytest.mark.parametrize(
    "made",
    [
        {"output_names": []},
        {"compile_options": {"math_mode": "quick"}},
        {"compile_options": {"mode": "fast"}},
    ],
)
def test_a_kernel_is_refused_as_mlx_refuses_it(made: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "name": "k",
        "input_names": ["x"],
        "output_names": ["o"],
        "source": POSITION,
    }
    arguments |= made
    assert complaint(lambda: OURS(**arguments)) == complaint(lambda: REAL(**arguments))


@pytest.mark.parametrize(
    "changed",
    [
        {"inputs": []},
        {"inputs": [mx.zeros(3), mx.zeros(3)]},
        {"output_shapes": []},
        {"output_dtypes": [F32, F32]},
        {"template": [("T", 1.5)]},
        {"template": [("T", "float")]},
    ],
    ids=str,
)
def test_a_call_is_refused_as_mlx_refuses_it(changed: dict[str, Any]) -> None:
    def call(kernel: Callable[..., object]) -> Callable[[mx.array], object]:
        arguments: dict[str, Any] = {
            "inputs": [mx.zeros(9)],
            "output_shapes": [(9,)],
            "output_dtypes": [F32],
            "grid": (9, 1, 1),
            "threadgroup": (9, 1, 1),
        }
        arguments |= changed
        return lambda _: kernel(**arguments)

    names = ("k", ["x"], ["o"], POSITION)
    ours = complaint(lambda: call(OURS(*names))(mx.zeros(9)))
    theirs = complaint(lambda: mx.export_function(lambda _: None, call(REAL(*names)), mx.zeros(9)))
    assert ours == theirs


def test_the_emulator_knows_no_name_of_this_project() -> None:
    folder = Path(__file__).parent / "metal_emulator"
    for path in folder.rglob("*.*"):
        if path.suffix in (".py", ".h", ".cpp", ".md"):
            assert "qwen" not in path.read_text().lower(), path.name


def test_numpy_keeps_the_strides_of_mlx() -> None:
    x = mx.arange(24).reshape(4, 6).astype(mx.float32)
    assert to_numpy(x.T).strides == np.asarray(x).T.strides
