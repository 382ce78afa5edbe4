"""What MLX says of this machine, asked in a process of its own (`ask_mlx.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_qwenvl.doctoring.isolate import hear
from mlx_qwenvl.errors import QwenVLError

PATIENCE = 90.0  # seconds; a Mac may take a while to list its displays, the first time


@dataclass(frozen=True)
class Probe:
    """This machine as MLX sees it.

    Attributes:
        machine: In one line, as `bench --submit` has it.
        device: What MLX computes on: "gpu" or "cpu".
        memory: Bytes of memory in all.
        available: Bytes of it that nobody needs now; None where the system does not say.
        recommended: Bytes that Metal recommends to hold at most; None without Metal.
        limit: Bytes that this package lets MLX hold, or None for no limit.
        limit_fault: Why that cannot be told.
        steps: Which fused steps compute, in words.
        steps_fault: Why that cannot be told.
    """

    machine: str
    device: str
    memory: int
    available: int | None
    recommended: int | None
    limit: int | None
    limit_fault: str | None
    steps: str | None
    steps_fault: str | None


def probe() -> Probe:
    """Ask MLX, in a process of its own.

    Raises:
        QwenVLError: It cannot be imported, or cannot compute.
    """
    heard = hear("mlx_qwenvl.doctoring.ask_mlx", PATIENCE)
    if heard.fault is not None or not heard.told:
        raise QwenVLError(heard.fault or "nothing was said")
    return Probe(**heard.told[0])
