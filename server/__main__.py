"""`python -m mlx_qwenvl.server --model NAME`: serve a model on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from mlx_qwenvl.command import EXIT_OK, announce_demo, run
from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.vlm import QwenVL, load
from mlx_qwenvl.weights.resolve import DEMO

PROGRAM = "mlx-qwenvl serve"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    try:
        from .options import parser, read
        from .process import serve
    except ImportError as error:
        missing = error.name

        def explain() -> int:
            raise QwenVLError(f"the server needs {missing}; pip install 'mlx-qwenvl[server]'")

        return run(explain, PROGRAM)
    arguments = parser(PROGRAM).parse_args(argv)

    def body() -> int:
        settings, loading = read(arguments)
        if arguments.model is None and loading.model == DEMO:
            announce_demo()

        def open_model() -> QwenVL:
            return load(**asdict(loading), progress=sys.stderr.isatty())

        serve(open_model, settings, loading.model)
        return EXIT_OK

    return run(body, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
