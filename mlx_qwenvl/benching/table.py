"""Figures as people read them: a table, a block to paste, a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_qwenvl.benching.figures import Figures, Spread
from mlx_qwenvl.benching.machine import Machine
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.sizes import in_bytes


def to_lines(figures: Figures) -> Iterator[str]:
    """A small table; each line has a median and, where rounds differ, least and most."""
    machine = figures.machine
    width, height = figures.image
    yield f"{figures.model} on {describe(machine)}"
    yield (
        f"Prompt of {figures.prompt_tokens} tokens, {figures.image_tokens} of them a picture of "
        f"{width}x{height}; answers of {figures.answer_tokens}; medians of {figures.rounds}."
    )
    for name, value in rows(figures):
        yield f"  {name:<24}{value}"


def rows(figures: Figures) -> Iterator[tuple[str, str]]:
    """Names and values of all figures."""
    yield "load", f"{_number(figures.load)} s"
    yield "vision", _seconds(figures.vision)
    rate = figures.prefill_rate.median
    yield "prefill", f"{_seconds(figures.prefill)}, {_number(rate)} tokens/s"
    yield "first token", _seconds(figures.first_token)
    share = figures.ceiling_share
    of_ceiling = "" if share is None else f", {share:.0%} of what memory's bandwidth allows"
    yield "decode", f"{_rate(figures.decode_rate)}{of_ceiling}"
    yield "next turn's first token", _seconds(figures.next_first_token)
    for count, spread in figures.batch_rates.items():
        yield f"{count} at once", _rate(spread)
    held = f"{in_bytes(figures.peak_memory)} in MLX, {in_bytes(figures.resident)} resident"
    yield "peak memory", held


def describe(machine: Machine) -> str:
    """A machine in one line."""
    cores = "" if machine.gpu_cores is None else f" ({machine.gpu_cores}-core GPU)"
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"{machine.chip}{cores}, {in_bytes(machine.memory)}, {machine.system}, computing on the "
        f"{machine.device.upper()}; {versions}"
    )


def to_block(runs: Mapping[str, Figures]) -> Iterator[str]:
    """One block to paste into an issue: a Markdown table with a column for each run.

    Args:
        runs: Figures by what was switched; the first is as the package comes.
    """
    first = next(iter(runs.values()))
    width, height = first.image
    yield "<!-- mlx-qwenvl bench --submit -->"
    yield f"Machine: {describe(first.machine)}  "
    yield (
        f"Model: {first.model}; prompt {first.prompt_tokens} tokens, picture {width}x{height} "
        f"({first.image_tokens} tokens), answer {first.answer_tokens}, medians of {first.rounds}"
    )
    yield ""
    yield "| | " + " | ".join(runs) + " |"
    yield "|---" * (len(runs) + 1) + "|"
    for lines in zip(*(rows(figures) for figures in runs.values()), strict=True):
        yield f"| {lines[0][0]} | " + " | ".join(value for _, value in lines) + " |"


def plot(figures: Figures, file: Path) -> None:
    """Draw where the time to the first token goes, and the rates of decoding.

    Args:
        figures: What was measured.
        file: One that `require_plot` took.
    """
    pyplot = _pyplot()
    canvas, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    times = {
        "vision": figures.vision,
        "prefill": figures.prefill,
        "first token": figures.first_token,
        "next turn": figures.next_first_token,
    }
    left.barh(list(times), [value.median for value in times.values()], xerr=_errors(times))
    left.invert_yaxis()
    left.set_xlabel("seconds")
    rates = {str(count): rate for count, rate in figures.batch_rates.items()}
    right.bar(list(rates), [value.median for value in rates.values()], yerr=_errors(rates))
    right.set_xlabel("sequences at once")
    right.set_ylabel("tokens per second, all together")
    canvas.suptitle(f"{figures.model}, {figures.machine.chip}")
    try:
        canvas.savefig(file, dpi=150)
    finally:
        pyplot.close(canvas)


def require_plot(file: Path) -> None:
    """Refuse to measure for a picture that cannot be drawn.

    Raises:
        OptionError: matplotlib is not installed or knows no such files, or the folder is missing.
    """
    known = _pyplot().figure().canvas.get_supported_filetypes()
    _pyplot().close()
    if file.suffix.removeprefix(".").lower() not in known:
        raise OptionError(f"--plot {file} ends in none of {', '.join(sorted(known))}")
    if not file.parent.is_dir():
        raise OptionError(f"--plot {file} is in no folder; expected one that is there")


def _pyplot() -> Any:
    """The plotting module without a window; a dependency only where asked for."""
    try:
        import matplotlib
    except ImportError:
        raise OptionError("--plot draws with matplotlib; `pip install matplotlib`") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _errors(values: Mapping[str, Spread]) -> list[list[float]]:
    return [
        [value.median - value.low for value in values.values()],
        [value.high - value.median for value in values.values()],
    ]


def _seconds(spread: Spread) -> str:
    return f"{_number(spread.median)} s{_range(spread)}"


def _rate(spread: Spread) -> str:
    return f"{_number(spread.median)} tokens/s{_range(spread)}"


def _range(spread: Spread) -> str:
    low, high = _number(spread.low), _number(spread.high)
    return "" if low == high else f" ({low} to {high})"


def _number(value: float) -> str:
    """Three figures."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4}f}"
