"""Many questions at once: each is answered as if it were alone, and its faults are its own."""

from __future__ import annotations

import gc
import random
import re
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl import ContextError, MemoryExceeded, OptionError, QwenVL, QwenVLError
from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.engine.scheduler import Job, Scheduler, Told
from mlx_qwenvl.engine.slices import FIRST_TOKENS, LEAST_ROWS, SHARED_S, Slices, UnderWay
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.models.cache import GROWTH, KVCache
from mlx_qwenvl.models.text import MLP, TextModel
from mlx_qwenvl.models.vision import VisionBlock, VisionTransformer
from tests.crowds import Listener, Question
from tests.golden.tiny import picture

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
PICTURES = [picture(seed, 28 * (2 + seed), 28 * (5 - seed)) for seed in range(4)]


def questions(count: int) -> list[Question]:
    """Questions of many lengths, with up to three pictures."""
    made = []
    for index in range(count):
        text = " ".join(WORDS[: 1 + index % len(WORDS)]) * (1 + index % 3)
        images = PICTURES[: index % 4] if index % 2 else []
        made.append(Question(f"{text}?", images, {"temperature": 0, "max_tokens": 5 + index * 3}))
    return made


@pytest.fixture
def vlm(tiny: QwenVL, monkeypatch: pytest.MonkeyPatch) -> QwenVL:
    """The tiny model with empty stores, going on until it is told to stop."""
    monkeypatch.setattr(tiny, "stores", Stores.of(tiny.model))
    monkeypatch.setattr(tiny, "end_ids", frozenset())
    return tiny


def test_sixteen_that_come_and_go_answer_as_each_alone(vlm: QwenVL) -> None:
    check_crowd(vlm, questions(16))


def test_the_embedded_model_answers_in_a_crowd_as_alone(demo: QwenVL) -> None:
    asked = [Question(q.text, q.images, q.options | {"max_tokens": 24}) for q in questions(16)]
    check_crowd(demo, asked)


def check_crowd(vlm: QwenVL, asked: list[Question]) -> None:
    alone = [question.alone(vlm) for question in asked]
    scheduler = vlm.scheduler(16)
    listener, jobs = Listener(scheduler), []
    most = 0
    for question in asked:
        jobs.append(question.add(vlm, scheduler))
        for _ in range(3):
            listener.step()
        most = max(most, scheduler.running)
    while not scheduler.is_idle:
        listener.step()
        most = max(most, scheduler.running)
    assert most >= 3, "there was no crowd"
    for job, want in zip(jobs, alone, strict=True):
        got = listener.reply(job)
        assert (got.text, got.token_ids) == (want.text, want.token_ids)
        assert got.finish_reason == want.finish_reason
        assert got.usage.completion_tokens == want.usage.completion_tokens
        assert got.usage.image_tokens == want.usage.image_tokens
        assert got.timings.prefill_s > 0
        assert got.timings.time_to_first_token_s >= got.timings.prefill_s


def test_each_has_its_own_sampling(vlm: QwenVL) -> None:
    word = vlm.generate("Say", temperature=0, max_tokens=6, cache=False).text[3:6]
    each: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "top_p": 0.8, "seed": 2, "logprobs": True, "top_logprobs": 3},
        {"temperature": 0, "repetition_penalty": 1.5},
        {"temperature": 0, "frequency_penalty": 1.0, "presence_penalty": 0.5, "logprobs": True},
        {"temperature": 0, "logit_bias": {7: 30.0}},
        {"temperature": 0, "stop": [word]},
        {"temperature": 1.0, "top_k": 5, "min_p": 0.01, "seed": -9},
        {"temperature": 0},
    ]
    asked = [Question("Say", (), {"max_tokens": 12 + i} | o) for i, o in enumerate(each)]
    alone = [question.alone(vlm) for question in asked]
    scheduler = vlm.scheduler()
    listener = Listener(scheduler)
    jobs = [question.add(vlm, scheduler) for question in asked]
    listener.until_idle()
    assert alone[5].finish_reason == "stop"
    for job, want in zip(jobs, alone, strict=True):
        got = listener.reply(job)
        assert (got.text, got.token_ids, got.finish_reason) == (
            (want.text, want.token_ids, want.finish_reason)
        )
        for mine, other in zip(got.logprobs, want.logprobs, strict=True):
            assert mine.token_id == other.token_id
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [i for i, _ in mine.top] == [i for i, _ in other.top]


