"""`python -m mlx_qwenvl.convert`: write a copy of a model for MLX, quantized if wanted."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mlx_qwenvl.command import EXIT_INTERRUPTED, EXIT_OK, Parser, run
from mlx_qwenvl.errors import OptionError, QwenVLError
from mlx_qwenvl.weights.recipes import GROUP_SIZES, RECIPES
from mlx_qwenvl.weights.resolve import resolve_model

from .convert import DTYPES, Outcome, Wishes, convert
from .dequantize import dequantize
from .draft import how_to_go_on
from .progress import on_terminal
from .reporting.report import report, write_report
from .summary import summary

PROGRAM = "mlx-qwenvl convert"
VISION_BITS = (16, 8, 6, 5, 4)
# Options that say how to quantize.
QUANTIZING = (
    *("quantize", "group_size", "vision_bits", "topology", "calibrate", "single_file"),
    "report",
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog=PROGRAM,
        description="Write a copy of a model for MLX, quantized if wanted.",
        epilog=f"Recipes: {', '.join(RECIPES)}; names of llama.cpp and mistral.rs are understood.",
    )
    p.add_argument("--model", required=True, metavar="NAME|DIR", help="what to convert")
    p.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="a new folder; needed but to --upload one that is",
    )
    p.add_argument(
        *("--quantize", "-q"),
        nargs="+",
        action="extend",
        default=[],
        metavar="RECIPE",
        help="several, or joined by commas, make variants in one output; the first is its default",
    )
    p.add_argument("--group-size", type=int, choices=GROUP_SIZES, help="weights of one scale (64)")
    p.add_argument("--vision-bits", type=int, choices=VISION_BITS, help="16: the tower stays dense")
    p.add_argument("--topology", metavar="FILE", help="YAML: which parts to quantize otherwise")
    p.add_argument("--dtype", choices=DTYPES, help="of scales and of what stays dense")
    p.add_argument(
        "--calibrate", metavar="builtin|DIR", help="learn the rounding from pictures, or a folder"
    )
    p.add_argument("--dequantize", action="store_true", help="make a quantized model dense again")
    p.add_argument("--variant", metavar="NAME", help="which of its quantizations to make dense")
    p.add_argument(
        "--single-file", action="store_true", help="write one file with everything in it"
    )
    p.add_argument("--report", action="store_true", help="measure what was lost: JSON and a page")
    p.add_argument(
        "--upload", metavar="OWNER/MODEL", help="send the result, with a card, to the Hub"
    )
    p.add_argument("--private", action="store_true", help="where only you see it")
    p.add_argument("--allow-nonfinite", action="store_true", help="go on where weights are NaN")
    p.add_argument("--overwrite", action="store_true", help="replace the output, begin anew")
    p.add_argument("--resume", action="store_true", help="go on where it was broken off")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: _convert(arguments), PROGRAM)


def _convert(arguments: argparse.Namespace) -> int:
    begin = time.perf_counter()
    if arguments.private and arguments.upload is None:
        raise OptionError("--private goes with --upload")
    if arguments.upload is not None:
        if arguments.single_file:
            raise OptionError("--upload sends a folder; it does not go with --single-file")
        # Imported late: the Hub's client takes half a second, which only --upload needs.
        from .publishing.upload import stored_token

        stored_token()  # told now rather than after hours
    if arguments.output is None:
        return _upload_only(arguments)
    try:
        outcome = _dense(arguments) if arguments.dequantize else _quantized(arguments)
    except KeyboardInterrupt:
        output = arguments.output.expanduser().absolute()
        print(f"{PROGRAM}: interrupted; {how_to_go_on(output)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    seconds = time.perf_counter() - begin
    print("\n".join(summary(outcome, seconds, peak_memory())), file=sys.stderr)
    if arguments.report:
        _report(arguments, outcome, seconds)
    if arguments.upload is not None:
        try:
            _upload(arguments, outcome.output)
        except QwenVLError as error:
            again = f"--model {outcome.output} --upload {arguments.upload}"
            raise QwenVLError(f"{error}; the folder is ready, and {again} sends it") from None
    return EXIT_OK


def _upload_only(arguments: argparse.Namespace) -> int:
    """Send a folder that was converted before."""
    if arguments.upload is None:
        raise OptionError("--output is missing: a new folder for the result")
    given = vars(arguments)
    idle = [name for name in (*QUANTIZING, "dequantize", "dtype") if given[name]]
    if idle:
        option = idle[0].replace("_", "-")
        raise OptionError(f"--{option} changes the model, so it needs an --output")
    _upload(arguments, resolve_model(arguments.model))
    return EXIT_OK


def _upload(arguments: argparse.Namespace, folder: Path) -> None:
    from .publishing.share import share

    address = share(
        folder, arguments.upload, private=arguments.private, progress=sys.stderr.isatty()
    )
    print(f"it is at {address}", file=sys.stderr)


def _wishes(arguments: argparse.Namespace) -> Wishes:
    recipes = [name for given in arguments.quantize for name in given.split(",") if name.strip()]
    if arguments.quantize and not recipes:
        raise OptionError("--quantize names no recipe; without it the copy stays dense")
    return Wishes(
        recipes=tuple(recipes) or ("none",),
        vision_bits=arguments.vision_bits,
        group_size=arguments.group_size,
        topology=arguments.topology,
        dtype=arguments.dtype,
        calibrate=arguments.calibrate,
        allow_nonfinite=arguments.allow_nonfinite,
    )


def _quantized(arguments: argparse.Namespace) -> Outcome:
    if arguments.variant is not None:
        raise OptionError("--variant goes with --dequantize; what is converted is dense")
    return convert(
        resolve_model(arguments.model, progress=sys.stderr.isatty()),
        arguments.output,
        _wishes(arguments),
        name=arguments.model,
        single_file=arguments.single_file,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        progress=on_terminal(),
    )


def _dense(arguments: argparse.Namespace) -> Outcome:
    given = vars(arguments)
    idle = [name for name in QUANTIZING if given[name] not in (None, False, [])]
    if idle:
        option = idle[0].replace("_", "-")
        raise OptionError(f"--{option} does not go with --dequantize")
    return dequantize(
        resolve_model(arguments.model, arguments.variant, progress=sys.stderr.isatty()),
        arguments.output,
        variant=arguments.variant,
        dtype=arguments.dtype,
        allow_nonfinite=arguments.allow_nonfinite,
        name=arguments.model,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        progress=on_terminal(),
    )


def _report(arguments: argparse.Namespace, outcome: Outcome, seconds: float) -> None:
    source = resolve_model(arguments.model)
    measured = report(
        source,
        outcome,
        _wishes(arguments),
        name=arguments.model,
        seconds=seconds,
        peak_bytes=peak_memory(),
        progress=on_terminal(),
    )
    _, page = write_report(measured, outcome.output)
    for variant in measured.variants:
        quality = variant.quality
        print(
            f"{variant.name}: KL {quality.mean_kl:.4f} nats a token, the same token first in "
            f"{quality.top1:.1%}",
            file=sys.stderr,
        )
    print(f"report: {page}", file=sys.stderr)


def peak_memory() -> int:
    """Most bytes that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kilobytes


if __name__ == "__main__":
    sys.exit(main())
