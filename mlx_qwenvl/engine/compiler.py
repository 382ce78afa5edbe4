"""Grammars become constraints: tried elsewhere, compiled here, and kept for the next who asks."""

from __future__ import annotations

import threading

from mlx_qwenvl.engine.constraint import Compiled, Constraint, Vocabulary
from mlx_qwenvl.engine.grammar import Grammar, guidance_text, one_line
from mlx_qwenvl.engine.trial import TRIAL_S, Trials
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.lru import BoundedStore

KEPT_BYTES = 64 * 2**20  # of compiled grammars, by our estimate
ENTRY_BYTES = 512 * 2**10  # that one is taken to need; a small one was measured to have 150 kB
BYTES_A_LETTER = 64  # that one of a long source is taken to need
STACK_BYTES = 64 * 2**20  # of the thread that compiles, of address space only; 8 times the trial's
LEXER_STATES = 20_000  # of 1 to 2 kB each, that one may come to have


class Compiler:
    """Makes constraints for one model; any thread may ask, and waits for its own grammar only.

    Args:
        tokenizer: The checkpoint's.
        end_ids: Tokens that end an answer.
        width: V, the logits' width.
        seconds: That one grammar may be tried for; compiling it takes as long again at most.
        kept_bytes: Of compiled grammars to keep.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        end_ids: frozenset[int],
        width: int,
        seconds: float = TRIAL_S,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._tokenizer, self._end_ids, self._width = tokenizer, end_ids, width
        self._made: Vocabulary | None = None
        self._lock = threading.Lock()
        self._trials = Trials(LEXER_STATES, seconds)
        self.kept: BoundedStore[Grammar, Compiled | str] = BoundedStore(kept_bytes)

    def start(self, grammar: Grammar) -> Constraint:
        """The constraint of one answer; arguments and errors are those of `compile`."""
        return self.compile(grammar).start()

    def compile(self, grammar: Grammar) -> Compiled:
        """Make a grammar ready for use, or what stands in for it.

        It takes milliseconds as a rule; who must not wait asks from a thread.

        Raises:
            OptionError: The grammar is not valid, cannot be satisfied, or is too large.
        """
        try:
            return self._made_of(grammar)
        except OptionError:
            if grammar.instead is None:
                raise
            return self.compile(grammar.instead)

    def _made_of(self, grammar: Grammar) -> Compiled:
        found = self.kept.get(grammar)
        if found is None:
            vocabulary = self._vocabulary()
            text = guidance_text(grammar)
            found = self._tried(grammar, text) or _compile(grammar, text, vocabulary)
            nbytes = ENTRY_BYTES + BYTES_A_LETTER * len(grammar.source)
            self.kept.put(grammar, found, nbytes)
        if isinstance(found, str):
            raise OptionError(found)
        return found

    def close(self) -> None:
        """End the processes that try grammars; more are started where more is asked."""
        self._trials.close()

    def _tried(self, grammar: Grammar, text: str) -> str | None:
        """What is wrong with a grammar, or None."""
        if grammar.kind == "json_object":
            return None  # it is our own
        error = self._trials.try_out(text)
        if error is None:
            return f"the {grammar.name} is too complex"
        return one_line(grammar, error) if error else None

    def _vocabulary(self) -> Vocabulary:
        with self._lock:
            if self._made is None:
                self._made = Vocabulary(self._tokenizer, self._end_ids, self._width)
            return self._made


def _compile(grammar: Grammar, text: str, vocabulary: Vocabulary) -> Compiled | str:
    """Compile in a thread whose stack is deep enough for all that passed the trial."""
    import llguidance

    found: list[Compiled | str] = []

    def work() -> None:
        limits = llguidance.LLParserLimits(max_lexer_states=LEXER_STATES, verbose_errors=False)
        matcher = llguidance.LLMatcher(vocabulary.tokens, text, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # what is made for the first token is made once
        error = matcher.get_error()
        found.append(one_line(grammar, error) if error else Compiled(matcher, vocabulary))

    with _STACK:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=work, name="grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return found[0] if found else f"the {grammar.name} is not valid"


_STACK = threading.Lock()  # the size holds for whatever thread is started next
