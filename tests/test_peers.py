"""The comparison with peers: whose turn it is, what is asked, and what the page makes of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import turns
from benchmarks.peers.cases import CASES, SHORT_TOKENS, Writer
from benchmarks.peers.checkpoints import Folders
from benchmarks.peers.identity import identity
from benchmarks.peers.page import MODELS, page
from benchmarks.peers.plans import PLANS
from benchmarks.peers.rows import ROWS
from benchmarks.peers.talk import Driver, environ, whole
from benchmarks.peers.turns import Bench, Key
from mlx_qwenvl import load
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.weights.resolve import DEMO_FOLDER


def entry(row: str, number: int, **more: Any) -> dict[str, Any]:
    given = {"model": "demo", "case": "prefill", "group": 0, "at": 0.0, "load": 1.0}
    return {**given, "row": row, "round": number, **more}


def cells(text: str, row: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


# --- The page -----------------------------------------------------------------------------------


def test_quotients_are_taken_within_a_round() -> None:
    """Quotients 0.5, 0.2 and 0.1; of the medians it would be 2 / 8."""
    ours, theirs = (1.0, 2.0, 4.0), (2.0, 10.0, 40.0)
    entries = [
        *(entry("ours", n, figure=ours[n], peak_bytes=10**8) for n in range(3)),
        *(entry("mlx-vlm", n, figure=theirs[n], peak_bytes=4 * 10**8) for n in (2, 0, 1)),
    ]
    found = cells(page(entries), "mlx-vlm")
    assert found[1:] == ["10 (2 to 40)", "3", "0.2", "400 MB", "0.25"]


def test_of_rates_more_is_faster() -> None:
    entries = [
        entry("ours", 0, case="decode", figure=300.0),
        entry("mlx-vlm", 0, case="decode", figure=100.0),
    ]
    assert cells(page(entries), "mlx-vlm")[3] == "0.333"


def test_groups_are_not_mixed() -> None:
    entries = [
        entry("ours", 0, figure=1.0),
        entry("ours", 0, figure=3.0, group=1),
        entry("transformers", 0, figure=6.0, group=1),
    ]
    assert cells(page(entries), "transformers")[2:4] == ["1", "0.5"]


def test_the_last_of_repeated_measurements_counts() -> None:
    entries = [entry("ours", 0, figure=9.0), entry("ours", 0, figure=1.0)]
    assert cells(page(entries), "ours")[1] == "1"


def test_a_failure_names_nobodys_folder() -> None:
    text = page([entry("mlx-vlm", 0, error="FileNotFoundError: /home/me/models/x | y\nz")])
    assert cells(text, "mlx-vlm")[1] == "not measured: FileNotFoundError: x / y z"
    assert "/home" not in text


def test_tokens_count_up_to_the_first_difference() -> None:
    entries = [
        entry("ours", 0, tokens=[1, 2, 3, 4]),
        entry("transformers", 0, tokens=[1, 2, 9, 4]),
        entry("ours", 1, tokens=[5]),
        entry("transformers", 1, tokens=[5]),
        entry("ours", 0, case="next", tokens=[7]),
        entry("transformers", 0, case="next", tokens=[8]),
    ]
    assert list(identity(entries))[-1] == "| ours | transformers | 1 of 2 | 3 of 5 |"


def test_every_name_of_a_plan_is_known() -> None:
    assert set(PLANS) == set(MODELS)
    for plan in PLANS.values():
        assert {row for group in plan.groups for row in group} <= set(ROWS)
        assert all(group[0] == "ours" for group in plan.groups), "pairs need it"
        assert {
            *plan.cases,
            *plan.once,
            *(case for cases in plan.slow.values() for case in cases),
        } <= set(CASES)


# --- What is asked ------------------------------------------------------------------------------


def test_no_round_asks_what_another_did(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(DEMO_FOLDER)
    writer = Writer(tokenizer, PLANS["demo"], tmp_path)
    jobs = [writer.job(case, n) for case in CASES if case != "cold" for n in range(3)]
    turns_asked = [turn for job in jobs for turn in job.get("turns", ())]
    assert len({job["turns"][0]["text"] for job in jobs if "turns" in job}) == 3 * 9
    pictures = [path for turn in turns_asked for path in turn["images"]]
    assert len(set(pictures)) == len(pictures) > 0
    (prefill,) = (job for job in jobs[3:4])
    assert len(tokenizer.encode(prefill["turns"][1]["text"])) == PLANS["demo"].long_tokens
    rows = next(job for job in jobs if job["kind"] == "batch")["questions"]
    assert {len(tokenizer.encode(text)) for text in rows} == {SHORT_TOKENS}


# --- Turns --------------------------------------------------------------------------------------


class Recorder:
    """Stands in for `Driver`; notes whom it asked."""

    asked: list[str]
    ready: dict[str, Any]

    def __init__(self, python: str, module: str, *rest: Any) -> None:
        self._module = module
        self.ready = {}

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["max_tokens"] != turns.WARM_UP_TOKENS:
            Recorder.asked.append(self._module)
        return {"first_s": 1.0, "peak_bytes": None}

    def close(self) -> None:
        """Nothing to end."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    Recorder.asked = []
    monkeypatch.setattr(turns, "Driver", Recorder)
    yield Recorder.asked


