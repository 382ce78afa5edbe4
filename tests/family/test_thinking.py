"""Thoughts before an answer: told apart in Python, on the command line and on the wire."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_qwenvl import Chunk, QwenVL, load
from mlx_qwenvl.chatting.screen import PlainScreen
from mlx_qwenvl.clean import clean
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.thinking import Thoughts
from mlx_qwenvl.generate import main
from mlx_qwenvl.inputs.messages import user_message
from server.routes.chat import _Choice
from tests.crowds import Listener, Question
from tests.golden.tiny_files import LEARNED_TOKENS, TOKEN_ID
from tests.golden.younger import write_younger

OPEN_ID, CLOSE_ID = (LEARNED_TOKENS + len(TOKEN_ID) + index for index in range(2))

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
    """A member whose template opens thoughts, as those of the Thinking variants do."""
    folder = write_younger(tmp_path_factory.mktemp("thinking"), "qwen3_vl")
    raw = json.loads((folder / "tokenizer.json").read_text())
    for number, mark in ((OPEN_ID, "<think>"), (CLOSE_ID, "</think>")):
        token = raw["added_tokens"][-1] | {"id": number, "content": mark, "special": False}
        raw["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    opened = template.replace(
        "assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}"
    )
    assert opened != template
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": opened}))
    return folder


@pytest.fixture(scope="module")
def vlm(folder: Path) -> QwenVL:
    return load(folder, dtype="float32")


def test_what_a_template_opens_is_thinking_until_it_is_closed(vlm: QwenVL) -> None:
    open_ended = vlm.generate("Why?", max_tokens=6, temperature=0)
    assert open_ended.thinking and open_ended.text == ""
    prompt = vlm.prompt([user_message("Why?", [])], Options())
    assert prompt.token_ids[-2] == OPEN_ID, "the mark is one token, the line's end another"
    assert open_ended.to_dict()["thinking"] == open_ended.thinking
    closed = vlm.generate("Why?", max_tokens=3, temperature=0, logit_bias={CLOSE_ID: 100.0})
    assert closed.thinking == "" and closed.text == "</think></think>"
    assert "thinking" not in closed.to_dict()


def test_in_a_crowd_thoughts_are_told_apart_too(vlm: QwenVL) -> None:
    scheduler = vlm.scheduler()
    listener = Listener(scheduler)
    jobs = [Question(t, (), {"max_tokens": 6, "temperature": 0}).add(vlm, scheduler) for t in "ab"]
    listener.until_idle()
    for job in jobs:
        reply = listener.reply(job)
        assert reply.thinking and not reply.text


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
    assert not vlm.tokenizer.has_token("<think>")


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
