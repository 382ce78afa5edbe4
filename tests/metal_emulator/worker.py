"""A process that waits for jobs and runs each in a child, so that a kernel may crash.

It stays between jobs: a fork costs less than a start of Python. For each line of JSON that it
reads, a list of runs, it answers with the list of their exit statuses (negative: a signal).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys


def start(library: str, job: str, out: str, report: str, order: int, cpu_seconds: float) -> int:
    """Run a kernel in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        # No handler is set: the signal ends the child, whatever the kernel does.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        os.dup2(os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
        status = ctypes.CDLL(library).emu_main(os.fsencode(job), os.fsencode(out), order, 12345)
    finally:
        os._exit(status)


def main() -> None:
    """Serve until the other side closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Kernels call its math functions and name no library.
    ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
    for line in sys.stdin:
        children = [start(*run) for run in json.loads(line)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    main()
