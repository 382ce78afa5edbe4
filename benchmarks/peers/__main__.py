"""Ours and every peer that is importable, in turns, on the same models, pictures and questions.

    python -m benchmarks.peers PLACE [--model demo ...] [--case decode ...] [--row ours ...]
        [--python mlx-vlm=/path/to/python ...] [--resume] [--write docs/benchmarks.md]

Installs nothing. PLACE keeps models, pictures and results.jsonl, one measurement a line, to which
every run adds; `--resume` measures only what is not there, and `--write` makes the page of all of
them, alone or after measuring. A runtime that has no --python is looked for in this interpreter.
Each row is a process of its own, which is stopped while another one is measured. How much is asked
of which model says `plans.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import CASES
from benchmarks.peers.checkpoints import MODELS, make
from benchmarks.peers.page import page
from benchmarks.peers.rows import ROWS
from benchmarks.peers.turns import Bench, Key

SHOWN = 240  # characters of a result on stderr


def main() -> int:
    """Measure what is asked for and write the page."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("place", type=Path)
    p.add_argument("--model", action="append", choices=MODELS, default=[])
    p.add_argument("--case", action="append", choices=CASES, default=[], help="by default all")
    p.add_argument("--row", action="append", choices=ROWS, default=[], help="by default all")
    p.add_argument("--python", action="append", default=[], metavar="RUNTIME=PATH")
    p.add_argument("--rounds", type=int, help="by default as plans.py says")
    p.add_argument("--resume", action="store_true", help="leave out what results.jsonl has")
    p.add_argument("--patience", type=float, default=600, help="seconds for one measurement")
    p.add_argument("--write", type=Path, metavar="FILE.md")
    arguments = p.parse_args()
    # Drivers that are held still would outlive a process that is merely told to end.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    place: Path = arguments.place.absolute()
    place.mkdir(parents=True, exist_ok=True)
    pythons = dict(given.split("=", 1) for given in arguments.python)
    results = place / "results.jsonl"
    done = _done(_read(results)) if arguments.resume else set()
    with results.open("a", encoding="utf-8") as file:

        def note(entry: dict[str, Any]) -> None:
            line = json.dumps({"at": time.time(), "load": os.getloadavg()[0], **entry})
            print(line[:SHOWN], file=sys.stderr)
            file.write(line + "\n")
            file.flush()

        for model in arguments.model:
            folders = make(model, place)
            bench = Bench(model, folders, place, pythons, arguments.patience, done, note)
            wanted = set(arguments.row or ROWS)
            bench.run(wanted, arguments.case or list(CASES), arguments.rounds)
    if arguments.write:
        arguments.write.write_text(page(_read(results)), encoding="utf-8")
    return 0


def _read(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def _done(entries: Sequence[dict[str, Any]]) -> set[Key]:
    """What has a figure, or is known to have none."""
    return {
        (entry["model"], entry["case"], entry["row"], entry["group"], entry["round"])
        for entry in entries
        if "figure" in entry or "unsupported" in entry
    }


if __name__ == "__main__":
    sys.exit(main())
