"""`mlx-qwenvl completion SHELL`: a script that completes commands, options and their values."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlx_qwenvl.command import COMMANDS, EXIT_OK, Parser, run
from mlx_qwenvl.weights.recipes import RECIPES
from mlx_qwenvl.weights.resolve import DEMO
from mlx_qwenvl.weights.short_names import SHORT_NAMES

PROGRAM = "mlx-qwenvl completion"
SHELLS = ("bash", "zsh", "fish")
PLACES = """where each looks for it:
  bash  ~/.local/share/bash-completion/completions/mlx-qwenvl
  zsh   _mlx-qwenvl in a folder of $fpath
  fish  ~/.config/fish/completions/mlx-qwenvl.fish

  mlx-qwenvl completion fish > ~/.config/fish/completions/mlx-qwenvl.fish"""


@dataclass(frozen=True)
class Values:
    """What an option takes, and with it what completes it.

    Attributes:
        label: Names the function in the script. Where it holds "file" or "dir", shtab has bash
            quote what it inserts.
        words: That stand for themselves.
        paths: Which paths are taken as well.
    """

    label: str
    words: tuple[str, ...] = ()
    paths: Literal["none", "folders", "all"] = "none"


MODELS = (DEMO, *SHORT_NAMES)
FILE = Values("file", paths="all")
# By the name that help gives to what an option takes.
TAKES = {
    "DIR": Values("dir", paths="folders"),
    "NAME|DIR": Values("model_dir", MODELS, "folders"),
    "NAME|DIR|FILE": Values("model_file", MODELS, "all"),
    "builtin|DIR": Values("pictures_dir", ("builtin",), "folders"),
    "RECIPE": Values("recipe", tuple(RECIPES)),
}
PATHS = {"DIR", "FILE", "PATH", "PATTERN", "PICTURE"}  # of which any may stand beside others
DTYPE = Values("dtype", ("float32", "float16", "bfloat16"))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog=PROGRAM,
        description="Print a script that completes mlx-qwenvl's commands, options and values.",
        epilog=PLACES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("shell", choices=SHELLS, help="which shell will read it")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: _print(arguments.shell), PROGRAM)


def _print(shell: str) -> int:
    print(script(shell), end="")
    return EXIT_OK


def script(shell: str) -> str:
    """The script for one of `SHELLS`; it asks nothing of Python when it completes."""
    import shtab

    return str(shtab.complete(whole(), shell))


def whole() -> argparse.ArgumentParser:
    """All commands as one parser, whose values know what completes them."""
    root = argparse.ArgumentParser(prog="mlx-qwenvl")
    root.add_argument("-V", "--version", action="store_true", help="print the version")
    commands = root.add_subparsers()
    for name, (_, purpose) in COMMANDS.items():
        command = find_parser(name)
        parents = [] if command is None else [command]
        p = commands.add_parser(name, help=purpose, parents=parents, add_help=command is None)
        p.description = purpose
        for action in p._actions:
            _prepare(action)
    return root


def _prepare(action: argparse.Action) -> None:
    """Tell shtab what completes an action, in words that zsh can read."""
    values = values_of(action)
    action.metavar = None  # may hold a colon, which divides zsh's specifications
    if values is not None:
        action.complete = completer(values)  # type: ignore[attr-defined]
    elif not action.option_strings and action.choices is None:
        # Of free text there is nothing to propose, and told of it zsh inserts no option either.
        action.help = argparse.SUPPRESS


def find_parser(name: str) -> argparse.ArgumentParser | None:
    """The parser of a command, or None where it is no part of this installation."""
    place = COMMANDS[name][0]
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise
        return None
    found: argparse.ArgumentParser = module.parser()
    return found


def values_of(action: argparse.Action) -> Values | None:
    """What an option or argument takes, or None where nothing can be proposed."""
    if action.choices is not None or action.nargs == 0:
        return None  # shtab knows
    if action.dest == "dtype":
        return DTYPE
    name = action.metavar if isinstance(action.metavar, str) else ""
    is_path = action.type is Path or bool(PATHS & set(name.split("|")))
    return TAKES.get(name, FILE if is_path else None)


def completer(values: Values) -> dict[str, Any]:
    """The same as shtab takes it: a function for each shell, and its text.

    shtab's own functions break names with spaces in bash; macOS names its screenshots so.
    """
    function = f"_mlx_qwenvl_{values.label}"
    words = " ".join(values.words)
    bash, zsh, fish = [], [], []
    if words:
        bash.append(f'compgen -W "{words}" -- "$word"')
        zsh.append(f"'names:name:({words})'")
        fish.append(f"string split ' ' '{words}'")
    if values.paths == "all":
        bash.append('compgen -f -- "$word"')
        zsh.append("'files:file:_files'")
        fish.append("complete -C \"'' \"(commandline -ct)")
    elif values.paths == "folders":
        bash.append('compgen -d -- "$word"')
        zsh.append("'folders:folder:_files -/'")
        fish.append("__fish_complete_directories (commandline -ct)")
    # bash gives the word as typed: with backslashes, and a quote that is still open.
    typed = r"local word=${1//\\/}; word=${word#\"}; word=${word#\'}"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({function})",
        "preamble": {
            "bash": "\n  ".join([f"{function}() {{", typed, *bash]) + "\n}",
            "zsh": f"{function}() {{ _alternative {' '.join(zsh)} }}",
            "fish": "\n  ".join([f"function {function}", *fish]) + "\nend",
        },
    }


if __name__ == "__main__":
    sys.exit(main())
