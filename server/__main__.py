"""`python -m mlx_qwenvl.server --model NAME`: serve a model on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from mlx_qwenvl.arguments import launched
from mlx_qwenvl.command import EXIT_OK, Parser, announce_demo, run
from mlx_qwenvl.errors import OptionError, QwenVLError
from mlx_qwenvl.vlm import QwenVL, load
from mlx_qwenvl.weights.resolve import DEMO

from . import options

PROGRAM = "mlx-qwenvl serve"


def parser() -> Parser:
    """The command line."""
    return options.parser(PROGRAM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: _serve(arguments), PROGRAM, alone=False)


def _serve(arguments: argparse.Namespace) -> int:
    ranks = launched()
    settings, loading = options.read(arguments)
    if ranks is not None and not ranks.leads:
        return load(**asdict(loading), ranks=ranks).follow()
    if ranks is not None and settings.idle_unload_s is not None:
        raise OptionError("--idle-unload is for one process, and several hold the model together")
    try:
        # Imported late: it needs what the extra brings, which --help does not.
        from .process import serve
    except ImportError as error:
        raise QwenVLError(
            f"the server needs {error.name}; pip install 'mlx-qwenvl[server]'"
        ) from None
    if arguments.model is None and loading.model == DEMO:
        announce_demo()

    def open_model() -> QwenVL:
        return load(**asdict(loading), progress=sys.stderr.isatty(), ranks=ranks)

    serve(open_model, settings, loading.model)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
