"""What `--help` says, and what the pages say of commands, is so."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_qwenvl.arguments import DEFAULT_QUESTION
from mlx_qwenvl.bench import main as bench
from mlx_qwenvl.command import COMMANDS, EXIT_OK
from mlx_qwenvl.completion import find_parser
from mlx_qwenvl.engine.options import MAX_TOKENS, Options
from mlx_qwenvl.facts import DEFAULT_CONTEXT
from mlx_qwenvl.inputs.frames import MAX_FRAMES
from mlx_qwenvl.inputs.processor import DEFAULT_MAX_PIXELS
from mlx_qwenvl.models.quantized_cache import KVFormat
from mlx_qwenvl.weights.recipes import read_recipe
from tests.command_lines import ROOT, run
from tests.written_commands import PAGES, PROGRAM, written_commands

WIDTH = 80  # columns of the narrowest terminal that help is read in
# Of processor time, which a busy machine does not stretch. Most of it is importing MLX and NumPy.
SECONDS = 1.0

# Defaults that a parser leaves to what it calls.
LEFT_TO_OTHERS = {
    "fps": 2,
    "max_frames": MAX_FRAMES,
    "max_tokens": MAX_TOKENS,
    "max_pixels": DEFAULT_MAX_PIXELS,
    "kv_group_size": KVFormat(bits=8).for_heads(128).group_size,
    "kv_start": Options().kv_start,
    "group_size": read_recipe("4bit").low.group_size,  # type: ignore[union-attr]
    "context": DEFAULT_CONTEXT,
    "prompt": DEFAULT_QUESTION,
    "style": "json",
}
# What else help says in parentheses.
REMARKS = {"one that fills the budget", "matplotlib", "find -print0"}
# Options of programs that are not ours.
FOREIGN = {
    *("--prefix", "--dist", "--throughput"),  # of npm, of pytest-xdist, of mistral.rs
    *("--backend", "--hostfile", "--starting-port"),  # of mlx.launch
}

PARENTHESIS = re.compile(r"\(([^()]*)\)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
COMMAND_NAMES = list(COMMANDS)


def parser_of(name: str) -> argparse.ArgumentParser:
    found = find_parser(name)
    assert found is not None
    return found


# --- Help by itself -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_every_option_says_what_it_is_for(name: str) -> None:
    silent = [
        action.option_strings or action.dest
        for action in parser_of(name)._actions
        if not action.help
    ]
    assert silent == []


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_defaults_that_help_states_are_the_real_ones(name: str) -> None:
    for action in parser_of(name)._actions:
        for said in PARENTHESIS.findall(action.help or ""):
            if said in REMARKS:
                continue
            if said.startswith("docs/"):
                assert (ROOT / said).exists(), said
                continue
            real = action.default if action.default else LEFT_TO_OTHERS[action.dest]
            assert said.removesuffix("s" if said[0].isdigit() else "") == str(real), action


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_help_fits_a_narrow_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    assert max(map(len, parser_of(name).format_help().splitlines())) <= WIDTH


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_help_begins_with_how_the_command_is_called(name: str) -> None:
    assert parser_of(name).format_usage().startswith(f"usage: {PROGRAM} {name} ")


def test_the_list_of_commands_fits_and_names_them_all() -> None:
    ran = run("-m", "mlx_qwenvl", "--help")
    assert (ran.code, ran.err) == (EXIT_OK, "")
    listed = [line.split()[0] for line in ran.out.splitlines()[2:]]
    assert listed == COMMAND_NAMES
    assert max(map(len, ran.out.splitlines())) <= WIDTH


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_help_comes_at_once(name: str) -> None:
    place = COMMANDS[name][0].removeprefix("mlx_qwenvl.")
    is_wing = place.split(".")[0] in ("server", "convert")
    module = place.split(".")[0] if is_wing else f"mlx_qwenvl.{place}"
    assert any(processor_seconds("-m", module, "--help") < SECONDS for _ in range(3))


def test_what_needs_no_mlx_does_not_wait_for_it() -> None:
    program = (
        "import sys, mlx_qwenvl.__main__ as m\n"
        "import mlx_qwenvl.doctor as d\n"
        "m.main(['--help']), m.main(['--version']), d.parser().format_help()\n"
        "sys.exit('mlx.core' in sys.modules or 'numpy' in sys.modules)"
    )
    assert run("-c", program).code == 0


def processor_seconds(*arguments: str) -> float:
    """Seconds of computing that a Python with arguments takes to its end."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


# --- The pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_code_blocks_are_taken(page: Path) -> None:
    for written in written_commands(page):
        assert written.command in COMMANDS or written.command.startswith("--"), str(written)
        if written.command in COMMANDS:
            try:
                # generate reads so, and whoever reads otherwise takes these as well.
                parser_of(written.command).parse_intermixed_args(list(written.arguments))
            except SystemExit as error:
                assert error.code == EXIT_OK, str(written)


def test_the_readme_is_read_for_its_commands() -> None:
    found = list(written_commands(ROOT / "README.md"))
    assert len(found) >= 10
    assert {"generate", "use", "convert", "info", "serve"} <= {one.command for one in found}
    asked = [one.arguments for one in found if "photo.jpg" in one.arguments]
    assert ("--image", "photo.jpg", "How many people?") in asked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_a_page_names_are_there(page: Path) -> None:
    named = set(OPTION.findall(page.read_text(encoding="utf-8")))
    assert named - all_options() - benchmark_options() - FOREIGN == set()


def all_options() -> set[str]:
    actions = [action for name in COMMANDS for action in parser_of(name)._actions]
    return {option for action in actions for option in action.option_strings} | {"--version"}


def benchmark_options() -> set[str]:
    """Options of programs that measure, as their code has them."""
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").rglob("*.py")]
    return {option for text in sources for option in re.findall(r'"(--[a-z-]+)"', text)}


def test_a_command_that_is_written_wrongly_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\ncat a | mlx-qwenvl generate --imgae x.png > out.txt  # as ever\n```\n"
        "    $ HOME=/x python -m mlx_qwenvl.info --context \\\n      many\n\n"
        "    mlx-qwenvl generate: an error that it printed\n"
    )
    first, second = written_commands(page)
    assert (first.command, first.arguments) == ("generate", ("--imgae", "x.png"))
    assert (second.command, second.arguments) == ("info", ("--context", "many"))
    for written in (first, second):
        with pytest.raises(SystemExit):
            parser_of(written.command).parse_args(written.arguments)


def test_help_of_a_command_exits_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        bench(["--help"])
    assert left.value.code == EXIT_OK
    assert capsys.readouterr().err == ""
