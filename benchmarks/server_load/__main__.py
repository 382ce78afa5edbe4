"""The server under load: is every answer right, is everything given back, and how fast is it?

    python -m benchmarks.server_load soak PLACE [--requests 1000] [--at-once 16] [--seed 0]
    python -m benchmarks.server_load throughput PLACE [--model demo ...] [--row ours ...]
    python -m benchmarks.server_load stall PLACE [--model 0.1b ...] [--row ours ...]

PLACE keeps models, logs and results.jsonl, one measurement a line, to which every run adds.
`--quick` asks for little, to see that all works. `--resume` measures only what is not there;
`--rounds 0` measures nothing and only prints the table. `--python PATH` names the interpreter that
has mlx-vlm. The servers are processes of their own, and those that are not measured stand still;
who comes first in one round comes last in the next. `docs/server-load.md` says what is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.server_load import soak, stall, throughput
from benchmarks.server_load.models import MODELS, endless
from benchmarks.server_load.serving import ROWS, Served

QUICK_ASKERS = (1, 4)
ROUNDS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table and one line of JSON for each measurement."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("what", choices=("soak", "throughput", "stall"))
    p.add_argument("place", type=Path)
    p.add_argument("--quick", action="store_true")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--model", action="append", choices=MODELS, default=[])
    p.add_argument("--row", action="append", choices=ROWS, default=[], help="by default all")
    p.add_argument("--askers", action="append", type=int, default=[])
    p.add_argument("--rounds", type=int, default=ROUNDS)
    p.add_argument("--python", default=sys.executable, help="of mlx-vlm")
    p.add_argument("--requests", type=int, default=1000)
    p.add_argument("--at-once", type=int, default=16)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path, help="instead of PLACE/results.jsonl")
    arguments = p.parse_args(argv)
    place: Path = arguments.place.absolute()
    place.mkdir(parents=True, exist_ok=True)
    results: Path = arguments.json or place / "results.jsonl"

    def note(entry: dict[str, Any]) -> None:
        whole = {"what": arguments.what, "at": time.time(), "load": os.getloadavg()[0], **entry}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(whole) + "\n")

    if arguments.what == "soak":
        count = min(arguments.requests, 100) if arguments.quick else arguments.requests
        found = soak.run(place, count, arguments.at_once, arguments.seed)
        note(found.as_entry())
        print("\n".join(found.table()))
        return 0 if found.is_right else 1
    _take_turns(arguments, place, _read(results), note)
    tables = {"throughput": throughput.table, "stall": stall.table}
    entries = [e for e in _read(results) if e["what"] == arguments.what and "error" not in e]
    print("\n".join(tables[arguments.what](entries)))
    return 0


def _take_turns(
    arguments: argparse.Namespace, place: Path, known: list[dict[str, Any]], note: Any
) -> None:
    """Measure all rows of one model after the other, round by round."""
    askers = arguments.askers or (QUICK_ASKERS if arguments.quick else throughput.ASKERS)
    askers = askers if arguments.what == "throughput" else (0,)
    rows = arguments.row or list(ROWS)
    done = {_key(e) for e in known if "error" not in e} if arguments.resume else set()
    for model in arguments.model or MODELS:
        turns = [
            (row, count, round_)
            for round_ in range(1 if arguments.quick else arguments.rounds)
            for count in askers
            for row in rows[:: -1 if round_ % 2 else 1]
            if (arguments.what, model, row, count, round_) not in done
        ]
        if not turns:
            continue
        folder = endless(model, place)
        running: dict[str, Served] = {}
        try:
            for row in dict.fromkeys(row for row, _, _ in turns):
                log = place / f"{model}-{row}.log"
                running[row] = Served.of(ROWS[row], folder, log, arguments.python)
                running[row].hold()
            for row, count, round_ in turns:
                entry = {"model": model, "row": row, "askers": count, "round": round_}
                found = _one(arguments, running[row], model, str(folder), count, round_)
                print(json.dumps(entry | found)[:200], file=sys.stderr)
                note(entry | found)
        finally:
            for served in running.values():
                served.close()


def _one(
    arguments: argparse.Namespace,
    served: Served,
    model: str,
    folder: str,
    askers: int,
    round_: int,
) -> dict[str, Any]:
    try:
        if arguments.what == "stall":
            return stall.measure(served, folder, round_)
        amount = throughput.QUICK if arguments.quick else throughput.AMOUNTS[model]
        return throughput.measure(served, folder, amount, askers, round_)
    except Exception as error:  # whatever it is, it is this measurement's result
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(name) for name in ("what", "model", "row", "askers", "round"))


def _read(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
