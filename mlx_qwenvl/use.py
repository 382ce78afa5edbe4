"""`mlx-qwenvl use NAME`: download a model once and answer with it from then on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_qwenvl.command import EXIT_OK, Parser, run
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.bundle import open_bundle
from mlx_qwenvl.weights.choice import VARIABLE, choose_model, default_model
from mlx_qwenvl.weights.resolve import DEMO, resolve_model
from mlx_qwenvl.weights.short_names import MODEL_NAMES

PROGRAM = "mlx-qwenvl use"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog=PROGRAM,
        description=f"Choose the model that answers when none is named (${VARIABLE} goes first).",
        epilog=f"Short names: demo, {', '.join(MODEL_NAMES)}; with their bits, such as 7b-8bit.",
    )
    p.add_argument(
        "name", nargs="?", metavar="NAME|DIR", help="what to choose; without it, tell the choice"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: _use(arguments.name), PROGRAM)


def _use(name: str | None) -> int:
    if name is None:
        print(default_model())
        return EXIT_OK
    found = resolve_model(name, progress=sys.stderr.isatty())
    with open_bundle(found) as bundle:
        Config.from_folder(bundle.folder)
    # A folder or file is remembered by its full path, so that it is found from anywhere.
    is_path = name != DEMO and Path(name).expanduser().exists()
    kept = str(found.resolve()) if is_path else name
    file = choose_model(kept)
    print(f"{kept} answers from now on ({file})", file=sys.stderr)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
