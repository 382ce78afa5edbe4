"""`python -m mlx_qwenvl.server --model NAME`: serve a model on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from mlx_qwenvl.command import EXIT_OK, Parser, announce_demo, run
from mlx_qwenvl.errors import QwenVLError
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
    return run(lambda: _serve(arguments), PROGRAM)


def _serve(arguments: argparse.Namespace) -> int:
    settings, loading = options.read(arguments)
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
        return load(**asdict(loading), progress=sys.stderr.isatty())

    serve(open_model, settings, loading.model)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
