"""Questions about many files, each content asked about once, with a line for every file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from mlx_qwenvl.batching.keys import answer_key, model_digest, question_digest
from mlx_qwenvl.batching.ledger import Ledger
from mlx_qwenvl.batching.named import Kind, Named
from mlx_qwenvl.batching.questions import Question
from mlx_qwenvl.batching.reading import reading
from mlx_qwenvl.batching.together import Asked, Prepared, Together, as_fault
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.reply import Reply
from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.video import Seen
from mlx_qwenvl.vlm import QwenVL


@dataclass
class Counts:
    """What became of the questions.

    Attributes:
        answered: Answers that were written.
        repeated: Those of them that were known from a file of the same content.
        skipped: Answers that were there before.
        failed: Errors that were written.
    """

    answered: int = 0
    repeated: int = 0
    skipped: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        """All of them."""
        return self.answered + self.skipped + self.failed


class Run:
    """Asks, and writes what comes.

    Args:
        vlm: The model.
        questions: What is asked about every picture or video.
        options: Of all answers.
        ledger: What is known, and where answers go.
        more_of: Gives what else stands in an answer's line; what it raises is the line's error.
        max_running: Answers decoded together at most.
        kinds: What there is to ask about.

    Attributes:
        counts: What was done so far.

    Raises:
        OptionError: A grammar cannot be followed.
        ContextError: A question alone is too long.
    """

    def __init__(
        self,
        vlm: QwenVL,
        questions: Sequence[Question],
        options: Options,
        ledger: Ledger,
        more_of: Callable[[Reply], dict[str, object]],
        max_running: int,
        kinds: Iterable[Kind] = ("image",),
    ) -> None:
        self._vlm, self._questions, self._options = vlm, questions, options
        self._ledger, self._more_of, self._max_running = ledger, more_of, max_running
        self.counts = Counts()
        if options.grammar is not None:
            vlm.grammars.compile(options.grammar)
        model = model_digest(vlm)
        self._digests = {
            kind: [question_digest(vlm, model, q, options, kind) for q in questions]
            for kind in kinds
        }
        # Whose turn it is to compute a key: the first that comes. Setting a default is atomic.
        known = Asked(Named("image", ""))
        self._claims: dict[str, Asked[Named]] = dict.fromkeys(ledger.keys, known)
        self._waiting: dict[str, list[Asked[Named]]] = {}  # for the answer to equal content
        self._errors: dict[str, QwenVLError] = {}

    def over(
        self, named: Sequence[Named], told: Callable[[Counts], None], stops: Callable[[], bool]
    ) -> bool:
        """Ask about pictures and videos.

        Args:
            named: Their names; of no other kinds than were told.
            told: Called with the counts whenever they have changed.
            stops: Asked again and again whether to stop. What is complete then is written, what is
                under way is lost.

        Returns:
            Whether it came to the end.

        Raises:
            OSError: An answer cannot be written.
        """
        together = Together(self._vlm, named, self._prepare, self._options, self._max_running)
        with closing(together.outcomes()) as outcomes:
            for outcome in outcomes:
                if outcome is not None:
                    self._take_down(*outcome)
                    told(self.counts)
                if stops():
                    return False
        return True

    def _prepare(self, named: Named) -> list[Prepared[Named]]:
        """Read a file, and open it unless all answers are known; in several threads at once."""
        asked = [Asked(named, index) for index in range(len(self._questions))]
        mine: set[str] = set()
        try:
            with reading(named) as file:
                digests = self._digests[named.kind]
                keys = [answer_key(digest, file.content) for digest in digests]
                asked = [replace(one, key=key) for one, key in zip(asked, keys, strict=True)]
                mine = {one.key for one in asked if self._claims.setdefault(one.key, one) is one}
                if not mine:
                    return [(one, None) for one in asked]
                seen = file.seen_by(self._vlm, self._options)
        except Exception as error:
            fault = as_fault(error)
            return [(one, fault if one.key in mine or not one.key else None) for one in asked]
        return [(one, self._ask(one, seen) if one.key in mine else None) for one in asked]

    def _ask(self, asked: Asked[Named], seen: Seen) -> Prompt | QwenVLError:
        try:
            turns = self._questions[asked.question].about(seen)
            return self._vlm.prompt(turns, self._options)
        except Exception as error:
            return as_fault(error)

    def _take_down(self, asked: Asked[Named], result: Reply | QwenVLError | None) -> None:
        if result is None:
            self._take_known(asked)
            return
        if isinstance(result, Reply):
            result = self._write(asked, result)
        if result is not None:
            self._fail(asked, result)
        for other in self._waiting.pop(asked.key, ()):
            self._take_known(other)

    def _take_known(self, asked: Asked[Named]) -> None:
        """One whose content was asked about before, or is being asked about."""
        named, key = asked.item, asked.key
        if self._ledger.holds(named, key):
            self.counts.skipped += 1
        elif self._ledger.knows(key):
            self._ledger.repeat(named, key)
            self.counts.answered += 1
            self.counts.repeated += 1
        elif key in self._errors:
            self._fail(asked, self._errors[key])
        else:
            self._waiting.setdefault(key, []).append(asked)

    def _write(self, asked: Asked[Named], reply: Reply) -> QwenVLError | None:
        """Write an answer, or give why it is none."""
        try:
            more = self._more_of(reply)
        except Exception as error:
            return as_fault(error)
        prompt = self._questions[asked.question].text
        self._ledger.answer(asked.item, asked.key, prompt, reply, more)
        self.counts.answered += 1
        return None

    def _fail(self, asked: Asked[Named], error: QwenVLError) -> None:
        if asked.key:
            self._errors[asked.key] = error
        prompt = self._questions[asked.question].text
        self._ledger.fail(asked.item, asked.key, prompt, error)
        self.counts.failed += 1
