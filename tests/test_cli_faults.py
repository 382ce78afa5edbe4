"""Whatever is wrong, the command line says it in one line, soon, and with the right exit code."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mlx_qwenvl.generate import main
from tests.command_lines import GENERATE, SHAPES, run
from tests.faults import MODEL_FAULTS, png_header

SOON = 10.0  # seconds, on a loaded machine; alone it is under one

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line that is said to arguments that are wrong."""

    def ask(code: int, *arguments: str | Path) -> str:
        begin = time.perf_counter()
        try:
            got = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            assert isinstance(exit.code, int)
            got = exit.code
        assert time.perf_counter() - begin < SOON
        captured = capsys.readouterr()
        assert (got, captured.out) == (code, "")
        assert captured.err.count("\n") == 1 and captured.err.startswith("mlx-qwenvl generate: ")
        assert "Traceback" not in captured.err
        return captured.err

    return ask


def test_missing_picture(refused: Refused, tmp_path: Path) -> None:
    assert "absent.png: no such file" in refused(1, "--image", tmp_path / "absent.png")


def test_folder_as_picture(refused: Refused, tmp_path: Path) -> None:
    assert "folder" in refused(1, "--image", tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"Dear diary, today nothing happened.\n", "looks like text"),
        (png_header(0, 0), "cannot be decoded"),
        (png_header(13000, 13000), "13000 x 13000 pixels, too large"),
    ],
    ids=["empty", "text", "no pixels", "too many pixels"],
)
def test_file_that_is_no_picture(refused: Refused, tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.png").write_bytes(data)
    assert words in refused(1, "--image", tmp_path / "a.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("eighths", range(1, 8))
def test_truncated_picture(refused: Refused, tmp_path: Path, form: str, eighths: int) -> None:
    whole = tmp_path / "whole"
    with Image.open(SHAPES) as image:
        image.save(whole, form)
    data = whole.read_bytes()
    (tmp_path / "cut").write_bytes(data[: len(data) * eighths // 8])
    line = refused(1, "--image", tmp_path / "cut")
    assert "truncated" in line and str(tmp_path / "cut")[:40] in line


@pytest.mark.parametrize("name", ["nope", "", "~nobody-here/x", "a" * 5000, "a..b/c", "two\nlines"])
def test_unknown_model(refused: Refused, name: str) -> None:
    assert "no model '" in refused(1, "--model", name, "Hello")


def test_file_as_model(refused: Refused) -> None:
    assert "expected a folder" in refused(1, "--model", SHAPES, "Hello")


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_broken_model(refused: Refused, tiny_folder: Path, tmp_path: Path, fault: str) -> None:
    harm, words = MODEL_FAULTS[fault]
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    harm(folder)
    assert words in refused(1, "--model", folder, "Hello")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--temperature", "warm"),
        ("--max-tokens", "0"),
        ("--max-tokens", "1.5"),
        ("--top-p", "2"),
        ("--min-p", "-0.1"),
        ("--top-k", "-1"),
        ("--repetition-penalty", "0"),
        ("--presence-penalty", "inf"),
        ("--seed", "9" * 30),
        ("--stop", ""),
        ("--kv-bits", "3"),
        ("--quantize", "9bit"),
        ("--dtype", "float8"),
        ("--min-pixels", "0"),
        ("--max-pixels", "0"),
        ("--min-pixels", "9999", "--max-pixels", "99"),
        ("--image", "-", "--image", "-"),
        ("--prompt",),
        ("--unknown",),
    ],
    ids=" ".join,
)
def test_bad_option_is_a_usage_error(refused: Refused, arguments: tuple[str, ...]) -> None:
    line = refused(2, "--model", "demo", "--image", SHAPES, *arguments)
    named = arguments[0].removeprefix("--")
    aliases = {"dtype": "dtype", "quantize": "quantization"}
    assert named in line or named.replace("-", "_") in line or aliases.get(named, "") in line


@pytest.mark.parametrize("arguments", [(), ("--prompt", ""), ("  ",), ("--system", "Be brief.")])
def test_nothing_asked_is_a_usage_error(refused: Refused, arguments: tuple[str, ...]) -> None:
    assert "nothing was asked" in refused(2, *arguments)


def test_bad_options_are_told_before_a_model_is_looked_for(refused: Refused) -> None:
    assert "top_p" in refused(2, "--model", "nope", "--top-p", "2", "Hello")


def test_prompt_beyond_the_context_is_one_line(refused: Refused) -> None:
    assert "context" in refused(1, "--model", "demo", "word " * 5000)


@pytest.mark.parametrize(
    ("code", "arguments"), [(1, ("--image", "absent.png")), (2, ("--unknown",))]
)
def test_whole_process_agrees(code: int, arguments: tuple[str, ...]) -> None:
    ran = run(*GENERATE, *arguments)
    assert (ran.code, ran.out, len(ran.err_lines)) == (code, "", 1)
    assert ran.seconds < SOON
