"""Answers for event loops: the same ones, cancelled at once, mixed with others, no thread left."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwenvl import Chunk, ContextError, MediaError, OptionError, QwenVL, load
from mlx_qwenvl.batching.ask import ask_all
from mlx_qwenvl.engine import turnstile
from mlx_qwenvl.engine.options import CallOptions
from mlx_qwenvl.engine.scheduler import Scheduler
from mlx_qwenvl.engine.turnstile import Turnstile
from tests.command_lines import SHAPES, run
from tests.golden.tiny import picture

ONE, OTHER = picture(31, 112, 84), picture(32, 112, 84)
GREEDY: CallOptions = {"temperature": 0, "max_tokens": 12}
FRESH: CallOptions = {"temperature": 0, "max_tokens": 12, "cache": False}
LONG: CallOptions = {"temperature": 0, "max_tokens": 400, "speculation": False, "stop": None}
PATIENCE_S = 20.0  # on a busy machine


def answering_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mlx-qwenvl"]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.002)


@contextmanager
def counting(vlm: QwenVL, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the tokens of each call of the decoder."""
    decoder, calls = type(vlm.model.model), list[int]()
    compute = decoder.__call__

    def count(self: Any, embeddings: mx.array, cache: Any) -> mx.array:
        calls.append(embeddings.shape[0] * embeddings.shape[1])
        return compute(self, embeddings, cache)

    with monkeypatch.context() as patched:
        patched.setattr(decoder, "__call__", count)
        yield calls


def test_the_answer_is_that_of_generate(tiny: QwenVL) -> None:
    reply = asyncio.run(tiny.agenerate("What?", images=[ONE], **GREEDY))
    expected = tiny.generate("What?", images=[ONE], **GREEDY)
    assert (reply.token_ids, reply.text) == (expected.token_ids, expected.text)
    assert reply.finish_reason == expected.finish_reason
    assert reply.usage.prompt_tokens == expected.usage.prompt_tokens
    assert reply.sources == (ONE,)
    assert reply.model == tiny.name


def test_the_pieces_of_a_stream_make_the_answer(tiny: QwenVL) -> None:
    async def listen() -> list[Chunk]:
        return [chunk async for chunk in tiny.astream("What?", images=[ONE], **GREEDY)]

    chunks = asyncio.run(listen())
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    expected = tiny.generate("What?", images=[ONE], **GREEDY)
    assert "".join(chunk.text for chunk in chunks) == expected.text
    assert tuple(i for chunk in chunks for i in chunk.token_ids) == expected.token_ids


