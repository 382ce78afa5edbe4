"""Parts of the doctor that run in processes of their own.

MLX can end a process without a word: a library that is missing, a kernel that the driver refuses, a
processor without an instruction. The doctor lives on and tells what was said last.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

_RAISED = re.compile(r"[\w.]+: (?=.)")  # the class before a traceback's last message


@dataclass(frozen=True)
class Heard:
    """What a process said.

    Attributes:
        told: The objects that it printed, in order.
        fault: How it ended, if not well, in one line.
    """

    told: tuple[dict[str, Any], ...]
    fault: str | None


def hear(module: str, patience: float) -> Heard:
    """Run a module that prints JSON objects, one a line.

    Args:
        module: Its name.
        patience: Seconds after which it is ended.
    """
    try:
        ran = subprocess.run(
            [sys.executable, "-m", module],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=patience,
        )
    except subprocess.TimeoutExpired as error:
        return Heard(_objects(error.stdout or b""), f"it was not done after {patience:.0f} s")
    except OSError as error:
        return Heard((), f"it cannot be started: {error.strerror}")
    if ran.returncode == 0:
        return Heard(_objects(ran.stdout), None)
    lines = ran.stderr.decode("utf-8", "replace").strip().splitlines()
    last = _RAISED.sub("", lines[-1].strip(), count=1) if lines else ""
    if ran.returncode < 0:
        last = f"{signal.Signals(-ran.returncode).name} {last}".strip()
    return Heard(_objects(ran.stdout), last or f"exit code {ran.returncode}")


def _objects(printed: bytes) -> tuple[dict[str, Any], ...]:
    """The objects of all complete lines; what else a library printed is left aside."""
    found = []
    for line in printed.decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return tuple(found)
