"""Ranks that are threads of one process: the arithmetic of several without their sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import mlx.core as mx
import numpy as np

from mlx_qwenvl.models.share import Share

T = TypeVar("T")
PATIENCE_S = 30.0  # that a rank waits for the others, in seconds


def in_threads(size: int, work: Callable[[Share], T]) -> list[T]:
    """What each of `size` ranks makes, in their order.

    Args:
        size: How many ranks there are.
        work: Called once a rank, with its share.
    """
    held: list[np.ndarray | None] = [None] * size
    barrier = threading.Barrier(size, timeout=PATIENCE_S)

    def run(rank: int) -> T:
        def total(array: mx.array) -> mx.array:
            held[rank] = np.array(array)
            barrier.wait()
            parts = [part for part in held if part is not None]
            barrier.wait()
            return mx.array(sum(parts[1:], start=parts[0]))

        try:
            return work(Share(rank, size, total))
        except BaseException:
            barrier.abort()
            raise
        finally:
            mx.clear_streams()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
