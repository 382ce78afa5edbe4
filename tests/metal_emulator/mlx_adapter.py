"""Stands in for ``mx.fast.metal_kernel``, so that the code that launches kernels runs unchanged.

    monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)

Kernels run when they are called, not when their outputs are evaluated: inside ``mx.compile`` or
another transformation there are no values yet, and MLX says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import mlx.core as mx
import numpy as np

from .dtypes import BFLOAT16, Array, TemplateValue
from .options import current_options
from .run import Dispatch, run
from .text import KernelSource

Input: TypeAlias = "mx.array | bool | int | float"

_NUMPY_DTYPES: dict[mx.Dtype, np.dtype[np.generic]] = {
    mx.bool_: np.dtype(np.bool_),
    mx.uint8: np.dtype(np.uint8),
    mx.uint16: np.dtype(np.uint16),
    mx.uint32: np.dtype(np.uint32),
    mx.uint64: np.dtype(np.uint64),
    mx.int8: np.dtype(np.int8),
    mx.int16: np.dtype(np.int16),
    mx.int32: np.dtype(np.int32),
    mx.int64: np.dtype(np.int64),
    mx.float16: np.dtype(np.float16),
    mx.float32: np.dtype(np.float32),
    mx.complex64: np.dtype(np.complex64),
    mx.bfloat16: BFLOAT16,
}
_MATH_MODES = ("safe", "relaxed", "fast")


@dataclass(frozen=True)
class EmulatedKernel:
    """What ``mx.fast.metal_kernel`` returns."""

    kernel: KernelSource

    def __call__(
        self,
        *,
        inputs: Sequence[Input],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Sequence[tuple[str, bool | int | mx.Dtype]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: mx.Stream | mx.Device | None = None,
    ) -> list[mx.array]:
        """Run the kernel; the arguments are MLX's, and so are the complaints about them."""
        names = self.kernel.input_names, self.kernel.output_names, self.kernel.output_names
        lists = {"inputs": inputs, "output_shapes": output_shapes, "output_dtypes": output_dtypes}
        for expected, (what, given) in zip(names, lists.items(), strict=True):
            if len(given) != len(expected):
                raise ValueError(
                    f"[metal_kernel] Expected `{what}` to have size {len(expected)} "
                    f"but got size {len(given)}."
                )
        for what, sizes in (("grid", grid), ("threadgroup", threadgroup)):
            if len(sizes) != 3:
                raise TypeError(f"[metal_kernel] `{what}` is three numbers, not {sizes}")
        result = run(
            self.kernel,
            [to_numpy(array) for array in inputs],
            [(name, _template_value(value)) for name, value in template or ()],
            Dispatch(
                grid,
                threadgroup,
                tuple(tuple(shape) for shape in output_shapes),
                tuple(_numpy_dtype(dtype) for dtype in output_dtypes),
                init_value,
            ),
            current_options(),
        )
        if verbose:
            print(f"Generated source code for `{self.kernel.name}`:\n```\n{result.text}\n```")
        return [to_mlx(array) for array in result.outputs]


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: Mapping[str, str] | None = None,
) -> EmulatedKernel:
    """Make a kernel that runs in emulation; the arguments are those of MLX.

    Every `math_mode` computes alike here: what "fast" and "relaxed" allow Apple's compiler is
    not emulated.
    """
    if not output_names:
        raise ValueError("[metal_kernel] Must specify at least one output.")
    for option, value in (compile_options or {}).items():
        if option != "math_mode":
            raise ValueError(f"[metal_kernel] Unknown compile option `{option}`.")
        if value not in _MATH_MODES:
            raise ValueError(
                "[metal_kernel] Expected math_mode to be 'safe', 'relaxed', or 'fast'."
            )
    return EmulatedKernel(
        KernelSource(
            name,
            tuple(input_names),
            tuple(output_names),
            source,
            header,
            ensure_row_contiguous,
            atomic_outputs,
        )
    )


def to_numpy(array: Input) -> Array:
    """MLX -> NumPy with the strides that the array has; bfloat16 becomes BFLOAT16."""
    array = array if isinstance(array, mx.array) else mx.array(array)
    if array.dtype == mx.bfloat16:
        return np.asarray(mx.view(array, mx.uint16)).view(BFLOAT16)
    return np.asarray(array)


def to_mlx(array: Array) -> mx.array:
    """NumPy -> MLX, BFLOAT16 included."""
    if array.dtype == BFLOAT16:
        return mx.view(mx.array(array.view(np.uint16)), mx.bfloat16)
    return mx.array(array)


def _numpy_dtype(dtype: mx.Dtype) -> np.dtype[np.generic]:
    if dtype not in _NUMPY_DTYPES:
        raise ValueError(f"[metal_kernel] Metal has no type for {dtype}")
    return _NUMPY_DTYPES[dtype]


def _template_value(value: bool | int | mx.Dtype) -> TemplateValue:
    if isinstance(value, mx.Dtype):
        return _numpy_dtype(value)
    if isinstance(value, int):
        return value
    raise ValueError(
        "[metal_kernel] Invalid template argument. Must be `mlx.core.Dtype`, `int` or `bool`."
    )
