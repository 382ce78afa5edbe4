"""`docs/benchmarks.md` from measurements."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import CASES, SHORT_TOKENS, SYSTEM_TOKENS
from benchmarks.peers.identity import identity
from benchmarks.peers.plans import PLANS
from benchmarks.peers.rows import ROWS

BASE = "ours"
PAIRS = (  # one of ours by one of theirs
    ("ours", "mlx-vlm"),
    ("ours-bfloat16", "mlx-vlm"),
    ("ours", "mlx-vlm-float32-openblas"),
    ("ours-dense", "transformers"),
    ("ours", "mistralrs"),
    ("ours", "llama-cpp"),
)
MODELS = {
    "demo": "the embedded model, 3.4 million parameters, not quantized",
    "0.1b": "random weights, 0.13 billion parameters, the decoder at 4 bits",
    "2b": "Qwen2-VL-2B's shape with random weights, the decoder at 4 bits",
}
Entry = dict[str, Any]
Rounds = dict[tuple[int, int], Entry]  # by group and round
Rows = dict[str, Rounds]
HEAD = """\
# Ours and others on the same machine

Written by `python -m benchmarks.peers`; nothing here was measured on a Mac, and nothing with an
NVIDIA GPU: none was at hand. Each row is a process of its own with its own Python; they took turns,
the others stopped, and whoever came first in one round came last in the next. A figure is the
median of its rounds, then least and most. **"Ours by theirs" is, pair by pair within a round, our
time by theirs, or their rate by ours, as a median: below 1 ours is faster.** Memory is the
process's resident peak while the case ran (Linux), ours by theirs as well.

