"""What a conversion says of itself: counted sizes, bits of each part, what stayed dense."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest

from convert import Wishes, convert
from convert.__main__ import main
from convert.reporting.report import report
from convert.summary import summary
from mlx_qwenvl.sizes import in_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_234_567, "1.23 MB"),
        (2_199_227_096, "2.20 GB"),
    ],
)
def test_bytes_have_decimal_units(count: int, text: str) -> None:
    assert in_bytes(count) == text


def test_sizes_are_those_of_the_files_and_bits_follow_from_them(tmp_path: Path) -> None:
    demo = Path(__file__).parent.parent / "mlx_qwenvl" / "demo"
    wishes = Wishes(recipes=("Q4K", "8bit"), vision_bits=8)
    outcome = convert(demo, tmp_path / "o", wishes)
    headers = 200_000  # bytes, more than those of all files
    on_disk = sum(file.stat().st_size for file in (tmp_path / "o").rglob("*.safetensors"))
    assert 0 < on_disk - outcome.output_bytes < headers
    lines = summary(outcome, seconds=1.25, peak_bytes=140_000_000)
    assert lines[0] == "Q4K is no format of MLX; 4bit is taken, the nearest one"
    assert "in 1.2 s; memory peaked at 140.00 MB" in lines[1]
    assert lines[2].startswith("4bit (default): ") and lines[3].startswith("8bit: ")
    # 4 bits and two 16-bit numbers for 64 weights; the rows of the embedding have nothing else.
    assert "embeddings 4.50" in lines[2] and "embeddings 8.50" in lines[3]
    assert lines[4:] == [
        "visual.patch_embed.proj stays dense: its rows of 1176 make no groups of 64"
    ]


def test_matrices_that_stay_dense_are_told_by_kind(tmp_path: Path) -> None:
    demo = Path(__file__).parent.parent / "mlx_qwenvl" / "demo"
    outcome = convert(demo, tmp_path / "o", Wishes(recipes=("4bit-g128",)))
    assert len(outcome.ungrouped) == 37  # rows of 192 in six layers, and the embedding
    why = "its rows of 192 make no groups of 128"
    assert summary(outcome, seconds=1, peak_bytes=1)[2:] == [
        f"model.embed_tokens stays dense: {why}",
        *(
            f"model.layers.*.{name}_proj stays dense in 6 layers: {why}"
            for name in ("mlp.gate", "mlp.up", *(f"self_attn.{part}" for part in "koqv"))
        ),
    ]


def test_the_report_of_the_command_line_says_what_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("convert.__main__.report", partial(report, prompts=4))
    output = tmp_path / "o"
    arguments = ["--model", "demo", "--output", str(output), "--quantize", "3bit,8bit", "--report"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    told = dict(re.findall(r"^(\dbit): KL ([\d.]+) nats", captured.err, re.MULTILINE))
    written = json.loads((output / "report.json").read_text())
    measured = {v["name"]: v["quality"]["mean_kl"] for v in written["variants"]}
    assert {name: float(kl) for name, kl in told.items()} == pytest.approx(measured, abs=6e-5)
    assert measured["3bit"] > measured["8bit"] >= 0
    assert captured.out == "" and str(output / "report.html") in captured.err
