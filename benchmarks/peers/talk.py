"""A driver's process: started, asked, held still while others are measured, and watched."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SWITCHES = ("MLX_QWENVL_", "OPENBLAS_")
LAST_WORDS = 300  # characters of a failed process's stderr


class Driver:
    """A process that answers jobs.

    Args:
        python: The interpreter that has the runtime.
        module: Name of the driver in this package.
        options: What it is started with.
        environment: Variables on top of this process's.
        log: Where its stderr goes.
        patience: Seconds to wait for an answer.

    Raises:
        RuntimeError: It did not come up.
    """

    def __init__(
        self,
        python: str,
        module: str,
        options: Mapping[str, Any],
        environment: Mapping[str, str],
        log: Path,
        patience: float,
    ) -> None:
        self._patience = patience
        self._log = log
        with log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.peers.{module}", json.dumps(options)],
                cwd=ROOT,
                env=environ(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._lines: queue.Queue[str] = queue.Queue()
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()
        try:
            self.ready = self._answer()
        except BaseException:  # this process being told to end, too
            self.close()
            raise
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Have a job done; adds `peak_bytes`, the most that was resident meanwhile.

        Raises:
            RuntimeError: The process died, or took longer than `patience`.
        """
        assert self._process.stdin is not None, "it was asked for"
        self._process.send_signal(signal.SIGCONT)
        self._forget_peak()
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._last_words()) from None
        found = self._answer() | {"peak_bytes": self._peak()}
        self._process.send_signal(signal.SIGSTOP)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._ear.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None, "it was asked for"
            pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None, "it was asked for"
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=self._patience)
        except queue.Empty:
            self.close()
            raise RuntimeError(f"took longer than {self._patience:.0f} s") from None
        if not line:
            raise RuntimeError(self._last_words())
        found: dict[str, Any] = json.loads(line)
        return found

    def _last_words(self) -> str:
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"the process died: {''.join(said[-1:])[-LAST_WORDS:]}"

    def _forget_peak(self) -> None:
        """Begin counting resident memory anew, where the kernel can (Linux)."""
        place = Path(f"/proc/{self._process.pid}/clear_refs")
        if place.exists():
            place.write_text("5", encoding="ascii")

    def _peak(self) -> int | None:
        place = Path(f"/proc/{self._process.pid}/status")
        if not place.exists():
            return None
        lines = place.read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM:")), None)


def environ(more: Mapping[str, str]) -> dict[str, str]:
    """The environment of every process that is compared: ours as it comes, and OpenBLAS too.

    OpenBLAS chooses for the processor that it finds unless `OPENBLAS_*` says otherwise.
    """
    kept = {name: v for name, v in os.environ.items() if not name.startswith(SWITCHES)}
    return {**kept, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **more}


def whole(
    command: Sequence[str], environment: Mapping[str, str], patience: float
) -> dict[str, Any]:
    """Run a command from start to exit; gives its seconds and peak of resident memory.

    Raises:
        RuntimeError: It failed, or took longer than `patience`.
    """
    begin = time.perf_counter()
    with subprocess.Popen(
        list(command),
        cwd=ROOT,
        env=environ(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        timer = threading.Timer(patience, process.kill)
        timer.start()
        assert process.stderr is not None, "it was asked for"
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        timer.cancel()
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(f"exit {process.returncode}: {said.strip()[-LAST_WORDS:]}")
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in kilobytes
    return {"first_s": seconds, "peak_bytes": usage.ru_maxrss * unit}
