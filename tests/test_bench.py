"""`mlx-qwenvl bench`: what it measures is what it says, and what it prints is to be relied on."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.bench import main
from mlx_qwenvl.benching import measure as measuring
from mlx_qwenvl.benching.batch import answer_together
from mlx_qwenvl.benching.figures import Figures, Spread
from mlx_qwenvl.benching.machine import Machine, chip_bandwidth
from mlx_qwenvl.benching.measure import Plan, measure, noise, read_batch, words
from mlx_qwenvl.benching.submit import TOGGLES, figures_from, switched
from mlx_qwenvl.benching.table import to_block, to_lines
from mlx_qwenvl.errors import PromptError
from mlx_qwenvl.facts import find_facts
from mlx_qwenvl.weights.memory import tokens_per_second

SMALL = [
    *("--model", "demo", "--prompt-tokens", "16", "--image", "56x84"),
    *("--tokens", "3", "--batch", "1,2", "--rounds", "2"),
]
PLAN = Plan("demo", prompt_tokens=16, image=(56, 84), answer_tokens=3, batch=(1, 2), rounds=2)


@pytest.fixture(scope="module")
def vlm() -> QwenVL:
    return load("demo")


@pytest.fixture(scope="module")
def figures() -> Figures:
    return measure(PLAN, lambda message: None)


# --- Measuring ----------------------------------------------------------------------------------


def test_rows_answer_as_they_do_alone(vlm: QwenVL) -> None:
    questions = ["Who are you?", "How are you?", "What is red?"]  # of equally many tokens
    together = answer_together(vlm, questions, 12)
    vlm.end_ids = frozenset()
    alone = [vlm.generate(q, temperature=0, max_tokens=12).token_ids for q in questions]
    assert [tuple(row) for row in together] == alone
    assert len({tuple(row) for row in together}) > 1, "rows must be told apart"


def test_rows_of_unequal_length_are_refused(vlm: QwenVL) -> None:
    with pytest.raises(PromptError, match="expected equally many"):
        answer_together(vlm, ["What is 1?", "What is the large number?"], 2)


def test_no_round_repeats_another(vlm: QwenVL) -> None:
    texts = [words(vlm, number, 40) for number in range(6)]
    assert len(set(texts)) == 6
    assert all(20 < len(vlm.tokenizer.encode(text)) <= 40 for text in texts)
    assert not np.array_equal(noise(0, (56, 56)), noise(1, (56, 56)))


def test_no_prompt_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    generate = QwenVL.generate

    def listening(self: QwenVL, prompt: str, **given: Any) -> Any:
        asked.append((prompt, given["system"], given["images"][0].tobytes()))
        return generate(self, prompt, **given)

    monkeypatch.setattr(QwenVL, "generate", listening)
    measure(replace(PLAN, batch=(1,)), lambda message: None)
    assert len(asked) == PLAN.rounds + 1
    for kind in zip(*asked, strict=True):
        assert len(set(kind)) == len(asked)


def test_figures_are_those_of_what_was_asked(figures: Figures) -> None:
    assert figures.image_tokens == 2 * 3
    assert figures.image_tokens < figures.prompt_tokens < figures.image_tokens + 16 + 64
    assert set(figures.batch_rates) == {1, 2}
    assert figures.resident > figures.peak_memory > 3_000_000, "the weights alone are more"
    for spread in (figures.first_token, figures.decode_rate, *figures.batch_rates.values()):
        assert 0 < spread.low <= spread.median <= spread.high
    assert figures.first_token.high > max(figures.vision.low, figures.prefill.low)


def test_end_tokens_do_not_shorten_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    ask = measuring._ask

    def counting(*given: Any, **named: Any) -> Any:
        reply = ask(*given, **named)
        counts.append(reply.usage.completion_tokens)
        return reply

    monkeypatch.setattr(measuring, "_ask", counting)
    measure(replace(PLAN, answer_tokens=48, rounds=1, batch=(1,)), lambda message: None)
    assert counts[-1] == 48


def test_spread_of_hand_worked_values() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert Spread.of([4.0, 1.0]) == Spread(2.5, 1.0, 4.0)


# --- The machine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chip", "cores", "bandwidth"),
    [
        ("Apple M1", 8, 68.25),
        ("Apple M4 Pro", 20, 273.0),
        ("Apple M4 Max", 32, 410.0),
        ("Apple M4 Max", 40, 546.0),
        ("Apple M3 Max", None, 400.0),
        ("AMD EPYC", None, None),
        ("Apple M99", 10, None),
    ],
)
def test_bandwidth_of_a_chip(chip: str, cores: int | None, bandwidth: float | None) -> None:
    assert chip_bandwidth(chip, cores) == bandwidth


def test_share_of_the_ceiling_on_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    mac = Machine("Apple M4 Pro", 20, "gpu", "macOS 26.0", 48 * 10**9, {"mlx": "0.32.4"})
    monkeypatch.setattr(measuring, "this_machine", lambda memory: mac)
    found = measure(replace(PLAN, rounds=1, batch=(1,)), lambda message: None)
    ceiling = tokens_per_second(find_facts("demo").description, found.prompt_tokens, 273.0)
    assert found.ceiling == ceiling
    assert found.ceiling_share == pytest.approx(found.decode_rate.median / ceiling)
    assert "of what memory's bandwidth allows" in "\n".join(to_lines(found))


# --- What is printed ----------------------------------------------------------------------------


def test_table_goes_to_stdout_and_progress_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    out, err = capsys.readouterr()
    for name in ("load", "vision", "prefill", "first token", "decode", "next turn", "2 at once"):
        assert f"\n  {name}" in out
    assert "round 2 of 2" in err and "round" not in out


def test_json_is_one_object_and_holds_all_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"load", "vision", "first_token", "batch_rates", "machine", "ceiling"} <= set(found)
    assert found["decode_rate"]["low"] <= found["decode_rate"]["median"]
    assert json.loads(json.dumps(figures_from(found).to_dict())) == found


def test_block_has_a_column_for_every_run(figures: Figures) -> None:
    faster = replace(figures, decode_rate=Spread(4321.0, 4321.0, 4321.0))
    lines = list(to_block({"as it comes": figures, "kernels off": faster}))
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {4}
    assert table[0] == "| | as it comes | kernels off |"
    (decode,) = (line for line in table if line.startswith("| decode "))
    assert decode.endswith("| 4321 tokens/s |")
    assert figures.machine.chip in lines[1] and "mlx-qwenvl" in lines[1]


def test_submit_turns_each_switch_in_a_process_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOGGLES, "padding on", {})
    monkeypatch.delitem(TOGGLES, "padding off")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    assert main([*SMALL, "--submit"]) == 0
    out = capsys.readouterr().out
    assert "| | as it comes | kernels off | padding on |" in out
    assert "| next turn's first token |" in out


def test_switches_of_the_caller_do_not_leak_into_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_QWENVL_KERNELS", "off")
    monkeypatch.setenv("MLX_QWENVL_OTHER", "kept")
    assert "MLX_QWENVL_KERNELS" not in switched(TOGGLES["as it comes"])
    assert switched(TOGGLES["kernels off"])["MLX_QWENVL_KERNELS"] == "off"
    assert switched({})["MLX_QWENVL_OTHER"] == "kept"
    assert switched({})["PATH"] == os.environ["PATH"]


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--image", "big"], "--image big is no size"),
        (["--batch", "1,x"], "--batch 1,x is no list"),
        (["--batch", "0"], "--batch 0 is no list"),
        (["--tokens", "1"], "--tokens is 1, expected 2 or more"),
        (["--prompt-tokens", "0"], "--prompt-tokens is 0"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--submit", "--json"], "--submit prints a block of its own"),
        (["--prompt-tokens", "5000"], "the model's context"),
    ],
)
def test_bad_options_are_one_line(
    wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *wrong]) != 0
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = (line for line in err.splitlines() if line.startswith("mlx-qwenvl bench: "))
    assert said in line


def test_picture_without_matplotlib_is_refused_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main([*SMALL, "--plot", str(tmp_path / "p.png")]) == 2
    err = capsys.readouterr().err
    assert err == "mlx-qwenvl bench: --plot draws with matplotlib; `pip install matplotlib`\n"


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_picture_is_drawn(figures: Figures, tmp_path: Path) -> None:
    from mlx_qwenvl.benching.table import plot

    plot(figures, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
@pytest.mark.parametrize(
    ("name", "said"),
    [("p.abc", "ends in none of"), ("p", "ends in none of"), ("no/p.png", "is in no folder")],
)
def test_picture_that_cannot_be_written_is_refused_before_measuring(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--plot", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not list(tmp_path.iterdir())


def test_rate_of_a_batch_counts_steps(vlm: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tokens of 2 rows take three steps; ten seconds pass."""
    clock = iter((5.0, 15.0))
    monkeypatch.setattr("mlx_qwenvl.benching.measure.time.perf_counter", lambda: next(clock))
    assert measuring._batch_rate(vlm, 2, 4) == pytest.approx(2 * 3 / 10)


def test_batch_is_read_once_each() -> None:
    assert read_batch("4,1,4") == (4, 1)