def test_questions_asked_at_once_share_the_steps_and_keep_their_answers(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["What?", "Why?", "Who is it?", "When?"]
    plain: CallOptions = {"temperature": 0, "max_tokens": 40, "cache": False, "speculation": False}
    with counting(tiny, monkeypatch) as alone:
        expected = [tiny.generate(text, **plain).token_ids for text in questions]

    async def ask() -> list[tuple[int, ...]]:
        replies = await asyncio.gather(*(tiny.agenerate(text, **plain) for text in questions))
        return [reply.token_ids for reply in replies]

    with counting(tiny, monkeypatch) as together:
        assert asyncio.run(ask()) == expected
    assert len(together) < 0.6 * len(alone)


def test_the_loop_goes_on_while_an_answer_is_computed(tiny: QwenVL) -> None:
    async def main() -> tuple[int, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        reply = await tiny.agenerate("Tell me more", **LONG)
        ticking.cancel()
        return ticks, reply.usage.completion_tokens

    ticks, tokens = asyncio.run(main())
    assert ticks > 2 * tokens


@pytest.mark.parametrize("end", ["cancel", "timeout", "break", "close"])
def test_an_answer_that_nobody_waits_for_ends_within_a_token_or_two(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    # Each step waits for the loop to have heard of it, so that steps can be compared with chunks.
    heard: list[Chunk] = []
    step = Scheduler.step

    def in_lockstep(self: Scheduler) -> Any:
        count, events = len(heard), step(self)
        if events:
            deadline = time.monotonic() + 0.05
            while len(heard) <= count and time.monotonic() < deadline:
                time.sleep(0.0005)
        return events

    async def listen() -> None:
        async for chunk in tiny.astream("Tell me more", **LONG):
            heard.append(chunk)
            if end == "break" and len(heard) == 5:
                break

    async def main() -> None:
        if end == "break":
            await listen()
        elif end == "close":
            async with aclosing(tiny.astream("Tell me more", **LONG)) as stream:
                for _ in range(5):
                    heard.append(await anext(stream))
        else:
            task = asyncio.create_task(listen())
            while len(heard) < 5:
                await asyncio.sleep(0)
            if end == "cancel":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(task, 0)

    monkeypatch.setattr(Scheduler, "step", in_lockstep)
    with counting(tiny, monkeypatch) as calls:
        asyncio.run(main())
        until(lambda: not answering_threads())
    assert len(calls) < len(heard) + 10 < LONG["max_tokens"]  # type: ignore[operator]
    monkeypatch.undo()
    after = asyncio.run(tiny.agenerate("What?", **GREEDY))
    assert after.token_ids == tiny.generate("What?", **FRESH).token_ids


def test_a_question_cancelled_before_its_turn_is_never_read(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    add = Scheduler.add

    def note(self: Scheduler, prompt: Any, *rest: Any, **named: Any) -> Any:
        read.append(tiny.tokenizer.decode(prompt.token_ids.tolist()))
        return add(self, prompt, *rest, **named)

    monkeypatch.setattr(Scheduler, "add", note)

    async def main() -> None:
        with tiny.turnstile._lock:  # nothing is computed meanwhile
            task = asyncio.create_task(tiny.agenerate("Never mind", **GREEDY))
            while not answering_threads():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    until(lambda: not answering_threads())
    assert not any("Never mind" in text for text in read)


def test_errors_reach_whoever_waits_and_nobody_else(tiny: QwenVL) -> None:
    async def main() -> Any:
        return await asyncio.gather(
            tiny.agenerate("What?", images=["no-such-file.png"]),
            tiny.agenerate("What?", max_tokens=-1),
            tiny.agenerate("What?", max_kv_size=3),
            tiny.agenerate("What?", **GREEDY),
            return_exceptions=True,
        )

    picture_error, option_error, context_error, reply = asyncio.run(main())
    assert isinstance(picture_error, MediaError)
    assert isinstance(option_error, OptionError)
    assert isinstance(context_error, ContextError)
    assert reply.token_ids == tiny.generate("What?", **GREEDY).token_ids


def test_a_failure_that_is_nobodys_reaches_all_and_the_next_question_is_answered(
    tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load(tiny_folder, dtype="float32")
    expected = vlm.generate("What?", **GREEDY).token_ids
    step, failures = Scheduler.step, [RuntimeError("the device is gone")]

    def fail(self: Scheduler) -> Any:
        if self.running == 2 and failures:
            raise failures.pop()
        return step(self)

    monkeypatch.setattr(Scheduler, "step", fail)

    async def main() -> list[Any]:
        asked = (vlm.agenerate(text, **LONG) for text in ("What?", "Why?"))
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [str(error) for error in asyncio.run(main())] == ["the device is gone"] * 2
    assert asyncio.run(vlm.agenerate("What?", **GREEDY)).token_ids == expected
    assert vlm.generate("What?", **GREEDY).token_ids == expected


def test_the_thread_goes_with_its_work_and_comes_with_the_next_question(tiny: QwenVL) -> None:
    asyncio.run(tiny.agenerate("What?", **GREEDY))
    until(lambda: not answering_threads())
    asyncio.run(tiny.agenerate("What?", **GREEDY))
    until(lambda: not answering_threads())


def test_a_program_that_leaves_in_the_middle_of_an_answer_ends_at_once_and_quietly() -> None:
    program = f"""
import asyncio, atexit, threading
from mlx_qwenvl import load

def answering():
    return [thread.name for thread in threading.enumerate() if thread.name == "mlx-qwenvl"]

atexit.register(lambda: print("left", answering()))  # the last thing that happens
vlm = load("demo")

async def main():
    # Of a loop that was stopped, nobody cancels anything.
    stream = vlm.astream("Describe it.", images=[{str(SHAPES)!r}], min_pixels=100_000)
    global kept
    kept = asyncio.ensure_future(anext(stream)), stream
    while not answering():
        await asyncio.sleep(0.001)
    kept[0]._log_destroy_pending = False

asyncio.new_event_loop().run_until_complete(main())
print("leaving", answering())
"""
    ran = run("-W", "error", "-c", program)
    assert ran.out.splitlines() == ["leaving ['mlx-qwenvl']", "left []"]
    assert ran.code == 0, ran.err


def test_answers_of_threads_and_loops_mix_and_stay_the_same(tiny: QwenVL) -> None:
    """Sync calls in threads and in the loop's own, async ones beside them, and a stream at rest."""
    texts = ["What?", "Why?", "Who is it?", "When was that?"]
    expected = {text: tiny.generate(text, **FRESH).token_ids for text in texts}
    resting = tiny.stream("Tell me more", **LONG)
    next(resting)

    async def main() -> list[tuple[str, tuple[int, ...]]]:
        tasks = [asyncio.create_task(tiny.agenerate(text, **GREEDY)) for text in texts]
        answers = [(text, tiny.generate(text, **GREEDY).token_ids) for text in texts]
        await asyncio.sleep(0)
        answers += [(text, tiny.generate(text, **GREEDY).token_ids) for text in texts]
        replies = await asyncio.gather(*tasks)
        return answers + [(text, r.token_ids) for text, r in zip(texts, replies, strict=True)]

    for text, tokens in asyncio.run(main()):
        assert tokens == expected[text]
    assert len(list(resting)) > 10


def test_many_pictures_are_asked_about_while_others_ask(tiny: QwenVL) -> None:
    pictures = [picture(seed, 84, 84) for seed in range(40, 46)]
    expected = {id(p): tiny.generate("What?", images=[p], **FRESH).token_ids for p in pictures}
    alone = tiny.generate("Why?", **FRESH).token_ids
    found: dict[int, tuple[int, ...]] = {}

    def ask_about_all() -> None:
        for answer in ask_all(tiny, pictures, "What?", **GREEDY):
            assert answer.reply is not None
            found[id(answer.image)] = answer.reply.token_ids
        mx.clear_streams()

    async def main() -> list[tuple[int, ...]]:
        asking = threading.Thread(target=ask_about_all)
        asking.start()
        answers = []
        while asking.is_alive():
            answers.append((await tiny.agenerate("Why?", **GREEDY)).token_ids)
        return answers

    assert set(asyncio.run(main())) == {alone}
    assert found == expected


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_what_one_thread_computed_another_goes_on_with(tiny: QwenVL, kv_bits: int | None) -> None:
    """Whoever asked, and wherever it was broken off: MLX's graphs belong to their threads."""
    chooser = random.Random(1)
    ask: CallOptions = {"temperature": 0, "max_tokens": 30, "kv_bits": kv_bits}
    chat = tiny.chat()

    async def listen(text: str, images: list[Any], count: int) -> None:
        async with aclosing(chat.astream(text, images=images, **ask)) as stream:
            for _ in range(count):
                if (await anext(stream)).finish_reason is not None:
                    return

    for turn in range(24):
        text, images, count = f"And {turn % 5}?", [] if turn else [ONE], chooser.choice([1, 5, 40])
        if chooser.random() < 0.5:
            asyncio.run(listen(text, images, count))
        else:
            for _ in zip(range(count), chat.stream(text, images=images, **ask), strict=False):
                pass
        if chooser.random() < 0.3:
            until(lambda: not answering_threads())
    kept = list(chat.messages)
    again = asyncio.run(chat.aask("Well?", **ask))
    assert again.usage.cached_tokens > 0.9 * again.usage.prompt_tokens - 10
    chat.messages[:] = kept
    ask["cache"] = False
    assert chat.ask("Well?", **ask).token_ids == again.token_ids


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_what_was_computed_side_by_side_another_thread_goes_on_with(
    tiny: QwenVL, kv_bits: int | None
) -> None:
    """Answers in one array, copied out of it where nobody waits any more."""
    long, short = LONG.copy(), GREEDY.copy()
    long["kv_bits"] = short["kv_bits"] = kv_bits
    without = short.copy()
    without["cache"] = False
    chats = [tiny.chat(system) for system in ("Be brief.", "Be kind.", "Be quick.")]

    async def listen(number: int) -> None:
        stream = chats[number].astream("Tell me more", **long)
        async with aclosing(stream):
            for _ in range(4 + number):
                await anext(stream)

    async def main() -> None:
        await asyncio.gather(*(listen(number) for number in range(len(chats))))

    asyncio.run(main())
    until(lambda: not answering_threads())
    for chat in chats:
        kept = list(chat.messages)
        reply = chat.ask("Well?", **short)
        assert reply.usage.cached_tokens > 10
        chat.messages[:] = kept
        fresh = chat.ask("Well?", **without)
        assert reply.token_ids == fresh.token_ids


def test_what_ctrl_c_left_half_done_another_thread_goes_on_with(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, count = type(tiny.model.model), 0
    compute = decoder.__call__

    def interrupted(self: Any, embeddings: mx.array, cache: Any) -> mx.array:
        nonlocal count
        made = compute(self, embeddings, cache)
        count += 1
        if count == 4:  # a step is described, and nobody has asked the device for it yet
            raise KeyboardInterrupt
        return made

    chat = tiny.chat("Be frank.")
    with monkeypatch.context() as patched:
        patched.setattr(decoder, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.ask("Tell me more", **LONG)
    assert [message.role for message in chat.messages] == ["system", "user", "assistant"]
    kept = list(chat.messages)
    reply = asyncio.run(chat.aask("Go on", **GREEDY))
    assert reply.usage.cached_tokens > 10
    chat.messages[:] = kept
    assert chat.ask("Go on", **FRESH).token_ids == reply.token_ids


def test_a_conversation_goes_on_where_its_answer_was_cancelled(tiny: QwenVL) -> None:
    chat = tiny.chat()

    async def main() -> list[Chunk]:
        heard: list[Chunk] = []

        async def listen() -> None:
            async for chunk in chat.astream("Tell me more", **LONG):
                heard.append(chunk)

        task = asyncio.create_task(listen())
        while len(heard) < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return heard

    tokens = tuple(i for chunk in asyncio.run(main()) for i in chunk.token_ids)
    assert [message.role for message in chat.messages] == ["user", "assistant"]
    assert chat.messages[1].parts[0].token_ids == tokens  # type: ignore[union-attr]
    assert asyncio.run(chat.aask("Go on", **GREEDY)).usage.cached_tokens > len(tokens)


def test_a_question_that_fails_leaves_the_conversation_as_it_was(tiny: QwenVL) -> None:
    chat = tiny.chat()
    asyncio.run(chat.aask("Hello", **GREEDY))
    before = list(chat.messages)
    with pytest.raises(MediaError):
        asyncio.run(chat.aask("What?", images=["no-such-file.png"]))
    assert chat.messages == before


def test_the_second_question_of_a_conversation_looks_at_no_picture_again(tiny: QwenVL) -> None:
    chat = tiny.chat()
    first = asyncio.run(chat.aask("What?", images=[OTHER], **GREEDY))
    second = asyncio.run(chat.aask("And?", **GREEDY))
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    assert second.sources == (None,)


def test_who_waits_at_the_turnstile_goes_before_who_was_there_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turnstile, "COURTESY_S", 0.5)
    stile, order, inside = Turnstile(), list[str](), threading.Event()

    def first() -> None:
        inside.set()
        until(lambda: stile._asked == other.ident)
        order.append("first")

    other = threading.Thread(
        target=lambda: inside.wait() and stile.step(lambda: order.append("other"))
    )
    other.start()
    stile.step(first)
    stile.step(lambda: order.append("second"))
    other.join()
    assert order == ["first", "other", "second"]


def test_a_step_may_hold_another_of_its_own_thread() -> None:
    stile = Turnstile()
    assert stile.step(lambda: stile.step(lambda: 1)) == 1


def test_a_step_that_fails_lets_the_next_one_pass() -> None:
    stile = Turnstile()
    with pytest.raises(ZeroDivisionError):
        stile.step(lambda: 1 / 0)
    passed: list[int] = []
    thread = threading.Thread(target=lambda: passed.append(stile.step(lambda: 1)))
    thread.start()
    thread.join(PATIENCE_S)
    assert passed == [1]
