"""The compiler, from the ``ziglang`` wheel, and the folder that keeps what it made.

``zig clang`` and ``zig ld.lld`` are plain clang and lld: nothing of libc or libc++ is built.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path

CACHE_VARIABLE = "METAL_EMULATOR_CACHE"
KEEP = 30 * 24 * 3600  # seconds without use after which a compiled kernel is deleted

# x86-64-v3, as /proc/cpuinfo names what kernels are compiled for.
_FEATURES = {"avx2", "bmi2", "f16c", "fma"}


@dataclass(frozen=True)
class Toolchain:
    """Commands, each to be followed by its arguments, and what they leave behind."""

    clang: tuple[str, ...]
    clang_for_runtime: tuple[str, ...]
    linker: tuple[str, ...]
    cache: Path
    environment: dict[str, str]


def unavailable() -> str:
    """Why kernels cannot be emulated here, or nothing."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the Metal emulator needs Linux on x86-64"
    if not hasattr(ctypes.CDLL(None), "makecontext"):
        return "the Metal emulator needs glibc"
    if importlib.util.find_spec("ziglang") is None:
        return "the Metal emulator needs its compiler: pip install ziglang"
    missing = _FEATURES - set(Path("/proc/cpuinfo").read_text().split())
    return f"the Metal emulator needs a processor with {', '.join(missing)}" if missing else ""


@functools.cache
def toolchain() -> Toolchain:
    """Find the compiler and make the cache."""
    reason = unavailable()
    spec = importlib.util.find_spec("ziglang")
    if reason or spec is None or spec.origin is None:
        raise RuntimeError(reason)
    zig = str(Path(spec.origin).parent / "zig")
    target = ("-target", "x86_64-linux-gnu")
    cache = _private_folder(_cache_folder())
    return Toolchain(
        clang=(zig, "clang", *target, "-march=x86-64-v3"),
        clang_for_runtime=(zig, "cc", *target, "-mcpu=x86_64_v3", "-fno-sanitize=undefined"),
        linker=(zig, "ld.lld", "-shared"),
        cache=cache,
        environment=dict(
            os.environ,
            ZIG_GLOBAL_CACHE_DIR=str(cache / "zig"),
            ZIG_LOCAL_CACHE_DIR=str(cache / "zig"),
        ),
    )


def _cache_folder() -> Path:
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "metal-emulator"


def _private_folder(folder: Path) -> Path:
    """Make the cache, for this user alone: what lies in it is run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.getuid() or stat.S_IMODE(state.st_mode) & 0o022:
        raise RuntimeError(f"{folder} can be written by others; name another in {CACHE_VARIABLE}")
    for old in folder.glob("kernel-*"):
        if old.stat().st_mtime < time.time() - KEEP:
            old.unlink(missing_ok=True)
    return folder
