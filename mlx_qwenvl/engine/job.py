"""A question on its way through the scheduler, and what is heard of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.crowd import Member
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import Filling, Prefilled
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.engine.telling import Stopwatch
from mlx_qwenvl.errors import MemoryExceeded
from mlx_qwenvl.inputs.prompt import Prompt

NO_MEMORY = ("allocate", "malloc", "Insufficient Memory")  # in what MLX says then


@dataclass(eq=False)
class Job:
    """One question and its answers.

    Attributes:
        prompt: What is asked.
        options: The call's, with `max_tokens` cut to the room there is.
        n: How many answers.
        watch: The call's.
        stores: What it may reuse and leaves.
        progress: Prompt tokens that are computed or under way, and all of them.
        is_over: Whether nothing more comes: finished, failed or withdrawn.

    What begins with an underscore is the scheduler's.
    """

    prompt: Prompt = field(repr=False)
    options: Options = field(repr=False)
    n: int
    watch: Stopwatch = field(repr=False)
    stores: Stores = field(repr=False)
    progress: tuple[int, int]
    is_over: bool = False
    _conversation: Conversation | None = field(default=None, repr=False)
    _filling: Filling | None = field(default=None, repr=False)
    _filled: Prefilled | None = field(default=None, repr=False)
    _members: list[Member] = field(default_factory=list, repr=False)
    _begun: int = 0  # answers that were begun
    _ended: int = 0  # answers that are finished


@dataclass(frozen=True)
class Told:
    """A piece of one of a job's answers.

    Attributes:
        job: The job.
        index: Which of its answers.
        chunk: The piece; the last one of an answer has a finish reason.
    """

    job: Job
    index: int
    chunk: Chunk


@dataclass(frozen=True)
class Failed:
    """The end of a job that cannot be answered.

    Attributes:
        job: The job.
        error: Why.
    """

    job: Job
    error: Exception


Event = Told | Failed


def fault_of(error: Exception) -> Exception:
    """What a job's exception means."""
    is_mlx = isinstance(error, RuntimeError) and any(word in str(error) for word in NO_MEMORY)
    if is_mlx or isinstance(error, MemoryError):
        return MemoryExceeded(
            "the device ran out of memory at this question; lower max_pixels, shorten the prompt, "
            "or run fewer at a time"
        )
    return error
