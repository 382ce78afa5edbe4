"""A kernel as notebooks have it, driven from a test."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.manager import KernelManager

from tests.command_lines import ROOT

PATIENCE_S = 60.0  # for a cell on a busy machine


@dataclass
class Cell:
    """What a cell left.

    Attributes:
        out: Standard output.
        err: Standard error.
        error: Name of the exception that ended it, or "".
        shown: What was displayed, each by MIME type.
    """

    out: str = ""
    err: str = ""
    error: str = ""
    shown: list[dict[str, Any]] = field(default_factory=list)


class Kernel:
    """Runs cells.

    Args:
        manager: Of a kernel that was started.
    """

    def __init__(self, manager: KernelManager) -> None:
        self._manager = manager
        self._client = manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=PATIENCE_S)

    def run(self, code: str, stop_when: Callable[[Cell], bool] | None = None) -> Cell:
        """Run a cell to its end.

        Args:
            code: The cell.
            stop_when: Presses the stop button once what was heard is such.
        """
        request, cell, is_stopped = self._client.execute(code), Cell(), False
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                message = self._client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return cell
            if kind == "stream" and content["name"] == "stdout":
                cell.out += content["text"]
            elif kind == "stream":
                cell.err += content["text"]
            elif kind == "error":
                cell.error = content["ename"]
            elif kind in ("display_data", "execute_result"):
                cell.shown.append(content["data"])
            if stop_when is not None and not is_stopped and stop_when(cell):
                is_stopped = True
                self._manager.interrupt_kernel()
        raise AssertionError(f"the cell never ended: {code}")

    def value(self, expression: str) -> Any:
        """A value of the kernel that JSON can hold."""
        cell = self.run(f"import json; print(json.dumps({expression}))")
        assert not cell.error, cell
        return json.loads(cell.out)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.stop_channels()


# Runs in the kernel before the first cell, and leaves no names behind.
ALONE = """
def _stay_here():
    import socket

    connect, inet = socket.socket.connect, (socket.AF_INET, socket.AF_INET6)

    def connect_here(self, address):
        if self.family in inet and address[0] not in ("127.0.0.1", "::1"):
            raise OSError(f"a notebook wants to connect to {address}")
        return connect(self, address)

    socket.socket.connect = connect_here

_stay_here()
del _stay_here
"""


def environment(folder: Path) -> dict[str, str]:
    """Variables of a kernel: this checkout, no network, and all that it writes in a folder."""
    startup = folder / "ipythondir" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "alone.py").write_text(ALONE)
    homes = ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "MPLCONFIGDIR")
    return {
        **os.environ,
        **{name: str(folder / name.lower()) for name in (*homes, "JUPYTER_RUNTIME_DIR")},
        "PYTHONPATH": str(ROOT),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "HF_HUB_OFFLINE": "1",
    }


@contextmanager
def running_kernel(folder: Path) -> Iterator[Kernel]:
    """A kernel that imports this checkout and writes nothing outside a folder."""
    manager = KernelManager(
        kernel_name="python3", transport="ipc", connection_file=str(folder / "kernel.json")
    )
    manager.start_kernel(cwd=str(folder), env=environment(folder))
    try:
        kernel = Kernel(manager)
        try:
            yield kernel
        finally:
            kernel.close()
    finally:
        with suppress(RuntimeError):
            manager.shutdown_kernel(now=True)
