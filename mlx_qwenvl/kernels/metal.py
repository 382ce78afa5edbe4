"""A Metal kernel: source and names, built when it first runs.

What all sources here keep to:

- MLX declares an input of fewer than 8 elements as `constant` and any other as `device`, so
  inputs are indexed by name and never handed to a pointer of a fixed address space.
- Sines, cosines and roots are `metal::precise`: Metal's plain names may be the fast variants,
  whose error grows with the angle.
- Sums and products are made in float32 and rounded where the twin rounds.
- Neighbouring threads touch neighbouring elements, so that a SIMD-group's load is one piece.
- Shapes that a model fixes are template constants: loops unroll, and no thread divides by a
  number that is known only at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Protocol, cast

import mlx.core as mx

SIMD_WIDTH = 32  # threads that run in step
MOST_THREADS = 1024  # of one threadgroup, on every Apple GPU
GOOD_THREADS = 256  # of one threadgroup where rows are independent: small ones spread over cores

FLOATS = (mx.float32, mx.float16, mx.bfloat16)

Size = tuple[int, int, int]
Template = Sequence[tuple[str, "mx.Dtype | int | bool"]]


class _Launch(Protocol):
    def __call__(
        self,
        *,
        inputs: Sequence[mx.array],
        template: Template,
        grid: Size,
        threadgroup: Size,
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]: ...


@dataclass(frozen=True)
class MetalKernel:
    """A kernel in Metal's language.

    Attributes:
        name: In traces and in the compiled function's name.
        inputs: Names of the input arrays in `source`.
        outputs: Names of the output arrays.
        source: The function's body.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str

    @cached_property
    def _launch(self) -> _Launch:
        built = mx.fast.metal_kernel(
            name=self.name,
            input_names=list(self.inputs),
            output_names=list(self.outputs),
            source=self.source,
        )
        return cast(_Launch, built)

    def __call__(
        self,
        inputs: Sequence[mx.array],
        template: Template,
        grid: Size,
        threadgroup: Size,
        shapes: Sequence[Sequence[int]],
        dtype: mx.Dtype,
    ) -> list[mx.array]:
        """Launch it.

        Args:
            inputs: Arrays.
            template: Constants of this instance by name.
            grid: Threads in all, along x, y and z.
            threadgroup: Threads of one group; at the edges of the grid it is cut.
            shapes: Of the outputs.
            dtype: Of the outputs.
        """
        return self._launch(
            inputs=inputs,
            template=template,
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=shapes,
            output_dtypes=[dtype] * len(shapes),
        )


def threads_for(width: int, rows: int) -> Size:
    """A threadgroup over `width` threads along x and some of `rows` along y, in whole SIMD-groups.

    Args:
        width: Threads along x, all of them in one group; at most `MOST_THREADS`.
        rows: Threads along y.
    """
    step = SIMD_WIDTH // gcd(width, SIMD_WIDTH)  # rows that fill SIMD-groups without a rest
    if width * step > MOST_THREADS:
        step = 1
    fitting = max(GOOD_THREADS // (width * step), 1) * step
    return width, min(fitting, rows), 1


def share(heads: int) -> int:
    """Heads that one thread turns by one angle where there are many tokens: a divisor, at most 8.

    Eight loads in flight hide the memory's latency, and one sine and cosine serves them all.
    """
    return next(count for count in range(8, 0, -1) if heads % count == 0)
