"""How the benchmark talks with one runtime in a process of its own: a line of JSON each way.

    PEER_PYTHON -m benchmarks.peers.drive_NAME OPTIONS     (one job a line on stdin)

A driver loads its model, says so, and then does one job after another. It needs the standard
library and its own runtime, nothing of this project but this file; what its runtime prints goes to
stderr. Times are taken around the calls, by the same clock for all.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

FIRST_TOKENS = 4  # of the answer before the next turn


@dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
        role: "system", "user" or "assistant".
        text: What is said.
        images: Paths of pictures, which stand before the text.
    """

    role: str
    text: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """What a driver is started with.

    Attributes:
        folder: The model.
        dtype: Type of activations and dense weights, or None for the runtime's own choice.
        quantize: What to quantize to at load, where the runtime does that.
        first_token_of: A picture and a question, to answer with one token and leave.
    """

    folder: str
    dtype: str | None = None
    quantize: str | None = None
    first_token_of: tuple[str, str] | None = None


@dataclass(frozen=True)
class Answer:
    """What one answer took.

    Attributes:
        first_s: Seconds from the call to the first token.
        decode_s: Seconds from the first token to the last.
        tokens: Token ids, where the runtime tells them.
        n_tokens: Tokens of the answer.
        prompt_tokens: Tokens of the prompt, 0 where not told.
        text: What was said.
    """

    first_s: float
    decode_s: float
    tokens: tuple[int, ...]
    n_tokens: int
    prompt_tokens: int = 0
    text: str = ""


@dataclass(frozen=True)
class Batch:
    """What several answers at once took.

    Attributes:
        seconds: From the call to the last token of all.
        n_tokens: Tokens of all answers.
    """

    seconds: float
    n_tokens: int


class Runtime(Protocol):
    """A loaded model. End tokens end nothing, and the likeliest token is always taken."""

    def answer(self, turns: list[Turn], max_tokens: int) -> Answer:
        """Answer a conversation."""

    def another(self, turns: list[Turn], question: str, *, best: bool) -> Answer:
        """Answer, then time another question about the same pictures, not knowing the first.

        Args:
            turns: A question about a picture.
            question: What is asked instead.
            best: With what the library can keep, instead of as it comes.
        """

    def next_turn(self, turns: list[Turn], question: str, *, best: bool) -> Answer:
        """Answer with `FIRST_TOKENS`, then time the next question of the same conversation.

        Args:
            turns: The conversation so far.
            question: What is asked next.
            best: As the library can be used at best, instead of as its own chat does it.
        """

    def batch(self, questions: list[str], max_tokens: int) -> Batch:
        """Answer questions, which make equally many tokens, at once."""


class AskedAnew:
    """A runtime whose calls are whole conversations: what it keeps of one it keeps by itself."""

    def answer(self, turns: list[Turn], max_tokens: int) -> Answer:
        """Answer a conversation."""
        raise NotImplementedError

    def another(self, turns: list[Turn], question: str, *, best: bool) -> Answer:
        """Answer both."""
        self.answer(turns, 1)
        return self.answer(asking(turns, question), 1)

    def next_turn(self, turns: list[Turn], question: str, *, best: bool) -> Answer:
        """Answer, then the longer conversation."""
        said = self.answer(turns, FIRST_TOKENS)
        return self.answer(continued(turns, said.text, question), 1)


def asking(turns: list[Turn], question: str) -> list[Turn]:
    """The same conversation with another last question."""
    return [*turns[:-1], Turn(turns[-1].role, question, turns[-1].images)]


def continued(turns: list[Turn], said: str, question: str) -> list[Turn]:
    """The conversation with its answer and the next question."""
    return [*turns, Turn("assistant", said), Turn("user", question)]


class Unsupported(Exception):
    """The runtime has no such thing; its text says what."""


def read_options(argv: list[str]) -> Options:
    """The driver's command line, which is one JSON object."""
    given = json.loads(argv[1])
    first = given.pop("first_token_of", None)
    return Options(**given, first_token_of=tuple(first) if first else None)


def timed(stream: Iterable[tuple[int, str]], begin: float, prompt_tokens: int = 0) -> Answer:
    """Hear a stream of (token id, text), and tell when its pieces came.

    Args:
        stream: The answer as it comes.
        begin: When it was asked for.
        prompt_tokens: What to note.
    """
    moments: list[float] = []
    tokens: list[int] = []
    text = ""
    for token, piece in stream:
        moments.append(time.perf_counter())
        tokens.append(token)
        text += piece
    return Answer(
        first_s=moments[0] - begin,
        decode_s=moments[-1] - moments[0],
        tokens=tuple(tokens),
        n_tokens=len(tokens),
        prompt_tokens=prompt_tokens,
        text=text,
    )


def drive(
    load: Callable[[Options], Runtime], packages: Iterable[str], blas: str | None = None
) -> None:
    """Be a driver.

    Args:
        load: Loads the runtime.
        packages: Distributions whose versions are told.
        blas: What it multiplies with, where that is the installation's and known.
    """
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the runtime prints is no answer
    options = read_options(sys.argv)
    begin = time.perf_counter()
    runtime = load(options)
    load_s = time.perf_counter() - begin
    if options.first_token_of is not None:
        picture, question = options.first_token_of
        images = (picture,) if picture else ()
        print(runtime.answer([Turn("user", question, images)], 1).text, file=told)
        return

    def tell(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=told, flush=True)

    versions = {name: importlib.metadata.version(name) for name in packages}
    tell({"load_s": load_s, "versions": versions, "blas": blas})
    for line in sys.stdin:
        try:
            tell(asdict(_do(runtime, json.loads(line))))
        except Unsupported as error:
            tell({"unsupported": str(error)})
        except Exception as error:  # whatever it is, it is this job's result
            tell({"error": f"{type(error).__name__}: {error}"[:300]})


def _do(runtime: Runtime, job: dict[str, Any]) -> Answer | Batch:
    if job["kind"] == "batch":
        return runtime.batch(job["questions"], job["max_tokens"])
    turns = [Turn(t["role"], t["text"], tuple(t["images"])) for t in job["turns"]]
    if job["kind"] == "next":
        return runtime.next_turn(turns, job["question"], best=job["best"])
    if job["kind"] == "another":
        return runtime.another(turns, job["question"], best=job["best"])
    return runtime.answer(turns, job["max_tokens"])
