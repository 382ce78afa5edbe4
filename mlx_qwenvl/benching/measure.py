"""Measuring one model: rounds of questions none of which can reuse anything of another.

First questions leave the stores of `docs/caches.md` out; the next question of a conversation is
measured with them, as a user meets it. Greedy answers of a fixed length: end tokens end nothing.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_qwenvl.benching.batch import decode_rows, prefill_rows
from mlx_qwenvl.benching.figures import Figures, Spread
from mlx_qwenvl.benching.machine import this_machine
from mlx_qwenvl.engine.reply import Reply
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.facts import find_facts
from mlx_qwenvl.vlm import QwenVL, load
from mlx_qwenvl.weights.memory import memory_here, tokens_per_second

FIRST_ANSWER = 4  # tokens of the answer before the second question
ROW_TOKENS = 64  # tokens of each prompt of a batch
WARM_UP_TOKENS = 2
WORDS = (
    "what",
    "is",
    "the",
    "small",
    "red",
    "circle",
    "left",
    "of",
    "a",
    "large",
    "blue",
    "square",
)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        model: What to load.
        dtype: Its dtype, or None for what suits the device.
        prompt_tokens: Tokens of the question's text.
        image: (width, height) of the picture in pixels.
        answer_tokens: Tokens of each answer.
        batch: How many sequences are decoded at once.
        rounds: How often each is measured.
    """

    model: str
    dtype: str | None = None
    prompt_tokens: int = 256
    image: tuple[int, int] = (448, 448)
    answer_tokens: int = 64
    batch: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 3


def measure(plan: Plan, tell: Callable[[str], None]) -> Figures:
    """Load a model and measure it.

    Args:
        plan: What is measured.
        tell: Hears what is being done.
    """
    tell(f"loading {plan.model}")
    vlm = load(plan.model, dtype=plan.dtype, progress=sys.stderr.isatty())
    vlm.end_ids = frozenset()
    tell("warming up")
    _ask(vlm, plan, number=0, answer_tokens=WARM_UP_TOKENS)
    replies: list[Reply] = []
    nexts: list[float] = []
    batches: dict[int, list[float]] = {rows: [] for rows in plan.batch}
    # Whole rounds follow one another, so that a machine that slows down does so for all figures.
    for number in range(1, plan.rounds + 1):
        tell(f"round {number} of {plan.rounds}: a question about a picture")
        replies.append(_ask(vlm, plan, number, plan.answer_tokens))
        tell(f"round {number} of {plan.rounds}: the next question")
        nexts.append(_next_first_token(vlm, plan, plan.rounds + number))
        for rows, rates in batches.items():
            tell(f"round {number} of {plan.rounds}: {rows} at once")
            rates.append(_batch_rate(vlm, rows, plan.answer_tokens))
    usage, timings = replies[0].usage, [reply.timings for reply in replies]
    machine = this_machine(int(mx.device_info().get("memory_size") or memory_here()))
    ceiling = None
    if machine.bandwidth is not None:
        described = find_facts(plan.model).description
        ceiling = tokens_per_second(described, usage.prompt_tokens, machine.bandwidth)
    return Figures(
        model=plan.model,
        machine=machine,
        rounds=plan.rounds,
        image=plan.image,
        prompt_tokens=usage.prompt_tokens,
        image_tokens=usage.image_tokens,
        answer_tokens=plan.answer_tokens,
        load=vlm.load_s,
        vision=Spread.of([t.vision_s for t in timings]),
        prefill=Spread.of([t.prefill_s for t in timings]),
        prefill_rate=Spread.of([t.prompt_tokens_per_s for t in timings]),
        first_token=Spread.of([t.time_to_first_token_s for t in timings]),
        decode_rate=Spread.of([t.completion_tokens_per_s for t in timings]),
        next_first_token=Spread.of(nexts),
        batch_rates={rows: Spread.of(rates) for rows, rates in batches.items()},
        peak_memory=max(reply.peak_memory_bytes for reply in replies),
        resident=_resident(),
        ceiling=ceiling,
    )


def noise(number: int, size: tuple[int, int]) -> np.ndarray:
    """A picture [H, W, 3] of its own for each number."""
    width, height = size
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def words(vlm: QwenVL, number: int, tokens: int) -> str:
    """Text of about so many tokens, another one for each number."""
    drawn = np.random.default_rng(number).choice(WORDS, tokens).tolist()
    while len(drawn) > 1 and len(vlm.tokenizer.encode(" ".join(drawn))) > tokens:
        drawn = drawn[: -max(1, len(drawn) // 20)]
    return " ".join(drawn)


def _ask(vlm: QwenVL, plan: Plan, number: int, answer_tokens: int) -> Reply:
    return vlm.generate(
        words(vlm, number, plan.prompt_tokens),
        images=[noise(number, plan.image)],
        system=_system(number),
        temperature=0,
        max_tokens=answer_tokens,
        cache=False,
        speculation=False,  # one token a step, as the ceiling counts
    )


def _next_first_token(vlm: QwenVL, plan: Plan, number: int) -> float:
    chat = vlm.chat(_system(number))
    question = words(vlm, number, plan.prompt_tokens)
    picture = noise(number, plan.image)
    chat.ask(question, images=[picture], temperature=0, max_tokens=FIRST_ANSWER)
    reply = chat.ask("And what is left of it?", temperature=0, max_tokens=1)
    return reply.timings.time_to_first_token_s


def _batch_rate(vlm: QwenVL, rows: int, answer_tokens: int) -> float:
    """Tokens per second of all rows together, without reading their prompts."""
    ids = np.array([vlm.tokenizer.encode(f" {word}")[0] for word in WORDS], dtype=np.int32)
    drawn = np.random.default_rng(rows).integers(0, len(WORDS), (rows, ROW_TOKENS))
    cache = vlm.model.make_cache()
    logits = prefill_rows(vlm.model, cache, ids[drawn])
    mx.eval(logits)
    begin = time.perf_counter()
    steps = list(decode_rows(vlm.model, cache, logits, answer_tokens))
    # The first tokens come from the prompt's logits, before any step.
    return rows * (len(steps) - 1) / (time.perf_counter() - begin)


def _system(number: int) -> str:
    return f"{number} is the number of this question."


def _resident() -> int:
    """Most bytes that this process held."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_batch(text: str) -> tuple[int, ...]:
    """Numbers of sequences from text such as "1,2,4,8".

    Raises:
        OptionError: It is something else.
    """
    parts: Sequence[str] = text.split(",")
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 1024 for part in parts):
        raise OptionError(f"--batch {text} is no list; expected whole numbers such as 1,2,4,8")
    return tuple(dict.fromkeys(map(int, parts)))
