"""How far a converted model's answers are from its source's, token by token.

The source answers picture prompts greedily. Its answers are then fed through both models, and at
every position of them, the end included where the source ended, the two distributions of the next
token are compared: KL(source || other) in nats, and whether both rank the same token first.

KL is taken over the whole vocabulary. The source's logits at the answers' positions go to a file,
30 MB for a prompt of a real model, so that the models are in memory one after another and nothing
has to be cut off the distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO

import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.options import PREFILL_STEP
from mlx_qwenvl.engine.prefill import prefill
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.errors import NotFinite
from mlx_qwenvl.inputs.messages import user_message
from mlx_qwenvl.inputs.prompt import Prompt, build_prompt
from mlx_qwenvl.vlm import QwenVL

from ..pictures import Drawn

MAX_TOKENS = 48  # of an answer
SHOWN = 6  # prompts whose answers are also answered as text: the first ones, which nobody chose


@dataclass(frozen=True)
class Case:
    """A prompt with the source's answer.

    Attributes:
        drawn: The prompt as it was drawn.
        prompt: The same as tokens and patches.
        token_ids: The answer, without the token that ended it.
        text: The answer.
        positions: Distributions that are compared: one a token, and one for the end.
    """

    drawn: Drawn
    prompt: Prompt
    token_ids: tuple[int, ...]
    text: str
    positions: int


@dataclass(frozen=True)
class Recorded:
    """What the source said.

    Attributes:
        cases: Every prompt.
        file: The source's logits, [positions, V] float32 case after case.
        vocabulary: V.
    """

    cases: tuple[Case, ...]
    file: IO[bytes]
    vocabulary: int


@dataclass(frozen=True)
class PromptQuality:
    """The comparison on one prompt.

    Attributes:
        question: What was asked.
        positions: Distributions compared.
        mean_kl: In nats.
        worst_kl: In nats.
        agreed: Positions at which both rank the same token first.
    """

    question: str
    positions: int
    mean_kl: float
    worst_kl: float
    agreed: int


@dataclass(frozen=True)
class Quality:
    """The comparison on all prompts.

    Attributes:
        positions: Distributions compared.
        mean_kl: Mean over positions, in nats.
        mean_kl_error: Standard error of that mean. Prompts are taken as independent of each
            other, positions of one answer are not.
        worst_kl: In nats.
        top1: Share of positions at which both rank the same token first, 0 to 1.
        computed_in: The dtype of the other model's activations.
        prompts: Each prompt by itself.
    """

    positions: int
    mean_kl: float
    mean_kl_error: float
    worst_kl: float
    top1: float
    computed_in: str
    prompts: tuple[PromptQuality, ...]


def measure(source: QwenVL, other: QwenVL, prompts: Sequence[Drawn]) -> Quality:
    """Compare two models that both fit in memory.

    Args:
        source: The model that is the measure.
        other: A model with the same vocabulary.
        prompts: At least one.
    """
    with TemporaryFile(prefix="mlx-qwenvl-") as file:
        return compare(record(source, prompts, file), other)


def record(
    source: QwenVL,
    prompts: Sequence[Drawn],
    file: IO[bytes],
    on_prompt: Callable[[], None] | None = None,
) -> Recorded:
    """Let the source answer, and keep its logits.

    Args:
        source: The model that is the measure.
        prompts: At least one.
        file: Empty, to be written and read; must stay open as long as the record is used.
        on_prompt: Called after every prompt.
    """
    cases = []
    for drawn in prompts:
        question = user_message(drawn.question, drawn.images)
        prompt = build_prompt([question], source.template, source.tokenizer, source.processor.open)
        token_ids, text, is_whole = _answer(source, drawn)
        case = Case(drawn, prompt, token_ids, text, len(token_ids) + is_whole)
        file.write(answer_logits(source, case).tobytes())
        cases.append(case)
        if on_prompt is not None:
            on_prompt()
    return Recorded(tuple(cases), file, source.config.text.vocab_size)


def compare(
    recorded: Recorded, other: QwenVL, on_prompt: Callable[[], None] | None = None
) -> Quality:
    """Hold a model against the record of its source.

    Args:
        recorded: What the source said.
        other: A model with the same vocabulary.
        on_prompt: Called after every prompt.
    """
    recorded.file.seek(0)
    by_prompt: list[np.ndarray] = []
    agreed: list[int] = []
    for case in recorded.cases:
        ours = answer_logits(other, case)
        size = case.positions * recorded.vocabulary
        theirs = np.frombuffer(recorded.file.read(4 * size), dtype=np.float32).reshape(ours.shape)
        rows = zip(theirs, ours, strict=True)
        by_prompt.append(np.array([kl_divergence(*row) for row in rows]))
        agreed.append(int((theirs.argmax(axis=1) == ours.argmax(axis=1)).sum()))
        if on_prompt is not None:
            on_prompt()
    kls = np.concatenate(by_prompt)
    return Quality(
        positions=kls.size,
        mean_kl=float(kls.mean()),
        mean_kl_error=_error_of_mean(by_prompt),
        worst_kl=float(kls.max()),
        top1=sum(agreed) / kls.size,
        computed_in=computing_dtype(other),
        prompts=tuple(
            PromptQuality(case.drawn.question, kl.size, float(kl.mean()), float(kl.max()), same)
            for case, kl, same in zip(recorded.cases, by_prompt, agreed, strict=True)
        ),
    )


def answer_texts(recorded: Recorded, other: QwenVL) -> tuple[str, ...]:
    """A model's own greedy answers to the first `SHOWN` prompts of a record."""
    return tuple(_answer(other, case.drawn)[1] for case in recorded.cases[:SHOWN])


