"""Whether PyAV is here to decode videos, and of which version."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from mlx_qwenvl.errors import MediaError

__all__ = ["EXPECTED", "INSTALL", "Found", "find_pyav", "pyav"]

OLDEST = (17, 1)  # PyAV before it ends the process where a container does not open
EXPECTED = ".".join(map(str, OLDEST))
INSTALL = "pip install 'mlx-qwenvl[video]'"
MISSING = "videos need one more package: pip install 'mlx-qwenvl[video]'"


@dataclass(frozen=True)
class Found:
    """What is here to decode videos with.

    Attributes:
        version: Of PyAV; None where it is not installed, "" where it does not say.
        fault: Why no video can be decoded, and what to do; "" where they can.
    """

    version: str | None
    fault: str = ""


def find_pyav() -> Found:
    """See whether PyAV is here and can be used."""
    return _find()[1]


def pyav(name: str) -> Any:
    """The package `av`.

    Args:
        name: What is to be opened with it, for messages.

    Raises:
        MediaError: It is not installed, too old, or cannot be loaded.
    """
    module, found = _find()
    if found.fault:
        raise MediaError(f"{name}: {found.fault}")
    return module


def _find() -> tuple[Any, Found]:
    try:
        module = importlib.import_module("av")
    except ModuleNotFoundError as error:
        if error.name == "av":
            return None, Found(None, MISSING)
        return None, _unloadable(error)
    except Exception as error:  # a library that is missing, or of another Python
        return None, _unloadable(error)
    version = str(getattr(module, "__version__", ""))
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        fault = f"PyAV {version} can crash on a damaged video, {EXPECTED} does not; {INSTALL}"
        return module, Found(version, fault)
    return module, Found(version)


def _unloadable(error: Exception) -> Found:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return Found("", f"PyAV cannot be loaded ({reason}); pip uninstall av, then {INSTALL}")
