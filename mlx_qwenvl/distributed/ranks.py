"""One process's place among those that hold a model together.

Rank 0 is asked and answers. The others run the same steps in the same order: rank 0 tells them each
question, each withdrawal and each step, and beside it every reading of its clock and every number
of bytes that something was decided by, which they take in place of their own. So nothing that
differs between machines can lead them apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import mlx.core as mx

from mlx_qwenvl.distributed.commands import Command, Facts
from mlx_qwenvl.distributed.line import Ended, Line, leave
from mlx_qwenvl.engine.agreed import Agreed
from mlx_qwenvl.errors import RanksLost
from mlx_qwenvl.models.share import Share


class Ranks:
    """The processes of one launch, as one of them sees them.

    Args:
        share: Which part of the model is this one's.
        line: Its connections.
        sums: The stream in which ranks add up; the thread's default one where there is none.

    Attributes:
        share: As given.
        agreed: What is decided by: on rank 0 its own clock and memory, on others rank 0's.
    """

    def __init__(self, share: Share, line: Line, sums: mx.Stream | None = None) -> None:
        self.share, self._line, self._sums = share, line, sums
        self._is_broken = False
        if self.leads:
            self.agreed = Agreed(self._tell_time, self._tell_number)
        else:
            self.agreed = Agreed(self._number, lambda ours: int(self._number()), is_asked=False)

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self.share.rank

    @property
    def size(self) -> int:
        """How many there are."""
        return self.share.size

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which is asked."""
        return self.rank == 0

    @property
    def reason(self) -> str | None:
        """Why the ranks cannot go on, or None."""
        return self._line.reason

    @property
    def go_on(self) -> bool:
        """Whether anything may still be computed together."""
        return not (self._is_broken or self.reason)

    def tell(self, command: Command) -> None:
        """Have the others do something.

        Raises:
            RanksLost: One of them is gone, or a step was broken off.
        """
        if self._is_broken:
            raise RanksLost(self.reason or "a step of several ranks was broken off")
        try:
            self._line.tell(command)
        except KeyboardInterrupt:  # some may have heard it and others not
            self._is_broken = True
            raise

    def next(self) -> Command:
        """Wait for what rank 0 has this one do.

        Raises:
            RanksLost: Rank 0 or another is gone, or they have fallen out of step.
            Ended: Rank 0 has ended.
        """
        _, word = self._line.hear()
        if not isinstance(word, Command):
            raise self.out_of_step(f"a command was to come and {word!r} came")
        return word

    @contextmanager
    def working(self) -> Iterator[None]:
        """Where something is computed together.

        Raises:
            RanksLost: It failed for all, whatever it was.
        """
        try:
            with self._line.busy():
                yield
        except (RanksLost, Ended):
            self._is_broken = True
            raise
        except Exception as error:
            self._is_broken = True
            raise self._line.lost_because(error) from error
        except BaseException:  # Ctrl-C, somewhere in the middle
            self._is_broken = True
            raise

    def compare(self, facts: Mapping[str, str]) -> None:
        """See that all ranks are about to do the same thing.

        Args:
            facts: What has to be equal, by what people call it, the most telling first.

        Raises:
            RanksLost: They are not.
        """
        with self._line.busy():
            if not self.leads:
                self._line.tell(Facts(dict(facts)))
                self._line.hear()
                return
            for _ in range(self.size - 1):
                rank, word = self._line.hear()
                theirs = word.facts if isinstance(word, Facts) else {}
                for name, ours in facts.items():
                    if theirs.get(name) != ours:
                        why = (
                            f"rank {rank} has another {name}: {theirs.get(name)}, rank 0 has {ours}"
                        )
                        raise self._line.lose(why)
            self._line.tell(Facts(dict(facts)))

    def when_lost(self, tell: Callable[[str], None], grace_s: float) -> None:
        """Have it told, in some thread, when the ranks cannot go on.

        Args:
            tell: Called with the reason.
            grace_s: Seconds until a step that waits in vain ends the process.
        """
        self._line.grace_s = grace_s
        self._line.when_lost(tell)

    def out_of_step(self, what: str) -> RanksLost:
        """The error of ranks that do not do the same thing; all of them are told."""
        return self._line.lose(f"rank {self.rank} has fallen out of step: {what}")

    def end(self, code: int, said: str = "") -> None:
        """Tell the others that this process ends; where steps were broken off it ends here.

        Args:
            code: The exit code.
            said: What its last words were, where it fails.
        """
        self._close(code, said)
        if not self.go_on:
            leave(code)

    def __enter__(self) -> Ranks:
        """Begin a block at whose end the others are told to end as well."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Tell the others to end: with what this one exits with, with 130 after Ctrl-C, else 1."""
        if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            self._close(error.code or 0, "")
        else:
            code = 0 if kind is None else 130 if issubclass(kind, KeyboardInterrupt) else 1
            self._close(code, "" if error is None else str(error))

    def _close(self, code: int, said: str) -> None:
        if code == 0 and self.go_on:
            # A step leaves the next token under way, and whoever is left alone with it finds its
            # connections closed. Where they are closed by now, nobody needs it any more.
            with suppress(RuntimeError), self._line.busy():
                mx.synchronize(self._sums)
        self._line.close(code, "" if self.leads else said)

    def _tell_time(self) -> float:
        now = time.perf_counter()
        self._line.tell(now)
        return now

    def _tell_number(self, number: int) -> int:
        self._line.tell(number)
        return number

    def _number(self) -> float:
        _, word = self._line.hear()
        if isinstance(word, (int, float)):
            return word
        raise self.out_of_step(f"a number was to come and a {type(word).__name__} came")