def run(tmp_path: Path, done: set[Key]) -> list[dict[str, Any]]:
    notes: list[dict[str, Any]] = []
    pythons = {"mlx-vlm": sys.executable}
    folders = Folders(DEMO_FOLDER, DEMO_FOLDER)
    bench = Bench("demo", folders, tmp_path, pythons, 60, done, notes.append)
    bench.run({"ours", "mlx-vlm"}, ["prefill"], rounds=2)
    return [note for note in notes if note["case"] != "load"]


def test_who_comes_first_comes_last_in_the_next_round(tmp_path: Path, asked: list[str]) -> None:
    notes = run(tmp_path, set())
    assert asked == ["drive_ours", "drive_mlx_vlm", "drive_mlx_vlm", "drive_ours"]
    assert [note["round"] for note in notes] == [0, 0, 1, 1]
    assert all(note["figure"] == 1.0 for note in notes)


def test_what_is_done_is_not_measured_again(tmp_path: Path, asked: list[str]) -> None:
    run(tmp_path, {("demo", "prefill", "ours", 0, number) for number in (0, 1)})
    assert asked == ["drive_mlx_vlm", "drive_mlx_vlm"]


def test_slow_rows_and_cases_are_asked_once(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLANS, "demo", replace(PLANS["demo"], slow={"mlx-vlm": ("prefill",)}))
    run(tmp_path, set())
    assert asked == ["drive_ours", "drive_mlx_vlm", "drive_ours"]
    asked.clear()
    monkeypatch.setitem(PLANS, "demo", replace(PLANS["demo"], slow={"mlx-vlm": ("cold",)}))
    run(tmp_path, set())
    assert asked == ["drive_ours", "drive_ours"]
    asked.clear()
    monkeypatch.setitem(PLANS, "demo", replace(PLANS["demo"], slow={}, once=("prefill",)))
    run(tmp_path, set())
    assert asked == ["drive_ours", "drive_mlx_vlm"]


def test_a_later_group_is_not_measured_for_ours_alone(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = (("ours", "mlx-vlm"), ("ours", "transformers"))
    monkeypatch.setitem(PLANS, "demo", replace(PLANS["demo"], groups=groups))
    run(tmp_path, set())
    assert len(asked) == 4


# --- Processes ----------------------------------------------------------------------------------


def driver(tmp_path: Path, module: str, folder: str) -> Driver:
    log = tmp_path / "log"
    return Driver(sys.executable, module, {"folder": folder}, {}, log, 60)


def test_a_driver_answers_what_the_package_answers(tmp_path: Path) -> None:
    ours = driver(tmp_path, "drive_ours", str(DEMO_FOLDER))
    try:
        turn = {"role": "user", "text": "What is the color?", "images": []}
        found = ours.ask({"kind": "answer", "turns": [turn], "max_tokens": 4})
        wrong = ours.ask({"kind": "answer", "turns": [turn], "max_tokens": -1})
    finally:
        ours.close()
    vlm = load("demo")
    vlm.end_ids = frozenset()
    said = vlm.generate("What is the color?", temperature=0, max_tokens=4)
    assert tuple(found["tokens"]) == said.token_ids and found["n_tokens"] == 4
    assert found["first_s"] > 0 and ours.ready["versions"]["mlx-qwenvl"]
    assert "OptionError" in wrong["error"], "a failed job is a result, and the process lives on"


def test_a_driver_that_dies_tells_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the process died: .*no model"):
        driver(tmp_path, "drive_ours", str(tmp_path / "nothing"))


def test_a_whole_command_is_timed_and_its_failure_told() -> None:
    found = whole([sys.executable, "-c", "import time; time.sleep(0.2)"], {}, 60)
    assert 0.2 < found["first_s"] < 60 and found["peak_bytes"] > 10**6
    with pytest.raises(RuntimeError, match="exit 3: so it is"):
        whole(
            [sys.executable, "-c", "import sys; print('so it is', file=sys.stderr); exit(3)"], {}, 9
        )


def test_switches_of_the_caller_do_not_reach_what_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MLX_QWENVL_OPENBLAS", "OPENBLAS_CORETYPE"):
        monkeypatch.setenv(name, "off")
        assert name not in environ({})
