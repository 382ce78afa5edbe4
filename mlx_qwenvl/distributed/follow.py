"""What every rank but 0 does: as it is told, until rank 0 ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mlx_qwenvl.distributed.commands import Add, Cancel, Close, Command, Heard, Open, Step
from mlx_qwenvl.distributed.lead import heard_of, refuse_faults
from mlx_qwenvl.distributed.line import Ended
from mlx_qwenvl.distributed.ranks import Ranks
from mlx_qwenvl.engine.job import Job
from mlx_qwenvl.engine.scheduler import Scheduler
from mlx_qwenvl.engine.telling import Stopwatch


@dataclass
class _Led:
    """A scheduler as rank 0 has it.

    Attributes:
        scheduler: This rank's.
        jobs: Its questions by rank 0's numbers.
        before: What came of its last step.
    """

    scheduler: Scheduler
    jobs: dict[int, Job] = field(default_factory=dict)
    before: tuple[Heard, ...] = ()


def follow(ranks: Ranks, make: Callable[[int, bool], Scheduler]) -> int:
    """Do what rank 0 says; give the exit code that it ends with.

    Args:
        ranks: The processes.
        make: Makes a scheduler of `max_running` and `in_bulk`.

    Raises:
        RanksLost: Rank 0 or another is gone, or this one does something else than rank 0.
    """
    led: dict[int, _Led] = {}
    while True:
        try:
            command = ranks.next()
            with ranks.working():
                _obey(ranks, command, led, make)
        except Ended as end:
            return int(end.code or 0)


def _obey(
    ranks: Ranks, command: Command, led: dict[int, _Led], make: Callable[[int, bool], Scheduler]
) -> None:
    if isinstance(command, Open):
        led[command.scheduler] = _Led(make(command.max_running, command.in_bulk))
        return
    ours = led[command.scheduler]
    if isinstance(command, Add):
        ours.jobs[command.job] = ours.scheduler.add(
            command.prompt, command.options, Stopwatch(), n=command.n
        )
    elif isinstance(command, Cancel):
        ours.scheduler.cancel(ours.jobs.pop(command.job))
    elif isinstance(command, Close):
        del led[command.scheduler]
    elif isinstance(command, Step):
        if command.before != ours.before:
            raise ranks.out_of_step(f"it heard {ours.before}, rank 0 {command.before}")
        events = ours.scheduler.step()
        ours.before = heard_of(events, {job: number for number, job in ours.jobs.items()})
        refuse_faults(events)
        ours.jobs = {number: job for number, job in ours.jobs.items() if not job.is_over}
