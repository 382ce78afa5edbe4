"""Thoughts before an answer: told apart in Python, on the command line and on the wire."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_qwenvl import Chunk, Grammar, QwenVL, load
from mlx_qwenvl.chatting.screen import PlainScreen
from mlx_qwenvl.clean import clean
from mlx_qwenvl.compat import ChatCompletionRequest, CompletionRequest
from mlx_qwenvl.compat.answering import Answering
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.thinking import Thoughts
from mlx_qwenvl.generate import main
from mlx_qwenvl.inputs.messages import user_message
from server.routes.chat import _Choice
from tests.crowds import Listener, Question
from tests.thinking import CLOSE_ID, OPEN_ID, write_thinking

CASES = [
    ("<think>\nOne.\nTwo.\n</think>\n\nThree.", False, "One.\nTwo.", "Three."),
    ("One.\n</think>\n\nThree.\n", True, "One.", "Three.\n"),
    ("  <think>a</think>b", False, "a", "b"),
    ("</think>b", True, "", "b"),
    ("cut off\n", True, "cut off", ""),
    ("a <think>b</think>", False, "", "a <think>b</think>"),
    ("<thin>", False, "", "<thin>"),
    ("<thi", False, "", "<thi"),
    ("a</thinks></think> b</think>", True, "a</thinks>", " b</think>"),
    ("no thoughts", False, "", "no thoughts"),
    ("", True, "", ""),
]


@pytest.mark.parametrize(("text", "begun", "thinking", "answer"), CASES)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_thoughts_are_told_apart_however_the_text_comes(
    text: str, begun: bool, thinking: str, answer: str, size: int
) -> None:
    thoughts = Thoughts(begun)
    told = [thoughts.feed(text[i : i + size]) for i in range(0, len(text), size)]
    told.append(thoughts.finish())
    assert "".join(thought for thought, _ in told) == thinking
    assert "".join(said for _, said in told) == answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_thinking(tmp_path_factory.mktemp("thinking"))


@pytest.fixture(scope="module")
def vlm(folder: Path) -> QwenVL:
    return load(folder, dtype="float32")


def test_what_a_template_opens_is_thinking_until_it_is_closed(vlm: QwenVL) -> None:
    open_ended = vlm.generate("Why?", max_tokens=6, temperature=0)
    assert open_ended.thinking and open_ended.text == ""
    prompt = vlm.prompt([user_message("Why?", [])], Options())
    assert prompt.token_ids[-2] == OPEN_ID, "the mark is one token, the line's end another"
    assert open_ended.to_dict()["thinking"] == open_ended.thinking
    assert open_ended.usage.thinking_tokens == open_ended.usage["thinking_tokens"] == 6
    closed = vlm.generate("Why?", max_tokens=3, temperature=0, logit_bias={CLOSE_ID: 100.0})
    assert closed.thinking == "" and closed.text == "</think></think>"
    assert "thinking" not in closed.to_dict()
    assert closed.usage.thinking_tokens == 1, "the mark that closes them is one of them"


def test_in_a_crowd_thoughts_are_told_apart_too(vlm: QwenVL) -> None:
    scheduler = vlm.scheduler()
    listener = Listener(scheduler)
    jobs = [Question(t, (), {"max_tokens": 6, "temperature": 0}).add(vlm, scheduler) for t in "ab"]
    listener.until_idle()
    for job in jobs:
        reply = listener.reply(job)
        assert reply.thinking and not reply.text


def test_in_mistral_rss_form_they_are_reasoning_content(vlm: QwenVL) -> None:
    drawn: dict[str, Any] = {"temperature": 1.0, "logit_bias": {CLOSE_ID: 6.0}, "max_tokens": 24}
    told = vlm.generate("Why?", **drawn, seed=3)
    answering = Answering(vlm, seed=3)
    message = answering.chat(ChatCompletionRequest("Why?", **drawn)).choices[0].message
    assert told.thinking and (message.reasoning_content, message.content) == (
        told.thinking,
        told.text,
    )
    request = ChatCompletionRequest("Why?", **drawn, stream=True)
    deltas = [piece.choices[0].delta for piece in Answering(vlm, seed=3).stream(request)]
    assert "".join(delta.reasoning_content or "" for delta in deltas) == told.thinking
    assert deltas[-1].reasoning_content is None


def test_raw_text_keeps_them_as_they_came(vlm: QwenVL) -> None:
    bias = {CLOSE_ID: 100.0}
    request = CompletionRequest("<think>", max_tokens=2, temperature=0, logit_bias=bias)
    assert Answering(vlm).complete(request).choices[0].text == "</think>" * 2


FORM = Grammar("regex", "[ab]{3}")


def test_a_grammar_begins_behind_the_thoughts(vlm: QwenVL) -> None:
    asked: dict[str, Any] = {"grammar": FORM, "max_tokens": 24, "temperature": 1.0, "seed": 3}
    bias: dict[str, Any] = {"logit_bias": {CLOSE_ID: 6.0}}
    reply = vlm.generate("Why?", **asked, **bias)
    assert len(reply.thinking) > 1 and re.fullmatch("[ab]{3}", reply.text)
    assert reply.finish_reason == "stop" and CLOSE_ID in reply.token_ids
    scheduler = vlm.scheduler()
    listener = Listener(scheduler)
    job = Question("Why?", (), asked | bias).add(vlm, scheduler)
    listener.until_idle()
    assert listener.reply(job).token_ids == reply.token_ids
    # An end does not come before the answer, not even where nothing else is wanted.
    ends = dict.fromkeys(vlm.end_ids, 100.0)
    restless = vlm.generate("Why?", **asked, logit_bias=ends)
    assert restless.finish_reason == "length" and restless.usage.thinking_tokens == 24


def test_without_thoughts_a_grammar_begins_with_the_answer(
    younger: Callable[[str], QwenVL], vlm: QwenVL
) -> None:
    asked: dict[str, Any] = {"grammar": FORM, "max_tokens": 24, "temperature": 0}
    begun = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So: "}]
    for reply in (
        younger("qwen3_vl").generate("Why?", **asked),
        vlm.generate(messages=begun, **asked),
    ):
        assert re.fullmatch("[ab]{3}", reply.text) and not reply.thinking


def test_a_chat_goes_on_without_thoughts(vlm: QwenVL) -> None:
    chat = vlm.chat()
    first = chat.ask("Why?", max_tokens=6, temperature=0)
    assert first.thinking
    (part,) = chat.messages[-1].parts
    assert getattr(part, "text", None) == ""


def test_a_vocabulary_without_the_marks_has_no_thoughts(
    younger: Callable[[str], QwenVL],
) -> None:
    vlm = younger("qwen3_vl")
    built = vlm.generate("Why?", max_tokens=4, temperature=0)
    assert built.text and not built.thinking
    assert built.usage.thinking_tokens == 0 and "thinking_tokens" not in built.usage.to_dict()
    assert vlm.tokenizer.find_token("<think>") is None


def test_the_command_shows_thoughts_on_stderr_where_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], vlm: QwenVL
) -> None:
    thought = vlm.generate("Why?", max_tokens=6, temperature=0).thinking
    shown_as = clean(thought)
    asked = ["Why?", "--model", str(folder), "--max-tokens", "6", "--dtype", "float32"]
    assert main(asked) == 0
    plain = capsys.readouterr()
    assert plain.out == "\n" and shown_as not in plain.err
    assert main([*asked, "--show-thinking"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "\n" and shown.err.endswith(f"{shown_as}\n")
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["thinking"] == thought


PIECES = [Chunk("", (1,), thinking="Let me"), Chunk("", (2,), thinking=" see."), Chunk("Red", (3,))]


def test_a_chat_on_plain_lines_shows_them_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    PlainScreen().answer(iter(PIECES))
    assert capsys.readouterr() == ("Red\n", "")
    PlainScreen(shows_thinking=True).answer(iter(PIECES))
    assert capsys.readouterr() == ("Red\n", "Let me see.\n")


def test_the_server_gives_them_as_reasoning_content() -> None:
    choice = _Choice(None)
    deltas = [delta for piece in PIECES for delta in choice.hear(piece)]
    assert deltas == [
        {"content": "", "reasoning_content": "Let me"},
        {"content": "", "reasoning_content": " see."},
        {"content": "Red"},
    ]
    assert choice.message["reasoning_content"] == "Let me see."
    assert choice.message["content"] == "Red"
    plain = _Choice(None)
    plain.hear(PIECES[2])
    assert "reasoning_content" not in plain.message
