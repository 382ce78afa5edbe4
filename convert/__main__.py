"""`python -m mlx_qwenvl.convert`: write a quantized copy of a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_qwenvl.command import EXIT_OK, Parser, run
from mlx_qwenvl.weights.quantize import RECIPES
from mlx_qwenvl.weights.resolve import resolve_model

from .convert import convert

PROGRAM = "mlx-qwenvl convert"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    p = Parser(prog=PROGRAM, description="Write a copy of a model for MLX, quantized if wanted.")
    p.add_argument("--model", required=True, metavar="NAME|DIR", help="what to convert")
    p.add_argument("--output", required=True, type=Path, metavar="DIR", help="a new folder")
    p.add_argument("--quantize", metavar="RECIPE", help=f"one of {', '.join(RECIPES)}")
    arguments = p.parse_args(argv)

    def body() -> int:
        source = resolve_model(arguments.model, progress=sys.stderr.isatty())
        convert(source, arguments.output, arguments.quantize)
        print(f"{arguments.output} is ready", file=sys.stderr)
        return EXIT_OK

    return run(body, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
