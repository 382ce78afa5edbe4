"""Conversations: nothing is computed twice, and nothing old answers for something new."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwenvl import Chat, MediaError, QwenVL
from mlx_qwenvl.engine.options import CallOptions
from mlx_qwenvl.inputs.media import ImageSource
from tests.golden.tiny import picture

ONE, OTHER = picture(11, 112, 84), picture(12, 112, 84)  # of one size, so of the same token ids


class Work:
    """What the model was made to do."""

    def __init__(self) -> None:
        self.pictures = 0
        self.tokens: list[int] = []


@contextmanager
def counting(vlm: QwenVL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """Count pictures through the tower and tokens through each call of the decoder."""
    work = Work()
    tower, decoder = type(vlm.model.visual), type(vlm.model.model)
    run_tower, run_decoder = tower.begin, decoder.__call__

    def count_tower(self: Any, patches: mx.array, grid: tuple[int, int, int]) -> Any:
        work.pictures += patches.shape[0]
        return run_tower(self, patches, grid)

    def count_decoder(self: Any, embeddings: mx.array, cache: Any) -> mx.array:
        work.tokens.append(embeddings.shape[1])
        return run_decoder(self, embeddings, cache)

    with monkeypatch.context() as patched:
        patched.setattr(tower, "begin", count_tower)
        patched.setattr(decoder, "__call__", count_decoder)
        yield work


def test_the_second_question_runs_no_tower_and_no_old_prompt(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tiny.chat()
    first = chat.ask("What is this?", images=[ONE], max_tokens=6, temperature=0)
    with counting(tiny, monkeypatch) as work:
        second = chat.ask("And its colour?", max_tokens=6, temperature=0)
    assert work.pictures == 0
    known = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    assert second.usage.cached_tokens >= known
    prefilled = work.tokens[0]
    assert prefilled == second.usage.prompt_tokens - second.usage.cached_tokens
    # The end of the answer, two turn marks, the question: nothing of the first turn.
    assert prefilled < 0.5 * first.usage.prompt_tokens


def conversation(
    vlm: QwenVL, *questions: tuple[str, list[ImageSource]], fresh: bool
) -> list[tuple[int, ...]]:
    """Answers of a conversation, with what was computed before or without."""
    chat, answers = vlm.chat("Be brief."), []
    for text, images in questions:
        reply = chat.ask(text, images=images, max_tokens=8, temperature=0, cache=not fresh)
        answers.append(reply.token_ids)
    return answers


def test_answers_from_the_cache_equal_answers_without(tiny: QwenVL) -> None:
    questions: list[tuple[str, list[ImageSource]]] = [
        ("What is this?", [ONE]),
        ("And its colour?", []),
        ("Compare it with this.", [OTHER, ONE]),
        ("Thanks", []),
    ]
    assert conversation(tiny, *questions, fresh=False) == conversation(tiny, *questions, fresh=True)


def test_another_picture_of_the_same_size_is_never_answered_from_the_first(
    tiny: QwenVL,
) -> None:
    ask: CallOptions = {"max_tokens": 12, "temperature": 0}
    chat = tiny.chat()
    chat.ask("What?", images=[ONE], **ask)
    del chat.messages[:]  # the same question again, with another picture, over the old cache
    swapped = chat.ask("What?", images=[OTHER], **ask)
    assert swapped.token_ids == tiny.chat().ask("What?", images=[OTHER], **ask).token_ids
    assert swapped.token_ids != tiny.chat().ask("What?", images=[ONE], **ask).token_ids
    assert swapped.usage.cached_tokens < swapped.usage.prompt_tokens - swapped.usage.image_tokens


def test_a_picture_that_changes_on_disk_does_not_change_the_past(
    tiny: QwenVL, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    ONE.save(file)
    chat = tiny.chat()
    chat.ask("What?", images=[file], max_tokens=4, temperature=0)
    OTHER.save(file)
    second = chat.ask("And now?", max_tokens=4, temperature=0)
    kept = tiny.chat()
    kept.ask("What?", images=[ONE], max_tokens=4, temperature=0)
    assert second.token_ids == kept.ask("And now?", max_tokens=4, temperature=0).token_ids


def test_a_question_that_fails_leaves_the_conversation_as_it_was(tiny: QwenVL) -> None:
    chat = tiny.chat()
    chat.ask("Hello", max_tokens=3, temperature=0)
    before = list(chat.messages)
    with pytest.raises(MediaError):
        chat.ask("What?", images=["no-such-file.png"])
    assert chat.messages == before
    assert chat.ask("Again", max_tokens=3, temperature=0).usage.cached_tokens > 0


def test_an_answer_broken_off_stays_as_far_as_it_went(tiny: QwenVL) -> None:
    chat = tiny.chat()
    stream = chat.stream("Tell me more", max_tokens=40, temperature=0)
    heard = [next(stream) for _ in range(3)]
    stream.close()  # type: ignore[attr-defined]
    tokens = tuple(i for chunk in heard for i in chunk.token_ids)
    assert [m.role for m in chat.messages] == ["user", "assistant"]
    assert chat.messages[1].parts[0].token_ids == tokens  # type: ignore[union-attr]
    follow_up = chat.ask("Go on", max_tokens=4, temperature=0)
    del chat.messages[2:]
    again = chat.ask("Go on", max_tokens=4, temperature=0, cache=False)
    assert again.token_ids == follow_up.token_ids


def test_a_chat_belongs_to_itself(tiny: QwenVL) -> None:
    one, other = tiny.chat(), tiny.chat()
    assert isinstance(one, Chat)
    one.ask("Hello", max_tokens=2, temperature=0)
    assert other.messages == []
