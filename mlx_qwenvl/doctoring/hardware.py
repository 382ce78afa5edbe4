"""The machine, its memory, and what MLX may take of it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator

from mlx_qwenvl import blas
from mlx_qwenvl.doctoring.finding import Finding
from mlx_qwenvl.doctoring.probe import Probe
from mlx_qwenvl.sizes import in_bytes

PATIENCE = 10.0  # seconds for a tool of the system
LEAST_MACOS = 14
WIRED_LIMIT = "iogpu.wired_limit_mb"
MIB = 2**20
LEFT_FREE = 8 * 2**30  # bytes that macOS and its programs should keep when the limit is raised
MLX_ADVICE = "install it anew: pip install --force-reinstall 'mlx>=0.32'"
_PAGE_SIZE = re.compile(r"page size of (\d+) bytes")
_PAGES = re.compile(r"^Pages (free|inactive|speculative):\s+(\d+)", re.MULTILINE)


def system() -> Iterator[Finding]:
    """The operating system and the kind of processor that this Python is for."""
    processor = platform.machine()
    if sys.platform != "darwin":
        yield Finding("system", f"{platform.system()} {platform.release()}, {processor}")
        return
    version = platform.mac_ver()[0]
    told = f"macOS {version}, {processor}"
    if processor != "arm64":
        advice = "install a Python for arm64; this one is for Intel's processors, MLX is not"
        yield Finding("system", told, "broken", advice)
    elif int(version.split(".")[0] or 0) < LEAST_MACOS:
        yield Finding("system", told, "broken", f"MLX needs macOS {LEAST_MACOS} or later")
    else:
        yield Finding("system", told)


def device(probed: Probe | None, fault: str | None) -> Iterator[Finding]:
    """What MLX computes on, and with which steps."""
    if probed is None:
        yield Finding("MLX", f"cannot be used: {fault}", "broken", _mlx_advice())
        return
    yield Finding("machine", probed.machine, data=probed.device)
    if probed.steps is None:
        yield Finding("fused steps", str(probed.steps_fault), "broken", "unset that variable")
    else:
        yield Finding("fused steps", probed.steps)
    if sys.platform == "darwin" and probed.device == "cpu":
        advice = "MLX sees no Metal here: in a virtual machine, or over a bare ssh session?"
        yield Finding("device", "the CPU, on a Mac", "note", advice)


def openblas() -> Iterator[Finding]:
    """What multiplies matrices on a CPU."""
    if not sys.platform.startswith("linux"):
        yield Finding("BLAS", "Accelerate, a part of macOS")
    elif blas.LOADED:
        yield Finding("BLAS", f"OpenBLAS ({blas.LIBRARY})")
    elif os.environ.get(blas.SWITCH) == "off":
        advice = f"unset {blas.SWITCH}: OpenBLAS is some thirty times faster"
        yield Finding("BLAS", f"MLX's own, as {blas.SWITCH} is off", "note", advice)
    else:
        advice = (
            "install OpenBLAS, some thirty times faster: apt install libopenblas0-pthread, or "
            "dnf install openblas"
        )
        yield Finding("BLAS", f"MLX's own; {blas.LIBRARY} cannot be loaded", "note", advice)


def memory(probed: Probe) -> Iterator[Finding]:
    """Memory in all, free memory, and the limits."""
    yield Finding("in all", in_bytes(probed.memory), data=probed.memory)
    free = _available_on_a_mac() if probed.available is None else probed.available
    if free is not None:
        yield Finding("available", in_bytes(free), data=free)
    if probed.limit_fault is not None:
        yield Finding("MLX may hold", probed.limit_fault, "broken", "set it right, or unset it")
    elif probed.limit is None:
        advice = "unset MLX_QWENVL_MEMORY_LIMIT, or what does not fit can take the machine down"
        yield Finding("MLX may hold", "everything; nothing is refused", "note", advice)
    else:
        yield Finding("MLX may hold", in_bytes(probed.limit), data=probed.limit)
    if probed.recommended is not None:
        value = f"{in_bytes(probed.recommended)}, what Metal recommends to hold at most"
        yield Finding("working set", value, data=probed.recommended)
    if sys.platform == "darwin":
        yield from _wired_limit(probed.memory)


def _wired_limit(total: int) -> Iterator[Finding]:
    told = _ask("sysctl", "-n", WIRED_LIMIT)
    if told is None or not told.strip().isdigit():
        return  # of systems before it
    limit = int(told)
    most = max(0, total - LEFT_FREE) // MIB
    how = f"`sudo sysctl {WIRED_LIMIT}={most}` would make it more until the next start"
    if limit:
        yield Finding("wired limit", in_bytes(limit * MIB), data=limit * MIB)
    else:
        value = "the system's own choice" + (f"; {how}" if most * MIB > total * 3 // 4 else "")
        yield Finding("wired limit", value, data=0)


def _available_on_a_mac() -> int | None:
    """Bytes that nobody needs, from what `vm_stat` prints."""
    told = _ask("vm_stat") if sys.platform == "darwin" else None
    size = None if told is None else _PAGE_SIZE.search(told)
    if told is None or size is None:
        return None
    return sum(int(pages) for _, pages in _PAGES.findall(told)) * int(size[1])


def _mlx_advice() -> str:
    """Linux's wheel comes in two parts, of which one is easily left out."""
    return MLX_ADVICE.replace("mlx>", "mlx[cpu]>") if sys.platform == "linux" else MLX_ADVICE


def _ask(*command: str) -> str | None:
    """What a tool of the system prints, or None."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout if ran.returncode == 0 else None
