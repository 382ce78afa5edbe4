"""A process of its own that asks MLX about this machine and prints one object."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

import mlx.core as mx

from mlx_qwenvl.benching.machine import this_machine
from mlx_qwenvl.benching.table import describe
from mlx_qwenvl.doctoring.probe import Probe
from mlx_qwenvl.engine.fit import available_memory, memory_limit
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.kernels.ops import choose_ops
from mlx_qwenvl.weights.memory import memory_here

T = TypeVar("T")


def look_here() -> Probe:
    """This machine, seen from this process."""
    mx.eval(mx.ones((2, 2)) @ mx.ones((2, 2)))  # whether it computes at all
    memory = int(mx.device_info().get("memory_size") or memory_here())
    recommended = mx.device_info().get("max_recommended_working_set_size")
    machine = this_machine(memory)
    limit, limit_fault = _said(memory_limit)
    ops, steps_fault = _said(choose_ops)
    return Probe(
        machine=describe(machine),
        device=machine.device,
        memory=memory,
        available=available_memory(),
        recommended=int(recommended) if recommended else None,
        limit=limit,
        limit_fault=limit_fault,
        steps=None if ops is None else ops.name,
        steps_fault=steps_fault,
    )


def _said(ask: Callable[[], T]) -> tuple[T | None, str | None]:
    """What is said, or why nothing is."""
    try:
        return ask(), None
    except OptionError as error:
        return None, str(error)


if __name__ == "__main__":
    print(json.dumps(asdict(look_here())))
    sys.exit(0)
