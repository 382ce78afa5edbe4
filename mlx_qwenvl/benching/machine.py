"""The machine that figures come from: chip, system, versions, bandwidth of its memory."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwenvl.weights.memory import CHIPS

PATIENCE = 20.0  # seconds to wait for macOS to list its displays
_CORES = re.compile(r"Total Number of Cores:\s*(\d+)")


@dataclass(frozen=True)
class Machine:
    """Where figures come from.

    Attributes:
        chip: Its name, such as "Apple M4 Max".
        gpu_cores: Cores of an Apple GPU, or None.
        device: What MLX computes on: "gpu" or "cpu".
        system: Operating system and version.
        memory: Bytes of memory.
        versions: Of Python, MLX and this package.
    """

    chip: str
    gpu_cores: int | None
    device: str
    system: str
    memory: int
    versions: dict[str, str]

    @property
    def bandwidth(self) -> float | None:
        """Of memory in GB/s as Apple states it; None for chips that are not known."""
        return chip_bandwidth(self.chip, self.gpu_cores)


def this_machine(memory: int) -> Machine:
    """Look at this machine, whose memory is known."""
    is_mac = sys.platform == "darwin"
    version = platform.mac_ver()[0] if is_mac else platform.release()
    return Machine(
        chip=str(mx.device_info().get("device_name") or platform.processor() or "unknown"),
        gpu_cores=_gpu_cores() if is_mac else None,
        device="cpu" if mx.default_device() == mx.cpu else "gpu",
        system=f"{'macOS' if is_mac else platform.system()} {version}",
        memory=memory,
        versions={
            "python": platform.python_version(),
            "mlx": importlib.metadata.version("mlx"),
            "mlx-qwenvl": own_version(),
        },
    )


def own_version() -> str:
    """Version of this package."""
    from mlx_qwenvl import __version__

    return __version__


def chip_bandwidth(chip: str, gpu_cores: int | None) -> float | None:
    """Bandwidth of a chip's memory in GB/s, or None.

    Where cores tell two kinds apart and are not known, that of the larger.
    """
    name = chip.removeprefix("Apple ").strip()
    if name in CHIPS:
        return CHIPS[name]
    kinds = {known: value for known, value in CHIPS.items() if known.startswith(f"{name} (")}
    exact = [value for known, value in kinds.items() if f"({gpu_cores}-core" in known]
    return max(exact or kinds.values(), default=None)


def _gpu_cores() -> int | None:
    try:
        told = subprocess.run(
            ["system_profiler", "SPDisplaysDataType"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _CORES.search(told)
    return int(found[1]) if found else None
