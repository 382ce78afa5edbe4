"""The command line's contract: what it is told, what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mlx_qwenvl import Chunk, QwenVL
from mlx_qwenvl.arguments import DEFAULT_QUESTION
from mlx_qwenvl.generate import main
from tests.command_lines import (
    GENERATE,
    PATIENCE,
    SHAPES,
    interrupted_while_loading,
    run,
    start,
)
from tests.faults import make_endless

Answer = Callable[..., dict[str, Any]]
COUNT = "How many shapes are there?"


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """The `--json` object of the demo's answer, with nothing else on either stream."""

    def ask(*arguments: str | Path) -> dict[str, Any]:
        code = main([*map(str, arguments), "--model", "demo", "--json"])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        printed = json.loads(captured.out)
        assert isinstance(printed, dict)
        return printed

    return ask


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Pipes bytes into standard input."""
    with ExitStack() as stack:

        def pipe(data: bytes) -> None:
            reading, writing = os.pipe()
            with os.fdopen(writing, "wb") as sink:
                sink.write(data)
            stdin = stack.enter_context(os.fdopen(reading, encoding="utf-8"))
            monkeypatch.setattr(sys, "stdin", stdin)

        yield pipe


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two answers were given to the same prompt and agree."""
    return bool(left["text"] == right["text"] and left["usage"] == right["usage"])


# --- What is printed where ----------------------------------------------------------------------


def test_first_command_answers_on_stdout_and_names_the_demo_in_one_line(tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    ran = run(*GENERATE, "--image", SHAPES, "--prompt", "What is shown in this image?", env=env)
    assert ran.code == 0
    assert "circle" in ran.out and "square" in ran.out
    assert ran.out.endswith("\n") and ran.out.count("\n") == 1
    assert len(ran.err_lines) == 1
    assert "demo" in ran.err and "mlx-qwenvl use 2b" in ran.err


def test_named_model_is_not_announced() -> None:
    ran = run(*GENERATE, "--model", "demo", "--image", SHAPES)
    assert (ran.code, ran.err) == (0, "")
    assert "circle" in ran.out


def test_chosen_model_is_not_announced(tiny_folder: Path) -> None:
    env = {"MLX_QWENVL_MODEL": str(tiny_folder)}
    ran = run(*GENERATE, "Hello", "--max-tokens", "2", env=env)
    assert (ran.code, ran.err) == (0, "")


def test_json_has_the_keys_and_types_of_the_contract(answer: Answer) -> None:
    reply = answer("--image", SHAPES)
    usage = dict.fromkeys(
        (
            *("prompt_tokens", "image_tokens", "video_tokens"),
            *("cached_tokens", "completion_tokens", "total_tokens"),
        ),
        int,
    )
    timings = dict.fromkeys(
        (
            *("load_s", "vision_s", "prefill_s", "time_to_first_token_s", "decode_s"),
            *("prompt_tokens_per_s", "completion_tokens_per_s"),
        ),
        float,
    )
    assert {key: type(value) for key, value in reply.items()} == {
        "text": str,
        "finish_reason": str,
        "model": str,
        "usage": dict,
        "timings": dict,
        "peak_memory_bytes": int,
    }
    assert {key: type(value) for key, value in reply["usage"].items()} == usage
    assert {key: type(value) for key, value in reply["timings"].items()} == timings
    assert (reply["finish_reason"], reply["model"]) == ("stop", "demo")
    counts = reply["usage"]
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]
    assert 0 < counts["image_tokens"] < counts["prompt_tokens"]
    assert all(seconds > 0 for seconds in reply["timings"].values())


def test_json_is_valid_where_stdout_knows_ascii_only(tmp_path: Path) -> None:
    folder = shutil.copytree(SHAPES.parents[2] / "mlx_qwenvl" / "demo", tmp_path / "模型")
    env = {"PYTHONIOENCODING": "ascii"}
    ran = run(*GENERATE, "--model", folder, "--image", SHAPES, "--json", env=env)
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["model"] == str(folder)


