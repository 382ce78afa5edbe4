"""`mlx-qwenvl COMMAND ...`: the command lines under one name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from mlx_qwenvl.command import COMMANDS, EXIT_ERROR, EXIT_OK, EXIT_USAGE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands and give its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("--version", "-V"):
        from mlx_qwenvl import __version__

        print(__version__)
        return EXIT_OK
    if not arguments or arguments[0] in ("--help", "-h"):
        print("usage: mlx-qwenvl COMMAND ...\n")
        for name, (_, purpose) in COMMANDS.items():
            print(f"  {name:<12}{purpose}")
        return EXIT_OK if arguments else EXIT_USAGE
    if arguments[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"mlx-qwenvl: no command {arguments[0]!r}; there is {known}", file=sys.stderr)
        return EXIT_USAGE
    module = COMMANDS[arguments[0]][0]
    try:
        # Imported only now: each command pays for its own libraries.
        main_of: object = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        print(
            f"mlx-qwenvl: {arguments[0]} is not part of this installation; `pip install -e .` "
            "installs a checkout",
            file=sys.stderr,
        )
        return EXIT_ERROR
    assert callable(main_of)
    return int(main_of(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