def _answer(vlm: QwenVL, drawn: Drawn) -> tuple[tuple[int, ...], str, bool]:
    """A model's greedy answer: tokens, text, and whether it ended before `MAX_TOKENS`.

    One that computes NaN is measured too; its answer ends there.
    """
    heard: list[Chunk] = []
    stream = vlm.stream(drawn.question, images=drawn.images, temperature=0, max_tokens=MAX_TOKENS)
    try:
        for chunk in stream:
            heard.append(chunk)
        is_whole = heard[-1].finish_reason == "stop"
    except NotFinite:
        is_whole = True
    token_ids = tuple(token for chunk in heard for token in chunk.token_ids)
    return token_ids, "".join(chunk.text for chunk in heard), is_whole


def answer_logits(vlm: QwenVL, case: Case) -> np.ndarray:
    """A model's logits [positions, V] float32 where the source's answer has its tokens.

    Row 0 follows the prompt, row i the answer's token i - 1.
    """
    conversation = Conversation(vlm.model)
    first = prefill(vlm.model, conversation, case.prompt, step=PREFILL_STEP)
    rows = [first.logits[0]]
    if case.token_ids:
        # The prompt is in the conversation now, so logits are computed for the answer alone.
        token_ids = np.concatenate([case.prompt.token_ids, np.array(case.token_ids, np.int32)])
        answered = Prompt(token_ids, case.prompt.slots)
        rest = prefill(vlm.model, conversation, answered, step=PREFILL_STEP, all_logits=True)
        rows.append(rest.logits[0])
    return np.array(mx.concatenate(rows)[: case.positions].astype(mx.float32))


def computing_dtype(vlm: QwenVL) -> str:
    """Name of the dtype that a model computes in."""
    return str(vlm.model.model.norm.weight.dtype).removeprefix("mlx.core.")


def kl_divergence(source: np.ndarray, other: np.ndarray) -> float:
    """KL(source || other) in nats of the distributions that two rows of logits [V] make."""
    with np.errstate(invalid="ignore"):  # of weights that are NaN, where they were allowed
        log_p, log_q = _log_softmax(source), _log_softmax(other)
        divergence = float(np.sum(np.exp(log_p) * (log_p - log_q)))
    return max(divergence, 0.0) if math.isfinite(divergence) else divergence  # rounding, below 0


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _error_of_mean(by_prompt: Sequence[np.ndarray]) -> float:
    """Standard error of the mean over all positions, whole prompts being what is drawn."""
    count, total = len(by_prompt), sum(kl.size for kl in by_prompt)
    if count < 2:
        return math.nan
    mean = sum(float(kl.sum()) for kl in by_prompt) / total
    squares = sum((float(kl.sum()) - mean * kl.size) ** 2 for kl in by_prompt)
    return math.sqrt(squares * count / (count - 1)) / total
