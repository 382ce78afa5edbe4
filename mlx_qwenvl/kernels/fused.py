"""Chains of small ops that are one launch on a GPU.

On the CPU they run uncompiled: there `mx.compile` starts a C++ compiler, which costs seconds at
the first call and pays back nothing that a matmul does not hide.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx


def fused_on_gpu(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """The function of arrays, compiled for all shapes where the default device is a GPU."""
    compiled = mx.compile(function, shapeless=True)

    def run(*arrays: mx.array) -> mx.array:
        return (compiled if mx.default_device() == mx.gpu else function)(*arrays)

    run.__doc__ = function.__doc__
    return run
