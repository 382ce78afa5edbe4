"""All targets, each with its share of the time."""

from __future__ import annotations

from benchmarks.fuzz.parsers import CALLS, MESSAGES
from benchmarks.fuzz.pictures import PICTURES
from benchmarks.fuzz.target import Target
from benchmarks.fuzz.texts import TEXTS

SHARES = {"pictures": 3, "texts": 1, "messages": 1, "calls": 1, "app": 4}


def target_of(name: str) -> Target:
    """The target of that name; the application is imported only where it is asked for."""
    if name == "app":
        from benchmarks.fuzz.app import APP

        return APP
    return {target.name: target for target in (PICTURES, TEXTS, MESSAGES, CALLS)}[name]
