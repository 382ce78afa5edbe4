"""A report's mapping becomes one HTML page: its plots' scales and rows, and the words for numbers.

What is drawn where is decided in `page.html.jinja`. The page is whole in itself: no script, no
font, no picture comes from anywhere, and its own policy forbids a browser to fetch any.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from mlx_qwenvl.sizes import in_bytes

TEMPLATE = Path(__file__).with_name("page.html.jinja")
MOST_DECADES = 8  # of a logarithmic scale; what is smaller stands at its beginning
SOURCE = 0  # number of the source's colour and mark; the variants' follow

_LAYER = re.compile(r"(model\.layers|visual\.blocks)\.(\d+)\.(.+)")
_TOWERS = {"model.layers": "Decoder", "visual.blocks": "Vision tower"}
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Scale:
    """Where values stand on an axis.

    Attributes:
        low: The value at 0.
        high: The value at `length`.
        length: Of the axis, in the drawing's units.
        ticks: Values to mark.
        is_log: Whether equal steps are equal factors.
    """

    low: float
    high: float
    length: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def at(self, value: float) -> float:
        """The place of a value; one outside stands at the nearer end."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (value - low) / (high - low) if high > low else 0.0
        return round(self.length * min(max(share, 0.0), 1.0), 2)


@dataclass(frozen=True)
class Bar:
    """A row of a bar plot.

    Attributes:
        label: What it is about.
        series: Number of its colour.
        value: Its length, or None where there is no number.
        text: The value in words.
    """

    label: str
    series: int
    value: float | None
    text: str


@dataclass(frozen=True)
class Point:
    """A dot of a line plot.

    Attributes:
        layer: Number of the layer.
        error: Relative error.
        format: How the matrix is stored.
    """

    layer: int
    error: float
    format: str


@dataclass(frozen=True)
class Panel:
    """Errors of one projection in all layers.

    Attributes:
        projection: Its path within a layer.
        layers: The scale of layers.
        lines: Dots of every variant that quantizes it, by the variant's number.
    """

    projection: str
    layers: Scale
    lines: Mapping[int, Sequence[Point]]


@dataclass(frozen=True)
class Tower:
    """The panels of one tower, which share the scale of errors.

    Attributes:
        name: Such as "Decoder".
        errors: The scale.
        panels: One a projection.
    """

    name: str
    errors: Scale
    panels: tuple[Panel, ...]