All take the likeliest token and heed no end token. Each round asks about other pictures and texts.
Ours answers with `cache=False` wherever the case is not about what is kept, and decodes without the
speculation of `speed.md`. OpenBLAS is left to choose for the processor that it finds.
"""


def page(entries: Sequence[Entry]) -> str:
    """The whole page; of a repeated measurement the last one counts."""
    latest: dict[tuple[Any, ...], Entry] = {}
    for entry in entries:
        key = (entry["model"], entry["case"], entry["row"], entry.get("group"), entry.get("round"))
        latest[key] = entry
    return "\n".join(_lines(list(latest.values()))) + "\n"


def _lines(entries: Sequence[Entry]) -> Iterator[str]:
    yield HEAD
    yield from _where(entries)
    yield "\n## In short\n"
    yield from _summary(entries)
    yield "\n## The rows\n"
    met = {entry["row"] for entry in entries}
    yield from (f"- {name}: {row.note}" for name, row in ROWS.items() if name in met)
    for model, what in MODELS.items():
        mine = [entry for entry in entries if entry["model"] == model]
        if not mine:
            continue
        yield f"\n## {model}\n"
        yield from _asked(model, what)
        yield from identity(mine)
        for name, case in CASES.items():
            of_case = [entry for entry in mine if entry["case"] == name]
            if of_case:
                yield f"\n### {case.title}\n"
                yield from _table(of_case, case.unit)


def _where(entries: Sequence[Entry]) -> Iterator[str]:
    days = sorted({datetime.date.fromtimestamp(entry["at"]).isoformat() for entry in entries})
    loads = [entry["load"] for entry in entries]
    versions: dict[str, str] = {}
    for entry in entries:
        versions |= entry.get("versions", {})
    blas = sorted({entry["blas"] for entry in entries if entry.get("blas")})
    yield f"- Date: {' to '.join(dict.fromkeys((days[0], days[-1])))}"
    yield f"- Machine: {_processor()}, {platform.system()} {platform.machine()}"
    yield f"- Load average while measuring: {min(loads):.1f} to {max(loads):.1f}"
    yield f"- Versions: {', '.join(f'{name} {v}' for name, v in sorted(versions.items()))}"
    yield f"- Ours multiplies with: {', '.join(blas) or 'not told'}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    name = platform.processor() or "unknown processor"
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        named = [line for line in lines if line.startswith("model name")]
        name = named[0].partition(":")[2].strip() if named else name
    return f"{name}, {os.cpu_count()} cores"


def _summary(entries: Sequence[Entry]) -> Iterator[str]:
    """One quotient for each case and pair of rows, and that of memory."""
    yield "Ours by theirs. Memory: the largest such quotient of all cases.\n"
    yield f"| model | case | {' | '.join(f'{own} by {theirs}' for own, theirs in PAIRS)} |"
    yield "|---" * (len(PAIRS) + 2) + "|"
    for model in MODELS:
        rows = {
            name: _by_row(e for e in entries if (e["model"], e["case"]) == (model, name))
            for name in CASES
        }
        for name, case in CASES.items():
            found = rows[name]
            cells = [_ratio(_of(found, own), _of(found, peer), case.unit) for own, peer in PAIRS]
            if any(cells):
                yield f"| {model} | {case.title} | {' | '.join(cells)} |"
        cells = [_memory(rows.values(), own, peer) for own, peer in PAIRS]
        if any(cells):
            yield f"| {model} | peak memory | {' | '.join(cells)} |"


def _memory(cases: Iterable[Rows], own: str, peer: str) -> str:
    """The largest quotient of peaks over the cases that both did."""
    peaks = [(_peak(_of(rows, own)), _peak(_of(rows, peer))) for rows in cases]
    quotients = [ours / theirs for ours, theirs in peaks if ours and theirs]
    return f"{max(quotients):.2f}" if quotients else ""


def _asked(model: str, what: str) -> Iterator[str]:
    plan = PLANS[model]
    (width, height), (small_width, small_height) = plan.picture, plan.small
    yield (
        f"{what[0].upper()}{what[1:]}. Where decoding is measured, answers of {plan.decoded} "
        f"tokens. Prompts have {SYSTEM_TOKENS} + {SHORT_TOKENS} tokens beside the template; "
        f'"{CASES["prefill"].title}" and "{CASES["picture"].title}" {plan.long_tokens}, the latter '
        f"with {width}x{height} pixels. Other pictures are of {small_width}x{small_height}.\n"
    )
    left = [CASES[name].title for name in CASES if plan.cases and name not in plan.cases]
    if left:
        yield f"Left out, as some rows need seconds a token: {'; '.join(left)}.\n"
    for cases in dict.fromkeys(plan.slow.values()):
        names = ", ".join(row for row, asked in plan.slow.items() if asked == cases)
        titles = "; ".join(CASES[name].title for name in cases)
        yield f"Asked once, as slow as they are here, and only for this: {names} ({titles}).\n"


def _table(entries: Sequence[Entry], unit: str) -> Iterator[str]:
    rows = _by_row(entries)
    yield f"| | {unit} | pairs | ours by theirs | peak memory | ours by theirs |"
    yield "|---|---|---|---|---|---|"
    base = _of(rows, BASE)
    for name in (name for name in ROWS if name in rows):
        good = _of(rows, name)
        if not good:
            last = list(rows[name].values())[-1]
            why = _cell(last.get("unsupported") or last.get("error", ""))
            yield f"| {name} | {why} | | | | |"
            continue
        peak, own = _peak(good), _peak(base)
        cells = [
            name,
            _spread([entry["figure"] for entry in good.values()]),
            str(len(base.keys() & good.keys())),
            _ratio(base, good, unit),
            f"{peak / 1e6:.0f} MB" if peak else "",
            f"{own / peak:.2f}" if peak and own else "",
        ]
        yield f"| {' | '.join(cells)} |"


def _by_row(entries: Iterable[Entry]) -> Rows:
    rows: Rows = defaultdict(dict)
    for entry in entries:
        if "round" in entry:
            rows[entry["row"]][entry["group"], entry["round"]] = entry
    return rows


def _of(rows: Rows, name: str) -> Rounds:
    """The rounds of one row that have a figure."""
    return {key: entry for key, entry in rows.get(name, {}).items() if "figure" in entry}


def _ratio(base: Rounds, theirs: Rounds, unit: str) -> str:
    shared = base.keys() & theirs.keys()
    quotients = [base[key]["figure"] / theirs[key]["figure"] for key in shared]
    if not quotients:
        return ""
    return f"{statistics.median(q if unit == 's' else 1 / q for q in quotients):.3g}"


def _peak(entries: Rounds) -> int:
    return max((entry.get("peak_bytes") or 0 for entry in entries.values()), default=0)


def _spread(values: Sequence[float]) -> str:
    low, middle, high = (f"{v:.3g}" for v in (min(values), statistics.median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def _cell(text: str) -> str:
    """Why there is no figure, in one line and without anybody's folders."""
    text = re.sub(r"(?:/[\w.+-]+)+/", "", text.replace("|", "/"))
    return "not measured: " + " ".join(text.split())[:160]
