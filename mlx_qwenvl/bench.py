"""`mlx-qwenvl bench`: how fast a model answers on this machine."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_qwenvl.benching.figures import Figures
from mlx_qwenvl.benching.measure import Plan, measure, read_batch
from mlx_qwenvl.benching.submit import TOGGLES, figures_from, switched
from mlx_qwenvl.benching.table import plot, require_plot, to_block, to_lines
from mlx_qwenvl.command import EXIT_OK, Parser, run
from mlx_qwenvl.errors import OptionError, QwenVLError
from mlx_qwenvl.weights.choice import default_model

PROGRAM = "mlx-qwenvl bench"

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog=PROGRAM,
        description="Measure how fast a model answers on this machine.",
        epilog="Nothing leaves this machine: --submit prints a block for you to paste.",
    )
    p.add_argument("--model", metavar="NAME|DIR", help="by default the chosen model")
    p.add_argument("--dtype", help="float32, float16 or bfloat16")
    p.add_argument("--prompt-tokens", type=int, default=256, metavar="N", help="of text (256)")
    p.add_argument("--image", default="448x448", metavar="WxH", help="the picture (448x448)")
    p.add_argument("--tokens", type=int, default=64, metavar="N", help="of each answer (64)")
    p.add_argument("--batch", default="1,2,4,8", metavar="N,...", help="answers at once (1,2,4,8)")
    p.add_argument("--rounds", type=int, default=3, metavar="N", help="for the medians (3)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture, too (matplotlib)")
    p.add_argument("--submit", action="store_true", help="print a block to paste into an issue")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: _bench(arguments), PROGRAM)


def _bench(arguments: argparse.Namespace) -> int:
    plan = _plan(arguments)
    if arguments.submit and (arguments.json or arguments.plot):
        raise OptionError("--submit prints a block of its own; leave --json and --plot away")
    if arguments.submit:
        print("\n".join(to_block(_side_by_side(plan))))
        return EXIT_OK
    if arguments.plot is not None:
        require_plot(arguments.plot)
    figures = measure(plan, _tell)
    print(json.dumps(figures.to_dict()) if arguments.json else "\n".join(to_lines(figures)))
    if arguments.plot is not None:
        plot(figures, arguments.plot)
    return EXIT_OK


def _plan(arguments: argparse.Namespace) -> Plan:
    match = _SIZE.fullmatch(arguments.image)
    if match is None:
        raise OptionError(f"--image {arguments.image} is no size; expected one such as 448x448")
    for name, least in (("prompt_tokens", 1), ("tokens", 2), ("rounds", 1)):
        if getattr(arguments, name) < least:
            option = name.replace("_", "-")
            raise OptionError(f"--{option} is {getattr(arguments, name)}, expected {least} or more")
    return Plan(
        model=default_model() if arguments.model is None else arguments.model,
        dtype=arguments.dtype,
        prompt_tokens=arguments.prompt_tokens,
        image=(int(match[1]), int(match[2])),
        answer_tokens=arguments.tokens,
        batch=read_batch(arguments.batch),
        rounds=arguments.rounds,
    )


def _side_by_side(plan: Plan) -> dict[str, Figures]:
    """Measure as the package comes and with each switch turned, each in a process of its own."""
    found: dict[str, Figures] = {}
    for name, environment in TOGGLES.items():
        _tell(f"measuring: {name}")
        done = subprocess.run(
            [sys.executable, "-m", "mlx_qwenvl.bench", *_options(plan), "--json"],
            env=switched(environment),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last: list[str] = done.stderr.strip().splitlines()[-1:]
            raise QwenVLError(f"{name}: {''.join(last).removeprefix(f'{PROGRAM}: ')}")
        measured: dict[str, Any] = json.loads(done.stdout)
        found[name] = figures_from(measured)
    return found


def _options(plan: Plan) -> list[str]:
    width, height = plan.image
    return [
        *("--model", plan.model),
        *(() if plan.dtype is None else ("--dtype", plan.dtype)),
        *("--prompt-tokens", str(plan.prompt_tokens)),
        *("--image", f"{width}x{height}"),
        *("--tokens", str(plan.answer_tokens)),
        *("--batch", ",".join(map(str, plan.batch))),
        *("--rounds", str(plan.rounds)),
    ]


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
