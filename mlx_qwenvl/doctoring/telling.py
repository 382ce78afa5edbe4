"""Findings as text to paste, without a home folder or a user's name in it."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_qwenvl.doctoring.finding import Finding

MARKS = {"fine": " ", "note": "!", "broken": "x"}
WIDTH = 16  # of names, in characters


def to_line(finding: Finding) -> str:
    """One line of the block: a mark, a name, what was found."""
    return private(f"{MARKS[finding.state]} {finding.name:<{WIDTH}}{finding.value}")


def to_end(findings: list[Finding]) -> Iterator[str]:
    """What to do, and a verdict."""
    for finding in findings:
        if finding.advice:
            mark = MARKS[finding.state]
            yield private(f"{mark} {finding.name}: {finding.advice}")
    broken = sum(finding.state == "broken" for finding in findings)
    notes = sum(finding.state == "note" for finding in findings)
    better = f"; {notes} could be better" if notes else ""
    yield f"{broken} broken{better}" if broken else f"nothing is broken{better}"


def to_dict(sections: list[tuple[str, list[Finding]]]) -> dict[str, Any]:
    """Everything as JSON holds it."""
    everything = [finding for _, findings in sections for finding in findings]
    return {
        "healthy": is_healthy(everything),
        "sections": {
            heading: [_clean(asdict(finding)) for finding in findings]
            for heading, findings in sections
        },
    }


def is_healthy(findings: list[Finding]) -> bool:
    """Whether nothing is broken."""
    return all(finding.state != "broken" for finding in findings)


def private(text: str) -> str:
    """Text with `~` for the home folder and USER for the user's name in paths."""
    for home in _homes():
        text = re.sub(rf"{re.escape(home)}(?=/|\W|$)", "~", text)
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such user is known
        return text
    return re.sub(rf"(?<=/){re.escape(user)}(?=/|\W|$)", "USER", text)


def _homes() -> list[str]:
    """The home folder as it is named and as it is, the longer first."""
    try:
        home = Path.home()
    except RuntimeError:
        return []
    names = {str(home), str(home.resolve())} - {"/"}
    return sorted(names, key=len, reverse=True)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return private(value)
    if isinstance(value, dict):
        return {name: _clean(inner) for name, inner in value.items()}
    return [_clean(inner) for inner in value] if isinstance(value, list) else value