def test_verbose_tells_what_each_picture_became_and_where_time_went() -> None:
    images = ("--image", SHAPES, "--image", SHAPES, "--max-pixels", "7056")
    ran = run(*GENERATE, "--model", "demo", "--verbose", *images)
    assert ran.code == 0
    assert ran.err_lines[0].startswith("fused steps: ")
    assert ran.err_lines[1] == "picture 1: 448 x 448 pixels, read as 84 x 84, 9 tokens"
    assert ran.err_lines[2].startswith("picture 2: ")
    assert "18 of pictures" in ran.err_lines[3]
    assert "first token after" in ran.err_lines[4]
    assert "\r" not in ran.err


def test_verbose_tells_what_proposed_tokens_brought_unless_told_not_to_propose() -> None:
    images = [flag for _ in range(2) for flag in ("--image", SHAPES)]
    repeating = (*GENERATE, "--model", "demo", "--verbose", *images, "--max-pixels", "7056")
    ran, plain = run(*repeating), run(*repeating, "--no-speculation")
    assert re.fullmatch(r"\d+ of \d+ proposed tokens were right, in \d+ steps", ran.err_lines[-1])
    assert "proposed" not in plain.err
    assert ran.out == plain.out


# --- Questions and pictures ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("--prompt", COUNT, "--image", SHAPES),
        (COUNT, "--image", SHAPES),
        ("--image", SHAPES, COUNT),
        (*COUNT.split(), "--image", SHAPES),
    ],
    ids=["option", "before", "after", "words"],
)
def test_question_is_the_same_from_everywhere(
    answer: Answer, demo: QwenVL, arguments: tuple[str | Path, ...]
) -> None:
    expected = demo.generate(COUNT, images=[SHAPES])
    assert same(answer(*arguments), expected.to_dict())


def test_question_can_be_piped(
    answer: Answer, demo: QwenVL, piped: Callable[[bytes], None]
) -> None:
    piped(f"{COUNT}\n".encode())
    assert same(answer("--image", SHAPES), demo.generate(COUNT, images=[SHAPES]).to_dict())


def test_piped_text_prompt_and_arguments_are_joined_by_lines(
    answer: Answer, demo: QwenVL, piped: Callable[[bytes], None]
) -> None:
    piped(b"one\n")
    joined = demo.generate("one\ntwo\nthree", images=[SHAPES])
    assert same(answer("three", "--prompt", "two", "--image", SHAPES), joined.to_dict())


@pytest.mark.parametrize("arguments", [(), ("--prompt", ""), ("--prompt", " ")])
def test_picture_without_question_is_described(
    answer: Answer, demo: QwenVL, arguments: tuple[str, ...]
) -> None:
    expected = demo.generate(DEFAULT_QUESTION, images=[SHAPES])
    assert same(answer("--image", SHAPES, *arguments), expected.to_dict())


def test_question_needs_no_picture(answer: Answer) -> None:
    assert answer(COUNT, "--max-tokens", "4")["usage"]["image_tokens"] == 0


def test_picture_can_come_on_standard_input(answer: Answer, piped: Callable[[bytes], None]) -> None:
    piped(SHAPES.read_bytes())
    assert same(answer("--image", "-", COUNT), answer("--image", SHAPES, COUNT))


def test_pictures_add_up(answer: Answer) -> None:
    one = answer("--image", SHAPES, "--max-tokens", "1")["usage"]["image_tokens"]
    two = answer("--image", SHAPES, "--image", SHAPES, "--max-tokens", "1")["usage"]["image_tokens"]
    assert two == 2 * one


