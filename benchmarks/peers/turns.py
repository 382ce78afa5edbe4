"""Measuring the rows of one model in turns."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import CASES, Writer, figure, picture
from benchmarks.peers.checkpoints import Folders
from benchmarks.peers.plans import PLANS
from benchmarks.peers.rows import DRIVERS, MODULES, OURS, ROWS, Row
from benchmarks.peers.talk import Driver, whole
from mlx_qwenvl.inputs.tokenizer import Tokenizer

QUESTION = "What is the color?"
WARM_UP_TOKENS = 2

Key = tuple[str, str, str, int, int]  # model, case, row, group, round


@dataclass(frozen=True)
class Turn:
    """One measurement.

    Attributes:
        case: One of `CASES`.
        row: One of `ROWS`.
        group: Number of the rows that are alive together.
        number: Of the round.
    """

    case: str
    row: str
    group: int
    number: int


class Bench:
    """Measurements of one model.

    Args:
        model: Its name.
        folders: Where it is.
        place: Where pictures, logs and GGUF files are kept.
        pythons: Interpreters by runtime.
        patience: Seconds for one measurement.
        done: What need not be measured again.
        note: Takes each result.
    """

    def __init__(
        self,
        model: str,
        folders: Folders,
        place: Path,
        pythons: Mapping[str, str],
        patience: float,
        done: Set[Key],
        note: Callable[[dict[str, Any]], None],
    ) -> None:
        self._model = model
        self._plan = PLANS[model]
        self._folders = {
            "dense": folders.dense,
            "packed": folders.packed,
            "gguf": place / f"{model}-gguf",
        }
        self._place = place
        self._pythons = {OURS: sys.executable, **pythons}
        self._patience = patience
        self._done = done
        self._note = note
        tokenizer = Tokenizer.from_folder(folders.packed)
        self._writer = Writer(tokenizer, self._plan, place / "pictures")

    def has(self, name: str) -> bool:
        """Whether a row's runtime and model are here."""
        row = ROWS[name]
        if not self._folders[row.folder].exists():
            return False
        found = importlib.util.find_spec(MODULES[row.runtime])
        return row.runtime in self._pythons or found is not None

    def run(self, wanted: Set[str], cases: Sequence[str], rounds: int | None) -> None:
        """Measure all groups of the model's plan.

        Args:
            wanted: Rows to take part.
            cases: Cases to measure.
            rounds: How often, instead of as the plan says.
        """
        planned = self._plan.cases or tuple(CASES)
        cases = [case for case in cases if case in planned]
        for group, rows in enumerate(self._plan.groups):
            here = tuple(name for name in rows if name in wanted and self.has(name))
            if group and here == rows[:1]:
                continue  # ours goes along with others, who are not here
            self._run_group(group, here, cases, rounds or self._plan.rounds)

    def _run_group(
        self, group: int, names: Sequence[str], cases: Sequence[str], rounds: int
    ) -> None:
        """Measure rows in turns; whoever comes first in one round comes last in the next."""
        turns = [
            Turn(case, name, group, number)
            for case in cases
            for number in range(rounds)
            for name in names[:: -1 if number % 2 else 1]
            if self._is_due(case, name, group, number)
        ]
        for turn in turns:
            if turn.case == "cold":
                self._take(turn, partial(self._cold, ROWS[turn.row]))
        drivers: dict[str, Driver] = {}
        warm = [turn for turn in turns if turn.case != "cold"]
        try:
            for name in names:
                if any(turn.row == name for turn in warm):
                    self._start(name, drivers)
            for turn in warm:
                if turn.row in drivers:
                    job = self._writer.job(turn.case, turn.number)
                    if not self._take(turn, partial(drivers[turn.row].ask, job)):
                        drivers.pop(turn.row).close()
                        self._start(turn.row, drivers)
        finally:
            for driver in drivers.values():
                driver.close()

    def _is_due(self, case: str, name: str, group: int, number: int) -> bool:
        slow = self._plan.slow.get(name)
        if slow is not None and (number > 0 or case not in slow):
            return False
        if case in self._plan.once and number > 0:
            return False
        if case.endswith("-best") and ROWS[name].runtime not in (OURS, "mlx-vlm"):
            return False  # it would be asked as before
        return (self._model, case, name, group, number) not in self._done

    def _take(self, turn: Turn, do: Callable[[], dict[str, Any]]) -> bool:
        """Note one measurement; tells whether the process lives on."""
        entry: dict[str, Any] = {
            "model": self._model,
            "case": turn.case,
            "row": turn.row,
            "group": turn.group,
            "round": turn.number,
        }
        try:
            found = do()
        except RuntimeError as error:
            self._note({**entry, "error": str(error)})
            return False
        if "error" not in found and "unsupported" not in found:
            found["figure"] = figure(turn.case, found)
        self._note({**entry, **found})
        return True

    def _start(self, name: str, drivers: dict[str, Driver]) -> None:
        """Start a row, and have it answer once, so that no case pays for what happens once."""
        row = ROWS[name]
        entry = {"model": self._model, "case": "load", "row": name}
        log = self._place / f"{self._model}-{name}.log"
        module, options = DRIVERS[row.runtime], self._options(row)
        try:
            driver = Driver(
                self._python(row), module, options, row.environment, log, self._patience
            )
            drivers[name] = driver
            if name not in self._plan.slow:
                driver.ask(self._writer.job("decode", -1) | {"max_tokens": WARM_UP_TOKENS})
        except RuntimeError as error:
            if name in drivers:
                drivers.pop(name).close()
            self._note({**entry, "error": str(error)})
            return
        self._note({**entry, **driver.ready})

    def _cold(self, row: Row) -> dict[str, Any]:
        shown = picture(self._place / "pictures", 0, self._plan.small)
        folder, python = str(self._folders[row.folder]), self._python(row)
        asked = ["--model", folder, "--image", shown, "--prompt", QUESTION]
        asked += ["--max-tokens", "1", "--temperature", "0"]
        if row.runtime == OURS:
            dtype = ["--dtype", row.dtype] if row.dtype else []
            command = [python, "-m", "mlx_qwenvl", "generate", *asked, *dtype]
        elif row.runtime == "mlx-vlm" and row.dtype is None:
            command = [python, "-m", "mlx_vlm", "generate", *asked]
        else:  # it has no command line, or none that takes a dtype
            seen = "" if row.runtime == "llama-cpp-python" else shown
            options = self._options(row) | {"first_token_of": [seen, QUESTION]}
            module = f"benchmarks.peers.{DRIVERS[row.runtime]}"
            command = [python, "-m", module, json.dumps(options)]
        return whole(command, row.environment, self._patience)

    def _python(self, row: Row) -> str:
        return self._pythons.get(row.runtime, sys.executable)

    def _options(self, row: Row) -> dict[str, Any]:
        return {
            "folder": str(self._folders[row.folder]),
            "dtype": row.dtype,
            "quantize": None if self._model == "demo" else row.quantize,
        }