def render_page(facts: Mapping[str, Any]) -> str:
    """Draw the page.

    Args:
        facts: What `Report.to_dict` gives.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    words = (in_bytes, percent, number, bits, duration, count)
    environment.filters |= {word.__name__: word for word in words}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    shown = _shown(facts)
    variants = shown["variants"]
    size_bars, bit_bars, other_bars = _size_bars(shown), _bit_bars(shown), _other_bars(variants)
    return template.render(
        **shown,
        linear=linear,
        models=[(name, entry) for _, name, entry in _all(shown)],
        size_bars=size_bars,
        most_bytes=_longest([size_bars]),
        bit_bars=bit_bars,
        most_bits=_longest(bit_bars.values()),
        is_copy=all(m["error"] == 0 for variant in variants for m in variant["modules"]),
        towers=_towers(variants),
        other_bars=other_bars,
        most_error=_longest(other_bars.values()),
        kl_scale=_kl_scale(variants),
        top1_bars=_top1_bars(variants),
        dense=_dense(variants),
    )


def linear(values: Iterable[float], length: float, most_ticks: int = 5) -> Scale:
    """A scale from 0 to the largest value, with round numbers marked."""
    high = max(values, default=0.0)
    if high <= 0:
        return Scale(0.0, 1.0, length, (0.0,))
    rough = high / most_ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    ticks = tuple(float(f"{step * index:.12g}") for index in range(math.floor(high / step) + 1))
    return Scale(0.0, high, length, ticks)


def logarithmic(values: Iterable[float], length: float) -> Scale | None:
    """A scale of whole decades around the values above 0, or None where there are none."""
    positive = [value for value in values if value > 0]
    if not positive:
        return None
    last = math.ceil(math.log10(max(positive)) + 1e-9)
    first = max(math.floor(math.log10(min(positive))), last - MOST_DECADES)
    ticks = tuple(10.0**power for power in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], length, ticks, is_log=True)


def percent(share: float | None) -> str:
    """A share of 1 as a percentage."""
    return "no number" if share is None else f"{100 * share:.2f} %"


def number(value: float | None) -> str:
    """Four digits of a number."""
    if value is None:
        return "no number"
    return "0" if value == 0 else f"{value:.4g}"


def bits(value: float) -> str:
    """Bits per weight."""
    return f"{value:.2f}"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def count(value: int) -> str:
    """A whole number in groups of three digits."""
    return f"{value:,}"


def _shown(value: Any) -> Any:
    """The same with texts that can neither end early nor turn the line around them."""
    if isinstance(value, str):
        return _CONTROLS.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_shown(key): _shown(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_shown(entry) for entry in value]
    return value


def _all(facts: Mapping[str, Any]) -> list[tuple[int, str, Mapping[str, Any]]]:
    """The source and the variants with their numbers and names."""
    variants = enumerate(facts["variants"], start=SOURCE + 1)
    return [(SOURCE, "source", facts["source"]), *((n, v["name"], v) for n, v in variants)]


def _longest(plots: Iterable[Iterable[Bar]]) -> float:
    """The largest value of some bar plots that share a scale."""
    values = (bar.value for rows in plots for bar in rows)
    return max((value for value in values if value is not None), default=0.0)


def _size_bars(facts: Mapping[str, Any]) -> list[Bar]:
    return [
        Bar(name, index, entry["nbytes"], in_bytes(entry["nbytes"]))
        for index, name, entry in _all(facts)
    ]


def _bit_bars(facts: Mapping[str, Any]) -> dict[str, list[Bar]]:
    """Bits per weight by part."""
    rows: dict[str, list[Bar]] = {}
    for index, name, entry in _all(facts):
        for part in entry["parts"]:
            value = part["bits_per_weight"]
            rows.setdefault(part["name"], []).append(Bar(name, index, value, bits(value)))
    return rows


def _top1_bars(variants: Sequence[Mapping[str, Any]]) -> list[Bar]:
    shares = [(variant["name"], variant["quality"]["top1"]) for variant in variants]
    return [
        Bar(name, index, share, percent(share))
        for index, (name, share) in enumerate(shares, start=SOURCE + 1)
    ]


def _kl_scale(variants: Sequence[Mapping[str, Any]]) -> Scale | None:
    """The scale of all divergences, or None where there is none above 0."""
    prompts = [prompt for variant in variants for prompt in variant["quality"]["prompts"]]
    values = [prompt[key] for prompt in prompts for key in ("mean_kl", "worst_kl")]
    return logarithmic((value for value in values if value is not None), length=540)


def _other_bars(variants: Sequence[Mapping[str, Any]]) -> dict[str, list[Bar]]:
    """Errors of quantized matrices outside the layers, by module."""
    rows: dict[str, list[Bar]] = {}
    for index, variant in enumerate(variants, start=SOURCE + 1):
        for module in variant["modules"]:
            error = module["error"]
            if not _LAYER.fullmatch(module["path"]) and error != 0:
                bar = Bar(variant["name"], index, error, f"{number(error)} ({module['format']})")
                rows.setdefault(module["path"], []).append(bar)
    return rows


def _towers(variants: Sequence[Mapping[str, Any]]) -> list[Tower]:
    """Errors within the layers; a projection that nothing was done to has no panel."""
    found: dict[str, dict[str, dict[int, list[Point]]]] = {}
    for index, variant in enumerate(variants, start=SOURCE + 1):
        for module in variant["modules"]:
            match = _LAYER.fullmatch(module["path"])
            if match is not None and module["error"]:
                lines = found.setdefault(match[1], {}).setdefault(match[3], {})
                point = Point(int(match[2]), module["error"], module["format"])
                lines.setdefault(index, []).append(point)
    return [_tower(_TOWERS[prefix], panels) for prefix, panels in found.items()]


def _tower(name: str, panels: Mapping[str, Mapping[int, Sequence[Point]]]) -> Tower:
    points = [p for lines in panels.values() for line in lines.values() for p in line]
    last = max(point.layer for point in points)
    step = math.ceil((last + 1) / 4)
    layers = Scale(0, last, 190, tuple(range(0, last + 1, step)))
    errors = linear((point.error for point in points), 100, most_ticks=4)
    return Tower(name, errors, tuple(Panel(p, layers, lines) for p, lines in panels.items()))


def _dense(variants: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Matrices that are not quantized, by variant and reason."""
    rows: dict[str, dict[str, list[str]]] = {}
    for variant in variants:
        for module in variant["modules"]:
            if module["dense_because"] is not None:
                reasons = rows.setdefault(variant["name"], {})
                reasons.setdefault(module["dense_because"], []).append(module["path"])
    return rows
