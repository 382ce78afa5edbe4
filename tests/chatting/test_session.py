"""What can be done with a conversation, and that nothing of it is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_qwenvl import Chunk, MediaError, OptionError, PromptError, QwenVL
from mlx_qwenvl.arguments import DEFAULT_QUESTION
from mlx_qwenvl.chatting.moving import moved
from mlx_qwenvl.chatting.picture import Picture, read_picture
from mlx_qwenvl.chatting.session import Session, pictures_of
from mlx_qwenvl.chatting.settings import changed, described, for_retry
from mlx_qwenvl.engine.options import GREEDY, Options, Sampling
from mlx_qwenvl.inputs.messages import ImagePart, Message, TextPart, TokensPart
from tests.chatting.conftest import IMAGES
from tests.test_chat import counting


def shapes() -> Picture:
    return read_picture(str(IMAGES / "shapes.png"))


def said(chunks: Iterator[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_the_second_question_about_a_picture_starts_at_once(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = said(session.ask("What is shown in this image?", [shapes()]))
    assert "circle" in first and session.last is not None and session.last.usage is not None
    known = session.last.usage.prompt_tokens + session.last.usage.completion_tokens - 1
    with counting(session.vlm, monkeypatch) as work:
        said(session.ask("What color is the background?"))
    assert work.pictures == 0
    assert session.last.usage is not None and session.last.usage.cached_tokens >= known


def test_a_picture_without_a_question_is_described(session: Session) -> None:
    assert said(session.ask("", [shapes()]))
    assert session.last_question().parts[-1] == TextPart(DEFAULT_QUESTION)


def test_another_answer_takes_the_place_of_the_last(session: Session) -> None:
    said(session.ask("What is shown in this image?", [shapes()]))
    before = list(session.chat.messages)
    chunks, is_forced = session.retry()
    answer = said(chunks)
    assert is_forced and answer
    assert session.chat.messages[0] == before[0] and len(session.chat.messages) == 2
    assert session.last_answer() == answer
    assert len(session.pictures()) == 1 and session.pictures()[0][1] is not None


def test_another_answer_is_drawn_with_another_seed() -> None:
    own = Sampling(temperature=1.0)
    first, is_forced = for_retry({"seed": 7}, own, 1)
    second, _ = for_retry({"seed": 7}, own, 2)
    assert (first["seed"], second["seed"], is_forced) == (8, 9, False)
    drawn, is_forced = for_retry({"top_k": 1}, own, 1)
    assert is_forced and drawn["temperature"] and drawn["top_k"] is None


def test_another_answer_that_fails_leaves_the_last_one(session: Session) -> None:
    said(session.ask("Hello"))
    before = list(session.chat.messages)
    chunks, _ = session.retry({"max_tokens": -1})
    with pytest.raises(OptionError):
        said(chunks)
    assert session.chat.messages == before


def test_another_answer_that_is_stopped_before_its_first_word_leaves_the_last_one(
    session: Session,
) -> None:
    said(session.ask("Hello"))
    before = list(session.chat.messages)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    session.instruct("Answer anew.")  # so that there is something to compute
    chunks, _ = session.retry({"on_prefill": interrupt})
    with pytest.raises(KeyboardInterrupt):
        said(chunks)
    assert session.chat.messages[:2] == before


def test_an_answer_that_is_stopped_stays_as_far_as_it_went(session: Session) -> None:
    stream: Any = session.ask("What is shown in this image?", [shapes()])
    heard = [next(stream) for _ in range(3)]
    stream.close()
    assert session.last_answer() == "".join(chunk.text for chunk in heard)
    assert session.totals.stopped == 1 and session.last is None
    assert len(session.originals) == 1


def test_a_system_message_after_the_answer_stays_when_it_is_given_anew(session: Session) -> None:
    said(session.ask("Hello"))
    session.instruct("Be brief.")
    said(session.retry()[0])
    roles = [message.role for message in session.chat.messages]
    assert roles == ["system", "user", "assistant"]
    assert session.systems() == ["Be brief."]


def test_a_changed_question_keeps_its_pictures(session: Session) -> None:
    said(session.ask("What is shown in this image?", [shapes()]))
    answer = said(session.replace("What color is the background?"))
    assert "background" in answer.lower() or "white" in answer.lower()
    (question, _) = session.chat.messages
    assert question.parts[1:] == (TextPart("What color is the background?"),)
    assert len(session.pictures()) == 1


@pytest.mark.parametrize("action", ["retry", "replace"])
def test_nothing_asked_is_nothing_to_ask_again(session: Session, action: str) -> None:
    with pytest.raises(PromptError, match="nothing was asked"):
        session.retry() if action == "retry" else session.replace("x")


def test_an_unreadable_picture_leaves_the_conversation_as_it_was(session: Session) -> None:
    said(session.ask("Hello"))
    before = list(session.chat.messages)
    with pytest.raises(MediaError, match=r"cat\.png"):
        said(session.ask("What?", [Picture(b"no picture", "cat.png")]))
    assert session.chat.messages == before


def test_boxes_are_drawn_on_the_picture_as_it_was_given(
    session: Session,
) -> None:
    said(session.ask("What is shown in this image?", [shapes()]))
    point = "<|object_ref_start|>it<|object_ref_end|><|box_start|>(100,100),(500,500)<|box_end|>"
    session.chat.messages[-1] = Message("assistant", (TextPart(point),))
    (box,) = session.boxes()
    width, height = Image.open(shapes()).size
    assert box.label == "it"
    assert box.xyxy == pytest.approx((width / 10, height / 10, width / 2, height / 2))
    drawn = session.drawn()
    assert drawn.size == (width, height)
    # Without the original the model's own view does.
    session.originals.clear()
    other = session.drawn()
    assert other.size == drawn.size
    difference = np.asarray(other, int) - np.asarray(drawn, int)
    assert 0 < np.abs(difference).mean() < 5


def test_another_model_is_told_the_words_and_shown_the_pictures(
    session: Session, tiny: QwenVL
) -> None:
    said(session.ask("What is shown in this image?", [shapes()], {"max_pixels": 84 * 84}))
    answer = session.last_answer()
    messages, originals = moved(session, tiny)
    session.move_to(tiny, messages, originals)
    assert session.last_answer() == answer
    assert isinstance(session.chat.messages[1].parts[0], TextPart)
    assert said(session.ask("And now?", options={"max_tokens": 3}))
    # The other model looks at the original, not at what the first one saw.
    (seen,) = pictures_of(session.chat.messages)
    assert seen.digest == tiny.open(ImagePart(shapes()), Options()).digest


def test_the_same_vocabulary_keeps_the_tokens(session: Session, talker: QwenVL) -> None:
    said(session.ask("Hello"))
    messages, _ = moved(session, talker)
    assert isinstance(messages[1].parts[0], TokensPart)
    assert messages == session.chat.messages


@pytest.mark.parametrize(
    ("command", "value", "message"),
    [
        ("temperature", "hot", "a number or default"),
        ("temperature", "-1", "from 0 to 100"),
        ("temperature", "nan", "from 0 to 100"),
        ("topk", "1.5", "a whole number"),
        ("topk", "-1", "from 0"),
        ("topp", "1.5", "from 0 to 1"),
        ("minp", "2", "from 0 to 1"),
        ("maxtokens", "0", "from 1"),
        ("seed", "x", "a whole number"),
    ],
)
def test_a_setting_outside_its_range_is_refused(command: str, value: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        changed({}, command, value, GREEDY)


def test_settings_are_told_as_they_are_in_force() -> None:
    options = changed({}, "topk", "40", GREEDY)
    assert described(options, GREEDY).startswith("temperature 1, top-k 40, top-p 1;")
    assert "likeliest" in described(changed(options, "topk", "default", GREEDY), GREEDY)
    assert "at most 7 tokens" in described(changed({}, "maxtokens", "7", GREEDY), GREEDY)
    assert "seed 3" in described({"seed": 3, "temperature": 1.0, "min_p": 0.1}, GREEDY)
