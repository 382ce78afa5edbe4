"""What the kept suites of right and wrong kernels are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .dtypes import Array, TemplateValue
from .run import Result, run_kernel

SHAPE = (4, 256)
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16)

# The thread's element, and its index in the threadgroup.
I = "uint i = thread_position_in_grid.x; "  # noqa: E741
L = "uint l = thread_index_in_threadgroup; "


@dataclass(frozen=True)
class Case:
    """A kernel, with a launch of one thread an element in threadgroups of 64."""

    source: str
    header: str = ""
    x: Array | None = None  # X
    n: Array | None = None  # a second input
    grid: tuple[int, int, int] = (X.size, 1, 1)
    threadgroup: tuple[int, int, int] = (64, 1, 1)
    dtype: npt.DTypeLike = np.float16  # of the output, which is as large as X
    template: Sequence[tuple[str, TemplateValue]] = (("T", np.float16),)
    atomic_outputs: bool = False
    init_value: float | None = None
    misalign: int = 0
    timeout: float | None = None

    def run(self) -> Result:
        """Run it in every order."""
        more = [] if self.n is None else [self.n]
        return run_kernel(
            "case",
            ["x", "n"][: 1 + len(more)],
            ["out"],
            self.source,
            self.header,
            inputs=[X if self.x is None else self.x, *more],
            template=self.template,
            grid=self.grid,
            threadgroup=self.threadgroup,
            output_shapes=[SHAPE],
            output_dtypes=[self.dtype],
            atomic_outputs=self.atomic_outputs,
            init_value=self.init_value,
            misalign=self.misalign,
            timeout=self.timeout,
        )


def reversing(between: str) -> str:
    """Each threadgroup writes its values to shared memory and reads them from the other end."""
    return f"threadgroup float s[64]; {I}{L}s[l] = float(x[i]); {between} out[i] = T(s[63 - l]);"


def exchanging(flag: str) -> str:
    """The same through device memory."""
    barrier = f"threadgroup_barrier(mem_flags::{flag});"
    return f"{I}{L}out[i] = x[i]; {barrier} T v = out[i - l + 63 - l]; {barrier} out[i] = v;"


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