def test_a_seed_draws_on_when_others_come_and_go(vlm: QwenVL) -> None:
    drawn = Question("Tell me", (), {"temperature": 1.0, "seed": 11, "max_tokens": 40})
    greedy = Question("Tell me", (), {"temperature": 0, "max_tokens": 40})
    for question in (drawn, greedy):
        want = question.alone(vlm).token_ids
        scheduler = vlm.scheduler()
        listener, job = Listener(scheduler), question.add(vlm, scheduler)
        listener.until_told(job, 5)
        for _ in range(2):  # alone, two, alone, two, alone
            other = Question("Beside", (), {"temperature": 0, "max_tokens": 6})
            beside = other.add(vlm, scheduler)
            listener.until_told(beside, 6)
            assert listener.heard(beside) == list(other.alone(vlm).token_ids)
            listener.until_told(job, len(listener.heard(job)) + 4)
        listener.until_idle()
        assert listener.reply(job).token_ids == want


def test_one_alone_is_sped_up_by_proposals_and_hears_the_same(vlm: QwenVL) -> None:
    question = Question("a b c d a b c d a b", (), {"temperature": 0, "max_tokens": 120})
    want = question.alone(vlm).token_ids
    scheduler = vlm.scheduler()
    listener, job = Listener(scheduler), question.add(vlm, scheduler)
    listener.until_told(job, 40)
    beside = Question("x", (), {"temperature": 0, "max_tokens": 3}).add(vlm, scheduler)
    listener.until_idle()
    reply = listener.reply(job)
    assert reply.token_ids == want
    assert reply.speculation is not None
    assert listener.reply(beside).speculation is None


def test_a_draft_proposes_while_one_is_alone(vlm: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "draft", (vlm.model, Stores.of(vlm.model)))
    question = Question("What is this?", PICTURES[:1], {"temperature": 0, "max_tokens": 60})
    want = question.alone(vlm).token_ids
    scheduler = vlm.scheduler()
    listener, job = Listener(scheduler), question.add(vlm, scheduler)
    listener.until_told(job, 30)
    beside = Question("x", (), {"temperature": 0, "max_tokens": 3}).add(vlm, scheduler)
    listener.until_told(beside, 3)
    listener.until_idle()
    reply = listener.reply(job)
    assert reply.token_ids == want
    assert reply.speculation is not None and reply.speculation.accepted_tokens > 0


