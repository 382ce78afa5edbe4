"""A kernel and its arrays -> its outputs, or a MetalError."""

from __future__ import annotations

import math
import struct
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .compile import Contract, compile_kernel
from .dtypes import Array, TemplateValue, dtype_name, filled
from .errors import MetalError
from .lint import lint_launch, lint_source
from .options import Launch, Options, Order, Stats, add_launch, changed, current_options
from .process import run_job
from .rewrite import clang_text
from .text import KernelSource, Parameter, kernel_text, signature

_INPUT, _OUTPUT, _INITIALISED = 0, 1, 2  # runtime.h: RegionKind


@dataclass(frozen=True)
class Dispatch:
    """How a kernel is launched and what comes out of it."""

    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    output_shapes: tuple[tuple[int, ...], ...]
    output_dtypes: tuple[npt.DTypeLike, ...]
    init_value: float | None = None


@dataclass(frozen=True)
class Result:
    """What a kernel wrote, and what is known about it."""

    outputs: list[Array]
    stats: Stats
    warnings: tuple[str, ...]  # clang's, such as implicit conversions
    text: str  # what MLX would have handed to Metal


def run_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    *,
    inputs: Sequence[npt.ArrayLike],
    template: Sequence[tuple[str, TemplateValue]] = (),
    grid: Sequence[int],
    threadgroup: Sequence[int],
    output_shapes: Sequence[Sequence[int]],
    output_dtypes: Sequence[npt.DTypeLike],
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    init_value: float | None = None,
    orders: tuple[Order, ...] | None = None,
    contract: Contract | None = None,
    misalign: int | None = None,
    timeout: float | None = None,
    allow_unwritten: bool | None = None,
) -> Result:
    """Run a kernel on NumPy arrays: ``metal_kernel`` and its call in one.

    The last five stand for the options in force (``Options``) where they are given.
    """
    options = changed(current_options(), orders, contract, misalign, timeout, allow_unwritten)
    kernel = KernelSource(
        name,
        tuple(input_names),
        tuple(output_names),
        source,
        header,
        ensure_row_contiguous,
        atomic_outputs,
    )
    dispatch = Dispatch(
        (grid[0], grid[1], grid[2]),
        (threadgroup[0], threadgroup[1], threadgroup[2]),
        tuple(tuple(shape) for shape in output_shapes),
        tuple(output_dtypes),
        init_value,
    )
    return run(kernel, [np.asarray(array) for array in inputs], tuple(template), dispatch, options)


def run(
    kernel: KernelSource,
    inputs: Sequence[Array],
    template: Sequence[tuple[str, TemplateValue]],
    dispatch: Dispatch,
    options: Options,
) -> Result:
    """Check, compile and run a kernel, in every order of its threads."""
    lint_launch(dispatch.grid, dispatch.threadgroup)
    declared = signature(kernel, inputs, template, dispatch.output_dtypes)
    lint_source(kernel, declared, template)
    compiled = compile_kernel(clang_text(kernel, declared), options.contract)
    job = struct.pack("<7I", *dispatch.grid, *dispatch.threadgroup, len(declared.parameters))
    for parameter in declared.parameters:
        job += _buffer(kernel, parameter, inputs, dispatch, options)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="metal-emulator-") as folder:
        path = Path(folder, "job")
        path.write_bytes(job)
        reports = run_job(compiled.library, path, options)
    seconds = time.perf_counter() - start
    results = [_outputs(report.output, dispatch) for report in reports]
    if not kernel.atomic_outputs:
        _refuse_differences(kernel, results)
    stats = Stats(**reports[-1].counts, compile_seconds=compiled.seconds, run_seconds=seconds)
    add_launch(_launch(kernel, inputs, dispatch, stats))
    return Result(results[0], stats, compiled.warnings, kernel_text(kernel, declared))


def _buffer(
    kernel: KernelSource,
    parameter: Parameter,
    inputs: Sequence[Array],
    dispatch: Dispatch,
    options: Options,
) -> bytes:
    """One buffer of the job, as dispatch.cpp reads it."""
    if parameter.role == "output":
        shape = dispatch.output_shapes[parameter.index]
        dtype = dispatch.output_dtypes[parameter.index]
        if dispatch.init_value is None:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            return _head(parameter.name, size, 0, _OUTPUT, 0)
        data = filled(shape, dtype, dispatch.init_value).tobytes()
        return _head(parameter.name, len(data), 0, _INITIALISED, 0) + data
    array = inputs[parameter.index]
    start = misalign = 0
    if parameter.role == "input":
        data, start = _memory(array, kernel.ensure_row_contiguous)
        misalign = options.misalign * array.itemsize if array.ndim else 0
    elif parameter.role == "shape":
        data = np.array(array.shape, np.int32).tobytes()
    elif parameter.role == "ndim":
        data = np.int32(array.ndim).tobytes()
    else:
        strided = np.ascontiguousarray(array) if kernel.ensure_row_contiguous else array
        data = (np.array(strided.strides, np.int64) // array.itemsize).tobytes()
    return _head(parameter.name, len(data), start, _INPUT, misalign) + data


def _head(name: str, size: int, start: int, kind: int, misalign: int) -> bytes:
    return struct.pack("<64sQQII", name.encode()[:63], size, start, kind, misalign)


def _memory(array: Array, contiguous: bool) -> tuple[bytes, int]:
    """An array's bytes, with where its first element lies.

    Without a copy it is all memory from its lowest element to its highest, gaps included: what
    lies outside may belong to nobody, and a kernel must not reach it.
    """
    if contiguous or array.size == 0:
        return array.tobytes(), 0
    lowest = array[tuple(slice(-1, None) if s < 0 else slice(1) for s in array.strides)]
    reach = [(n - 1) * abs(s) for n, s in zip(array.shape, array.strides, strict=True)]
    start = sum(r for r, s in zip(reach, array.strides, strict=True) if s < 0)
    count = sum(reach) // array.itemsize + 1
    span = np.lib.stride_tricks.as_strided(lowest, (count,), (array.itemsize,), writeable=False)
    return span.tobytes(), start


def _outputs(raw: bytes, dispatch: Dispatch) -> list[Array]:
    outputs, position = [], 0
    for shape, dtype in zip(dispatch.output_shapes, dispatch.output_dtypes, strict=True):
        flat = np.frombuffer(raw, dtype, math.prod(shape), position)
        position += flat.nbytes
        outputs.append(flat.reshape(shape).copy())
    return outputs


def _refuse_differences(kernel: KernelSource, results: Sequence[Sequence[Array]]) -> None:
    for other in results[1:]:
        for name, first, second in zip(kernel.output_names, results[0], other, strict=True):
            if first.tobytes() != second.tobytes():
                raise MetalError(
                    "schedule-dependent", f"output '{name}' depends on the order of the threads"
                )


def _launch(
    kernel: KernelSource, inputs: Sequence[Array], dispatch: Dispatch, stats: Stats
) -> Launch:
    outputs = zip(dispatch.output_dtypes, dispatch.output_shapes, strict=True)
    copied = [
        name
        for name, array in zip(kernel.input_names, inputs, strict=True)
        if kernel.ensure_row_contiguous and not array.flags.c_contiguous
    ]
    return Launch(
        kernel.name,
        dispatch.grid,
        dispatch.threadgroup,
        tuple((dtype_name(array.dtype), array.shape) for array in inputs),
        tuple((dtype_name(dtype), shape) for dtype, shape in outputs),
        tuple(copied),
        stats,
    )
