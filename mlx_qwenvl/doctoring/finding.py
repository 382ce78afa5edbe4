"""One thing that was looked at, and how it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["fine", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        name: Of the thing, short.
        value: What was found, as people read it.
        state: "fine", "note" where something could be better, or "broken".
        advice: What to do, in one line; empty where there is nothing to do.
        data: The same for programs, as JSON holds it; sizes in bytes, times in seconds.
    """

    name: str
    value: str
    state: State = "fine"
    advice: str = ""
    data: Any = None


def look(name: str, find: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What `find` finds, and where it fails a finding that says so: nothing else fails with it.

    Args:
        name: Of the finding that tells of a failure.
        find: Looks at something.
    """
    try:
        yield from find()
    except Exception as error:  # whatever is wrong with a machine is a finding
        yield Finding(name, f"cannot be told: {reason(error)}", "broken")


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text.splitlines()[0]