def test_n_answers_read_the_prompt_once_and_draw_with_seeds_that_follow(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question("Tell", PICTURES[:1], {"temperature": 1.0, "seed": 3, "max_tokens": 9})
    want = [question.alone(vlm, seed=3 + i).token_ids for i in range(5)]
    fed = count_fed(monkeypatch)
    scheduler = vlm.scheduler(2)  # fewer places than answers
    listener, job = Listener(scheduler), question.add(vlm, scheduler, n=5, cache=False)
    listener.until_idle()
    assert [listener.reply(job, i).token_ids for i in range(5)] == want
    size = job.prompt.token_ids.size
    assert sum(length for rows, length in fed if length > 1) in (size, size - 1)
    assert job.is_over


def test_each_keeps_to_its_own_grammar(demo: QwenVL) -> None:
    pytest.importorskip("llguidance")
    year, word = Grammar("regex", "[12][0-9]{3} (AD|BC)"), Grammar("regex", "(yes|no)!{2,5}")
    asked = [
        Question("When?", (), {"grammar": year, "temperature": 1.0, "seed": 4}),
        Question("When?", PICTURES[:1], {"grammar": year, "temperature": 0, "logprobs": True}),
        Question("Is it?", (), {"grammar": word, "temperature": 0.8, "seed": 5}),
        Question("Is it?", (), {"temperature": 0, "max_tokens": 40}),
        Question("Is it?", (), {"temperature": 1.0, "seed": 1, "max_tokens": 40}),
    ]
    alone = [question.alone(demo) for question in asked]
    scheduler = demo.scheduler()
    listener = Listener(scheduler)
    jobs = [question.add(demo, scheduler) for question in asked]
    listener.until_idle()
    for job, want in zip(jobs, alone, strict=True):
        assert listener.reply(job).text == want.text
    for job in jobs[:2]:
        assert re.fullmatch(year.source, listener.reply(job).text)
    twice = asked[2].add(demo, scheduler, n=3)
    listener.until_idle()
    for index in range(3):
        assert re.fullmatch(word.source, listener.reply(twice, index).text)


@pytest.mark.parametrize("kv", [{"kv_bits": 8}, {"kv_bits": 4, "kv_start": 20}])
def test_packed_keys_and_values_answer_as_alone(vlm: QwenVL, kv: dict[str, int]) -> None:
    asked = [
        Question(q.text, q.images, q.options | (kv if i % 2 else {}))
        for i, q in enumerate(questions(5))
    ]
    alone = [question.alone(vlm) for question in asked]
    scheduler = vlm.scheduler()
    listener = Listener(scheduler)
    jobs = [question.add(vlm, scheduler) for question in asked]
    twice = asked[1].add(vlm, scheduler, n=2)
    listener.until_idle()
    for job, want in zip(jobs, alone, strict=True):
        assert listener.reply(job).token_ids == want.token_ids
    assert listener.reply(twice, 1).token_ids == alone[1].token_ids


def test_a_sequence_that_outgrows_its_room_goes_on(vlm: QwenVL) -> None:
    text = "word " * 100
    question = Question(text, (), {"temperature": 0, "max_tokens": 60})
    want = question.alone(vlm)
    assert want.usage.prompt_tokens < GROWTH < want.usage.total_tokens
    scheduler = vlm.scheduler()
    listener = Listener(scheduler)
    jobs = [question.add(vlm, scheduler) for _ in range(2)]
    listener.until_idle()
    assert [listener.reply(job).token_ids for job in jobs] == [want.token_ids] * 2


def test_weights_are_read_once_a_step_for_all(vlm: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = vlm.scheduler()
    listener = Listener(scheduler)
    for question in questions(4):
        question.add(vlm, scheduler, max_tokens=50)
    while scheduler.running < 4:
        listener.step()
    rows: list[int] = []
    project = MLP.__call__

    def counted(this: Any, x: mx.array) -> mx.array:
        rows.append(x.shape[0])
        return project(this, x)

    monkeypatch.setattr(MLP, "__call__", counted)
    events = listener.step()
    assert len(events) == 4
    assert rows == [4] * len(vlm.model.layers)


def count_fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and tokens of each call of the decoder."""
    fed: list[tuple[int, int]] = []
    run = TextModel.__call__

    def counted(this: Any, embeddings: mx.array, cache: Any) -> mx.array:
        fed.append(embeddings.shape[:2])  # type: ignore[arg-type]
        return run(this, embeddings, cache)

    monkeypatch.setattr(TextModel, "__call__", counted)
    return fed


def test_who_asks_the_like_at_the_same_time_computes_its_own_tokens_only(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    begin = VisionTransformer.begin

    def counted(this: Any, patches: mx.array, grid: Any) -> Any:
        looked.append(grid)
        return begin(this, patches, grid)

    monkeypatch.setattr(VisionTransformer, "begin", counted)
    asked = [
        Question(f"What is {word}?", PICTURES[:2], {"temperature": 0, "max_tokens": 30})
        for word in WORDS[:3]
    ]
    want = [question.alone(vlm).token_ids for question in asked]
    looked.clear()
    scheduler = vlm.scheduler()
    listener = Listener(scheduler)
    jobs = [question.add(vlm, scheduler) for question in asked]
    fed = count_fed(monkeypatch)
    listener.until_idle()
    replies = [listener.reply(job) for job in jobs]
    assert [reply.token_ids for reply in replies] == want
    assert len(looked) == 2
    assert replies[0].usage.cached_tokens == 0
    assert all(reply.usage.cached_tokens > reply.usage.image_tokens for reply in replies[1:])
    computed = sum(r.usage.prompt_tokens - r.usage.cached_tokens for r in replies)
    assert computed == sum(n for rows, n in fed if n > 1)


def test_the_next_turn_goes_on_from_an_answer_told_in_a_crowd(vlm: QwenVL) -> None:
    scheduler = vlm.scheduler()
    listener = Listener(scheduler)
    # Longer than what the store takes away from a conversation for one that leaves it.
    jobs = [question.add(vlm, scheduler, max_tokens=40) for question in questions(3)]
    listener.until_idle()
    for job in jobs:
        spoken = np.array(listener.reply(job).token_ids, dtype=np.int32)
        text = np.concatenate([job.prompt.token_ids, spoken, [5, 6]]).astype(np.int32)
        longer = type(job.prompt)(text, job.prompt.slots)
        known, _ = vlm.stores.prefixes.known(longer, jobs[0].options.kv)
        assert known >= job.prompt.token_ids.size + spoken.size - 1


@pytest.mark.parametrize("when", ["queued", "reading", "looking", "alone", "together"])
def test_a_withdrawn_job_is_gone_before_the_next_step(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    # Alone again, it would verify several proposed tokens a step where the clock says that it pays.
    alone = {"temperature": 0, "max_tokens": 30, "speculation": False}
    beside = Question("Beside", (), alone)
    question = Question("word " * 90, PICTURES, {"temperature": 0, "max_tokens": 50})
    want, want_beside = question.alone(vlm).token_ids, beside.alone(vlm).token_ids
    scheduler = vlm.scheduler()
    listener = Listener(scheduler)
    other = None if when == "alone" else beside.add(vlm, scheduler)
    if other is not None:
        listener.until_told(other, 2)
    job = question.add(vlm, scheduler)
    if when == "looking":
        listener.step()
        assert job.progress[0] == 0 and scheduler.prefilling
    elif when == "reading":
        while job.progress[0] == 0:
            listener.step()
        assert 0 < job.progress[0] < job.progress[1]
    elif when in ("alone", "together"):
        listener.until_told(job, 7)
    before = len(listener.heard(job))
    scheduler.cancel(job)
    scheduler.cancel(job)
    assert job.is_over
    assert (scheduler.queued, scheduler.prefilling) == (0, 0)
    assert scheduler.running == (other is not None)
    fed = count_fed(monkeypatch)
    listener.step()
    assert all(rows == 1 and length == 1 for rows, length in fed)
    listener.until_idle()
    assert len(listener.heard(job)) == before
    if other is not None:
        assert listener.reply(other).token_ids == want_beside
    again = question.add(vlm, scheduler)
    listener.until_idle()
    assert listener.reply(again).token_ids == want
    if when in ("alone", "together"):
        assert listener.reply(again).usage.cached_tokens == again.prompt.token_ids.size - 1


@pytest.fixture
def neighbour(vlm: QwenVL) -> Iterator[tuple[Scheduler, Listener]]:
    """A scheduler with a running stream, whose answer is checked at the end."""
    question = Question("Beside", PICTURES[1:2], {"temperature": 0, "max_tokens": 60})
    want = question.alone(vlm).token_ids
    scheduler = vlm.scheduler()
    listener, job = Listener(scheduler), question.add(vlm, scheduler)
    listener.until_told(job, 3)
    yield scheduler, listener
    listener.until_idle()
    assert listener.reply(job).token_ids == want


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_fails_its_own_job(
    vlm: QwenVL,
    monkeypatch: pytest.MonkeyPatch,
    neighbour: tuple[Scheduler, Listener],
    temperature: float,
) -> None:
    scheduler, listener = neighbour
    question = Question("Ill", PICTURES[:1], {"max_tokens": 20, "temperature": temperature})
    encode = VisionTransformer.finish
    with monkeypatch.context() as patched:
        patched.setattr(VisionTransformer, "finish", lambda *a: encode(*a) * mx.nan)
        job = question.add(vlm, scheduler, cache=False)
        while job not in listener.errors:
            listener.step()
    assert isinstance(listener.errors[job], QwenVLError) and job.is_over
    assert listener.heard(job) == []
    listener.step()
    assert scheduler.running == 1


def test_nan_in_one_of_its_answers_fails_the_job_once(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch, neighbour: tuple[Scheduler, Listener]
) -> None:
    scheduler, listener = neighbour
    job = Question("Ill", (), {"max_tokens": 20}).add(vlm, scheduler, n=3)
    listener.until_told(job, 2)
    run = TextModel.__call__
    with monkeypatch.context() as patched:

        def ill(this: Any, embeddings: mx.array, cache: Any) -> mx.array:
            rows = scheduler._crowd._cache.rows
            well = [row is scheduler._crowd.members[0].row for row in rows]
            hidden = run(this, embeddings, cache)
            return mx.where(mx.array(well)[:, None, None], hidden, mx.nan)

        patched.setattr(TextModel, "__call__", ill)
        while job not in listener.errors:
            listener.step()
    assert scheduler.running <= 1


@pytest.mark.parametrize("where", ["tower", "decoder"])
@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (RuntimeError("[malloc] Unable to allocate 8000000000 bytes."), MemoryExceeded),
        (QwenVLError("bad"), QwenVLError),
        (ValueError("a shape"), ValueError),
    ],
)
def test_what_breaks_while_a_question_is_read_fails_that_question(
    vlm: QwenVL,
    monkeypatch: pytest.MonkeyPatch,
    neighbour: tuple[Scheduler, Listener],
    where: str,
    raised: Exception,
    kind: type[Exception],
) -> None:
    scheduler, listener = neighbour
    run = TextModel.__call__

    def decoder(this: Any, embeddings: mx.array, cache: Any) -> mx.array:
        if embeddings.shape[1] > 1:
            raise raised
        return run(this, embeddings, cache)

    def tower(*_: Any) -> None:
        raise raised

    job = Question("Ill", PICTURES[:1], {}).add(vlm, scheduler)
    with monkeypatch.context() as patched:
        if where == "tower":
            patched.setattr(VisionBlock, "__call__", tower)
        else:
            patched.setattr(TextModel, "__call__", decoder)
        while job not in listener.errors:
            listener.step()
    assert type(listener.errors[job]) is kind
    assert scheduler.prefilling == 0 and job.is_over


def test_what_can_never_be_answered_is_refused_at_once(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = vlm.scheduler()
    limit = vlm.config.text.max_position_embeddings
    with pytest.raises(ContextError, match=rf"has \d+ tokens .* context {limit}"):
        Question("word " * limit).add(vlm, scheduler)
    with pytest.raises(OptionError, match="n is 0"):
        Question("One").add(vlm, scheduler, n=0)
    monkeypatch.setenv("MLX_QWENVL_MEMORY_LIMIT", str(mx.get_active_memory()))
    with pytest.raises(MemoryExceeded, match="needs about"):
        Question("One").add(vlm, scheduler)
    assert scheduler.is_idle
    with pytest.raises(OptionError, match="max_running is 0"):
        vlm.scheduler(0)


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """Nothing that an earlier test left is let go while memory is measured."""
    gc.collect()
    mx.clear_cache()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage")
def test_what_does_not_fit_beside_others_waits_for_them(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Question("One", (), {"temperature": 0, "max_tokens": 20})
    second = Question("Two " * 100, PICTURES, {"temperature": 0, "max_tokens": 5})
    want = second.alone(vlm).token_ids
    scheduler = vlm.scheduler()
    listener, running = Listener(scheduler), first.add(vlm, scheduler)
    listener.until_told(running, 2)
    waiting = second.add(vlm, scheduler)
    # Fits once the first one's keys and values are gone, and not before.
    least, most = mx.get_active_memory(), mx.get_active_memory() + 2**27
    while most - least > 2**8:
        middle = (least + most) // 2
        monkeypatch.setenv("MLX_QWENVL_MEMORY_LIMIT", str(middle))
        try:
            second.add(vlm, scheduler)
            most = middle
        except MemoryExceeded:
            least = middle
    for job in list(scheduler._queue)[1:]:
        scheduler.cancel(job)
    monkeypatch.setenv("MLX_QWENVL_MEMORY_LIMIT", str(most + 2**16))
    while not running.is_over:
        listener.step()
        assert scheduler.queued == 1 and waiting.progress[0] == 0
    listener.until_idle()
    assert listener.reply(waiting).token_ids == want


class CountedSlices(Slices):
    """Slices whose time is counted: what the device was given, by what it is said to cost."""

    def __init__(self) -> None:
        super().__init__()
        self.work = 0.0  # of what is handed over next

    def hand_over(self, arrays: Any) -> UnderWay:
        """Note the work."""
        cost, self.work = self.work, 0.0
        return UnderWay(arrays, cost, 0.0)

    def wait(self, slice_: UnderWay) -> float:
        """Give the work that was noted."""
        mx.eval(list(slice_.arrays))
        return max(slice_.handing_s, 1e-12)


@pytest.mark.parametrize(
    ("of_token", "of_row", "of_pair"),
    [(1e-3, 1e-6, 1e-8), (1e-5, 1e-4, 1e-7), (3e-3, 1e-4, 1e-6), (1e-6, 1e-7, 1e-9)],
)
def test_no_stream_waits_for_more_than_a_slice(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch, of_token: float, of_row: float, of_pair: float
) -> None:
    scheduler = vlm.scheduler()
    running = Question("Beside", (), {"max_tokens": 900}).add(vlm, scheduler)
    listener = Listener(scheduler)
    listener.until_told(running, 2)
    counted = scheduler.slices = CountedSlices()
    stalls = [0.0]  # seconds of slices between two steps of the running stream
    run, look, keys, rows = (
        *(TextModel.__call__, VisionBlock.__call__, VisionBlock.project, VisionBlock.finish),
    )

    def cost(seconds: float) -> None:
        counted.work += seconds
        stalls[-1] += seconds

    def decoder(this: Any, embeddings: mx.array, cache: Any) -> mx.array:
        if type(cache[0]) is KVCache:
            cost(of_token * embeddings.shape[1])
        else:
            stalls.append(0.0)
        return run(this, embeddings, cache)

    def whole(this: Any, x: mx.array, *angles: mx.array) -> mx.array:
        cost(x.shape[1] * of_row + x.shape[1] ** 2 * of_pair)
        return look(this, x, *angles)

    def project(this: Any, x: mx.array, *angles: mx.array) -> Any:
        cost(x.shape[1] * of_row)
        return keys(this, x, *angles)

    def finish(this: Any, x: mx.array, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        cost(x.shape[1] * k.shape[2] * of_pair)
        return rows(this, x, q, k, v)

    photo = picture(7, 560, 448)
    patches = 40 * 32
    with monkeypatch.context() as patched:
        patched.setattr(TextModel, "__call__", decoder)
        for name, counting in (("__call__", whole), ("project", project), ("finish", finish)):
            patched.setattr(VisionBlock, name, counting)
        job = Question("word " * 200, [photo], {"max_tokens": 2}).add(vlm, scheduler, cache=False)
        while job.progress[0] < job.progress[1]:
            listener.step()
    assert not running.is_over
    # What is not cut further: the first slice of tokens, and some rows of a block.
    least = max(FIRST_TOKENS * of_token, LEAST_ROWS * of_row, LEAST_ROWS * patches * of_pair)
    assert max(stalls) <= max(SHARED_S, least) * 1.001
    depth = len(vlm.model.visual.blocks)
    all_ = depth * (patches * of_row + patches**2 * of_pair) + of_token * job.progress[1]
    assert sum(stalls) >= 0.99 * all_
    # And slices are no smaller than they have to be.
    assert len(stalls) <= 24 + 4 * all_ / SHARED_S


def test_a_walk_of_questions_and_withdrawals_hears_what_each_alone_hears(vlm: QwenVL) -> None:
    asked = questions(9)
    asked += [
        Question(q.text, q.images, q.options | {"temperature": 1.0, "seed": i})
        for i, q in enumerate(asked[:4])
    ]
    want = [question.alone(vlm).token_ids for question in asked]
    for seed in range(6):
        walk, scheduler = random.Random(seed), vlm.scheduler(1 + seed % 4)
        listener = Listener(scheduler)
        jobs: list[tuple[Job, int]] = []
        withdrawn = set()
        for _ in range(150):
            action = walk.random()
            if action < 0.2:
                index = walk.randrange(len(asked))
                jobs.append((asked[index].add(vlm, scheduler), index))
            elif action < 0.25 and jobs:
                job = walk.choice(jobs)[0]
                if not job.is_over:
                    scheduler.cancel(job)
                    withdrawn.add(job)
            else:
                for event in listener.step():
                    assert isinstance(event, Told) and event.job not in withdrawn
                assert scheduler.running <= scheduler.max_running
        listener.until_idle()
        assert not listener.errors and scheduler.tokens == 0
        for job, index in jobs:
            heard = tuple(listener.heard(job))
            if job in withdrawn:
                assert heard == want[index][: len(heard)]
            else:
                assert heard == want[index]
                assert listener.reply(job).finish_reason == "length"


def test_an_idle_scheduler_does_nothing(vlm: QwenVL) -> None:
    scheduler = vlm.scheduler()
    assert scheduler.is_idle and scheduler.step() == []
