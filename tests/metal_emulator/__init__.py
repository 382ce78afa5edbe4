"""Runs the kernels of ``mx.fast.metal_kernel`` on a CPU, and refuses the wrong ones.

The way of a kernel: ``text`` (what MLX makes of it) -> ``lint`` -> ``rewrite`` -> ``compile``
(with ``msl/`` for <metal_stdlib>, then ``ast_checks``) -> ``run`` (with ``runtime/``, in a child
of ``worker``) -> outputs or a ``MetalError``. README.md has the rest.
"""

from .dtypes import BFLOAT16, from_bfloat16, to_bfloat16
from .errors import Kind, MetalError
from .mlx_adapter import metal_kernel
from .options import Launch, Options, Stats, emulator_options, record_launches
from .run import Result, run_kernel
from .toolchain import unavailable

__all__ = [
    "BFLOAT16",
    "Kind",
    "Launch",
    "MetalError",
    "Options",
    "Result",
    "Stats",
    "emulator_options",
    "from_bfloat16",
    "metal_kernel",
    "record_launches",
    "run_kernel",
    "to_bfloat16",
    "unavailable",
]