def test_idle_pipe_is_not_waited_for() -> None:
    with start(*GENERATE, "--model", "demo", "--image", SHAPES, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert b"circle" in process.stdout.read()
        assert b"silent" in process.stderr.read()
        assert process.wait(PATIENCE) == 0


# --- Options ------------------------------------------------------------------------------------


def test_temperature_zero_is_repeatable(answer: Answer) -> None:
    greedy = ("--image", SHAPES, "--temperature", "0")
    assert answer(*greedy)["text"] == answer(*greedy)["text"]


def test_seed_makes_drawing_repeatable(answer: Answer) -> None:
    def drawn(seed: int) -> str:
        hot = ("--temperature", "3", "--max-tokens", "8")
        return str(answer("--image", SHAPES, *hot, "--seed", str(seed))["text"])

    assert drawn(7) == drawn(7)
    assert len({drawn(seed) for seed in (7, 8, 9)}) == 3


def test_top_k_one_is_greedy_at_any_temperature(answer: Answer) -> None:
    hot = answer("--image", SHAPES, "--temperature", "3", "--top-k", "1")
    assert hot["text"] == answer("--image", SHAPES)["text"]


def test_stop_text_ends_the_answer_and_is_not_shown(answer: Answer) -> None:
    whole = answer("--image", SHAPES)["text"]
    word = whole.split()[4]
    cut = answer("--image", SHAPES, "--stop", "never said", word)
    assert cut["text"] == whole[: whole.index(word)]
    assert cut["finish_reason"] == "stop"


def test_max_tokens_ends_the_answer_with_length(answer: Answer) -> None:
    cut = answer("--image", SHAPES, "--max-tokens", "3")
    assert (cut["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 3)


def test_system_message_replaces_the_default_one(answer: Answer, demo: QwenVL) -> None:
    system = "Answer in one word."
    expected = demo.generate(COUNT, images=[SHAPES], system=system)
    assert same(answer("--image", SHAPES, COUNT, "--system", system), expected.to_dict())


@pytest.mark.parametrize("option", [("--quantize", "8bit"), ("--kv-bits", "8")])
def test_eight_bits_still_see_the_shapes(answer: Answer, option: tuple[str, str]) -> None:
    assert "circle" in answer("--image", SHAPES, *option)["text"]


# --- Endings ------------------------------------------------------------------------------------


@pytest.fixture
def endless_folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model whose answers never end."""
    folder = shutil.copytree(tiny_folder, tmp_path / "endless")
    generation = json.loads((folder / "generation_config.json").read_text())
    ends = generation["eos_token_id"]
    make_endless(folder, ends if isinstance(ends, list) else [ends])
    return folder


def test_interrupted_answer_keeps_its_text(endless_folder: Path) -> None:
    long = ("--temperature", "0", "--max-tokens", "1000000")
    with start(*GENERATE, "--model", endless_folder, "Go on.", *long) as process:
        assert process.stdout is not None
        begun = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert len(begun) == 20 and rest.endswith(b"\n")
    assert errors.decode().splitlines() == ["interrupted"]


def test_interrupted_json_keeps_its_text_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = QwenVL.stream

    def broken_off(*arguments: Any, **options: Any) -> Iterator[Chunk]:
        chunks = whole(*arguments, **options)
        yield from (next(chunks) for _ in range(3))
        raise KeyboardInterrupt

    monkeypatch.setattr(QwenVL, "stream", broken_off)
    assert main(["--model", "demo", "--image", str(SHAPES), "--json", "--temperature", "0"]) == 130
    kept = json.loads(capsys.readouterr().out)
    assert kept["finish_reason"] == "interrupted" and kept["text"].startswith("The image")


def test_interruption_while_loading_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "slow")
    code, out, errors = interrupted_while_loading(folder, *GENERATE, "--model", folder, "Hello")
    assert (code, out, errors) == (130, "", ["mlx-qwenvl generate: interrupted"])


def test_reader_that_leaves_early_causes_no_traceback(endless_folder: Path) -> None:
    with start(*GENERATE, "--model", endless_folder, "Go on.") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line() -> None:
    script = f"{sys.executable} -m mlx_qwenvl.generate --model demo --image {SHAPES} >/dev/full"
    env = os.environ | {"PYTHONPATH": str(SHAPES.parents[2])}
    ran = subprocess.run(["sh", "-c", script], capture_output=True, timeout=PATIENCE, env=env)
    assert ran.returncode == 1
    assert ran.stderr.decode().splitlines() == ["mlx-qwenvl generate: No space left on device"]


@pytest.mark.parametrize(
    ("redirections", "code", "words"),
    [("<&- >&-", 0, ""), ("--image - <&-", 1, "closed")],
    ids=["all", "stdin"],
)
def test_closed_descriptors_do_no_harm(redirections: str, code: int, words: str) -> None:
    """A model's file at descriptor 0 would be refused, and one at 1 written to."""
    script = f"{sys.executable} -m mlx_qwenvl.generate --model demo --image {SHAPES} {redirections}"
    env = os.environ | {"PYTHONPATH": str(SHAPES.parents[2])}
    ran = subprocess.run(["sh", "-c", script], capture_output=True, timeout=PATIENCE, env=env)
    lines = ran.stderr.decode().splitlines()
    assert ran.returncode == code
    assert len(lines) == (1 if words else 0) and all(words in line for line in lines)
