"""The worker's other end: starts it once, hands it jobs, reads what kernels report."""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from .errors import MetalError, as_kind
from .lines import find_line
from .options import Options, Order

_ORDERS: dict[Order, int] = {"forward": 0, "reverse": 1, "random": 2}


@dataclass(frozen=True)
class Report:
    """What one run says: the bytes of all outputs, and counts by their names in dispatch.cpp."""

    output: bytes
    counts: dict[str, int]


class _Worker:
    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self.close)

    def ask(self, runs: list[list[object]]) -> list[int]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(runs) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the emulator's worker has ended")
        return [int(status) for status in json.loads(answer)]

    def close(self) -> None:
        if self.owner == os.getpid():
            self.process.communicate()


_lock = threading.Lock()
_worker: _Worker | None = None


def run_job(library: Path, job: Path, options: Options) -> list[Report]:
    """Run a kernel in every order; raises what the first run that fails reports."""
    global _worker
    folder = job.parent
    seconds = options.timeout
    runs: list[list[object]] = []
    for order in options.orders:
        out, report = f"{folder}/{order}.out", f"{folder}/{order}.report"
        runs.append([str(library), str(job), out, report, _ORDERS[order], seconds])
    with _lock:
        if _worker is None or _worker.owner != os.getpid() or _worker.process.poll() is not None:
            _worker = _Worker()
        statuses = _worker.ask(runs)
    reports = []
    for order, status in zip(options.orders, statuses, strict=True):
        path = folder / f"{order}.report"
        text = path.read_text() if path.exists() else ""
        _refuse_failure(status, text, library, options)
        if not options.allow_unwritten:
            _refuse_unwritten(text)
        counts = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", text)}
        reports.append(Report((folder / f"{order}.out").read_bytes(), counts))
    return reports


def _refuse_failure(status: int, text: str, library: Path, options: Options) -> None:
    if status == 0:
        return
    if status == -signal.SIGPROF:
        raise MetalError("timeout", f"the kernel takes more than {options.timeout} CPU seconds")
    if found := re.match(r"ERROR (\S+)\n(.*)", text, re.DOTALL):
        raise MetalError(as_kind(found[1]), _with_lines(library, found[2].strip()))
    if status == -signal.SIGSEGV:
        raise MetalError("crash", "a thread needs more than 128 KiB of stack, or memory is broken")
    raise MetalError("crash", f"the run ends with status {status}: {text.strip()[-300:]}")


def _with_lines(library: Path, text: str) -> str:
    """An address as the runtime prints it -> the line before it, where the access stands."""

    def replace(match: re.Match[str]) -> str:
        line = find_line(library, int(match[1], 16) - 1)
        return f"at {line}" if line else match[0]

    return re.sub(r"pc=0x([0-9a-f]+)", replace, text)


def _refuse_unwritten(text: str) -> None:
    if found := re.search(r"^UNWRITTEN (\S+) (\d+) (\d+)$", text, re.MULTILINE):
        raise MetalError(
            "unwritten-output",
            f"{found[2]} bytes of output '{found[1]}' are never written, the first at byte "
            f"offset {found[3]}",
        )
