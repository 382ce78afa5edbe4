"""Compile and run the sources of ``mx.fast.metal_kernel`` on a CPU, with checks."""

from .emulator import MetalError, run_kernel
from .mlx_adapter import CALLS, OPTIONS, metal_kernel

__all__ = ["CALLS", "OPTIONS", "MetalError", "metal_kernel", "run_kernel"]
