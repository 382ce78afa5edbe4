"""What rank 0 tells the others, and what they tell it."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.inputs.prompt import Prompt

# Of one event of a step: its job, which answer, the tokens heard, and how it ended or "".
Heard = tuple[int, int, tuple[int, ...], str]


@dataclass(frozen=True)
class Hello:
    """A rank's first word.

    Attributes:
        rank: Its number.
        size: How many ranks it counts.
    """

    rank: int
    size: int


@dataclass(frozen=True)
class Facts:
    """What has to be equal on all ranks, by what people call it."""

    facts: dict[str, str]


@dataclass(frozen=True)
class Open:
    """Make a scheduler."""

    scheduler: int
    max_running: int
    in_bulk: bool


@dataclass(frozen=True)
class Add:
    """Queue a question in a scheduler, under a number of its own."""

    scheduler: int
    job: int
    prompt: Prompt
    options: Options
    n: int


@dataclass(frozen=True)
class Cancel:
    """Withdraw a question."""

    scheduler: int
    job: int


@dataclass(frozen=True)
class Step:
    """Do a step of a scheduler.

    Attributes:
        scheduler: Which.
        before: What came of its step before on rank 0, which has to be what came of it elsewhere.
    """

    scheduler: int
    before: tuple[Heard, ...]


@dataclass(frozen=True)
class Close:
    """Let a scheduler go."""

    scheduler: int


@dataclass(frozen=True)
class End:
    """The sender ends.

    Attributes:
        code: Its exit code.
        why: What went wrong, or nothing.
    """

    code: int
    why: str


Command = Open | Add | Cancel | Step | Close
