"""The self-test as the doctor tells it; `exam.py` takes it in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_qwenvl.doctoring.finding import Finding
from mlx_qwenvl.doctoring.isolate import Heard, hear

PATIENCE = 180.0  # seconds for all of it, without OpenBLAS on a busy machine
REPAIR = (
    "mend what is broken above; else install the package anew: pip install --force-reinstall "
    "--no-deps mlx-qwenvl"
)
REPORT = "please report it, with all of this text"


def findings() -> Iterator[Finding]:
    """Take the self-test and tell how it went."""
    yield from told(hear("mlx_qwenvl.doctoring.exam", PATIENCE))


def told(heard: Heard) -> Iterator[Finding]:
    """What the process said that took it."""
    for stage in heard.told:
        yield _finding(stage)
    if heard.fault is not None:
        if not heard.told:
            yield Finding("loads", f"not: {heard.fault}", "broken", REPAIR)
            return
        after = heard.told[-1]["stage"]
        yield Finding("self-test", f"it ended after {after!r}: {heard.fault}", "broken", REPORT)


def _finding(stage: dict[str, Any]) -> Finding:
    name, seconds = stage["stage"], f"{stage['seconds']:.2f} s"
    if name == "loads":
        return Finding(name, f"the embedded model, in {seconds}", data=stage)
    if name == "sees":
        said = ", ".join(f'"{text}"' for text in stage["answers"].values())
        if stage["right"]:
            return Finding(name, f"{said} in {seconds}", data=stage)
        asked = f"{stage['question']} of {', '.join(stage['answers'])}"
        return Finding(name, f"wrongly: {asked}: {said}", "broken", REPORT, data=stage)
    worst, tolerance = stage["worst"], stage["tolerance"]
    off = "not finite" if worst is None else f"off by {worst:.0e} of the largest"
    value = f"{off}, {tolerance:.0e} allowed"
    if worst is not None and worst <= tolerance:
        return Finding(name, value, data=stage)
    return Finding(name, value, "broken", REPORT, data=stage)
