"""Fuzz what takes bytes from strangers: pictures, texts that name them, and requests.

    python -m benchmarks.fuzz [--minutes 10] [--jobs 2] [--target pictures ...] [--seed 0]
        [--crashers tests/fuzz_corpus] [--json FILE]

Inputs are mutated from good ones, and those that take a new way through the Python code, ours and
Pillow's, are mutated further. Nothing but our own errors may come out, in their form and without
insides, within bounds of time and of memory. What breaks that is saved in the folder of crashers,
from which `tests/test_fuzz.py` runs it ever after. Each job is a process of its own: one that dies
or hangs is told with its input. The exit code is 1 where anything was found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import PIL

from benchmarks.fuzz.coverage import Coverage
from benchmarks.fuzz.loop import Found, fuzz, keep
from benchmarks.fuzz.targets import SHARES, target_of
from benchmarks.peers.talk import ROOT, environ

HANG_S = 60.0  # seconds without a new input, after which a job is ended
SLICE_S = 10.0  # seconds between looks
CODE = (ROOT / "mlx_qwenvl", ROOT / "server", Path(PIL.__file__).parent)


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, print the figures and save what broke."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--minutes", type=float, default=10.0, help="of all jobs side by side")
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--target", action="append", choices=SHARES, default=[])
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--crashers", type=Path, default=ROOT / "tests" / "fuzz_corpus")
    p.add_argument("--json", type=Path)
    p.add_argument("--job", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)
    arguments = p.parse_args(argv)
    names = arguments.target or list(SHARES)
    if arguments.job:
        (name,) = names
        _be_a_job(name, arguments.seed, 60 * arguments.minutes, arguments.job)
        return 0
    whole = 60 * arguments.minutes / sum(SHARES[name] for name in names)
    entries = []
    for name in names:
        found = _side_by_side(name, whole * SHARES[name], arguments.jobs, arguments.seed)
        for fault, data in found.faults.items():
            file = keep(arguments.crashers, name, data)
            print(f"{name}: {fault}\n    {file}", file=sys.stderr)
        entries.append({"target": name, **asdict(found), "faults": list(found.faults)})
    print("\n".join(_table(entries)))
    if arguments.json:
        arguments.json.write_text(json.dumps(entries), encoding="utf-8")
    return 1 if any(entry["faults"] for entry in entries) else 0


def _be_a_job(name: str, seed: int, seconds: float, folder: Path) -> None:
    """Fuzz for a while; the last input and what was found are left in a folder."""
    last = os.open(folder / "last.bin", os.O_RDWR | os.O_CREAT)
    end = time.monotonic() + seconds

    def note(data: bytes) -> None:
        os.ftruncate(last, 0)
        os.pwrite(last, data, 0)

    target = target_of(name)
    found = fuzz(target, seed, lambda _: time.monotonic() > end, Coverage(CODE), note)
    target.close()
    told: dict[str, Any] = asdict(found)
    told["faults"] = {fault: data.hex() for fault, data in found.faults.items()}
    (folder / "found.json").write_text(json.dumps(told), encoding="utf-8")


def _side_by_side(name: str, seconds: float, jobs: int, seed: int) -> Found:
    """What so many processes find together."""
    whole = Found()
    with TemporaryDirectory() as temporary:
        folders = [Path(temporary, str(number)) for number in range(jobs)]
        processes = []
        for number, folder in enumerate(folders):
            folder.mkdir()
            command = [sys.executable, "-m", "benchmarks.fuzz", "--target", name]
            more = ["--minutes", str(seconds / 60), "--job", str(folder)]
            command += [*more, "--seed", str(1000 * seed + number)]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environ({})))
        for process, folder in zip(processes, folders, strict=True):
            fault = _wait(process, folder)
            if fault:
                last = folder / "last.bin"
                whole.faults[fault] = last.read_bytes() if last.exists() else b""
            else:
                _add(whole, json.loads((folder / "found.json").read_text(encoding="utf-8")))
    return whole


def _wait(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Wait for a job; tells what it died of, or ""."""
    last = folder / "last.bin"
    while True:
        try:
            code = process.wait(SLICE_S)
            return f"the process ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            if last.exists() and time.time() - last.stat().st_mtime > HANG_S:
                process.kill()
                process.wait()
                return f"one input took longer than {HANG_S:.0f} s"


def _add(whole: Found, told: dict[str, Any]) -> None:
    whole.inputs += told["inputs"]
    whole.seconds = max(whole.seconds, told["seconds"])
    whole.outcomes = dict(Counter(whole.outcomes) + Counter(told["outcomes"]))
    whole.slowest_s = max(whole.slowest_s, told["slowest_s"])
    for name in ("corpus", "edges", "lines"):
        setattr(whole, name, max(getattr(whole, name), told[name]))
    for fault, data in told["faults"].items():
        whole.faults.setdefault(fault, bytes.fromhex(data))


def _table(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown; edges, lines and corpus are those of the job that got furthest."""
    lines = [
        "| target | inputs | a second | slowest, s | corpus | edges | lines | outcomes | faults |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for e in entries:
        outcomes = ", ".join(f"{n} {kind}" for kind, n in Counter(e["outcomes"]).most_common())
        rate = e["inputs"] / e["seconds"] if e["seconds"] else 0
        lines.append(
            f"| {e['target']} | {e['inputs']} | {rate:.0f} | {e['slowest_s']:.3g} | {e['corpus']} "
            f"| {e['edges']} | {e['lines']} | {outcomes} | {len(e['faults'])} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
