"""The chat in a real pseudo terminal, as a person meets it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.chatting.conftest import IMAGES
from tests.chatting.terminal import Terminal

ASK = r"\image shapes.png What is shown in this image?"


def test_a_session_from_greeting_to_ctrl_c_twice() -> None:
    with Terminal(cwd=IMAGES, size=(80, 30)) as terminal:
        terminal.ask("Hello!")
        terminal.ask(ASK)
        terminal.ask("\\stats")
        terminal.ask("\\imges")
        text = terminal.text
        assert "demo" in text and "\\help lists the commands" in text
        assert "> Hello!\nHello!" in text
        assert f"> {ASK}\nThe image shows a red circle and a blue square.\n" in text
        assert "of them known" in text
        assert "error: no command \\imges; did you mean \\images?" in text
        # The question comes back to be changed, with its picture.
        terminal.type("\\edit\r")
        terminal.wait("\n> What is shown in this image?")
        terminal.type("\x15What color is the background?\r")
        terminal.wait("background is")
        terminal.ask("\\images")
        assert "1. shapes.png" in terminal.text and "\n2. " not in terminal.text
        # The window gets narrower.
        terminal.ask("\\clear")
        terminal.resize(30, 30)
        terminal.ask(ASK)
        assert "The image shows a red circle\nand a blue square." in terminal.text
        terminal.type("abc")
        terminal.wait("> abc")
        terminal.type("\x03")
        terminal.wait("Ctrl-C again")
        terminal.wait(lambda: "> abc" not in terminal.text)
        terminal.type("\x03")
        assert terminal.leave() == 0
    assert b"reading shapes.png" in terminal.raw
    kept = Path(os.environ["XDG_STATE_HOME"]) / "mlx-qwenvl" / "chat_history"
    assert "+Hello!" in kept.read_text()


def test_ctrl_c_stops_an_answer_and_keeps_it(endless: Path, tmp_path: Path) -> None:
    long = ("--temperature", "0", "--max-tokens", "1000000")
    with Terminal("--model", endless, *long, cwd=tmp_path) as terminal:
        terminal.wait_for_prompt()
        terminal.type("Go on.\r")
        terminal.wait(lambda: len(terminal.raw.split(b"Go on.", 1)[-1]) > 2000)
        terminal.type("typed meanwhile\x03")
        terminal.wait("stopped; what was said stays in the conversation")
        terminal.wait_for_prompt()
        assert "typed" not in terminal.text, "keys are not echoed into the answer"
        terminal.ask("\\stats")
        terminal.ask(f"\\save {tmp_path}/kept.json")
        terminal.type("\x04")
        assert terminal.leave() == 0
    assert "last answer: stopped" in terminal.text
    assert (tmp_path / "kept.json").read_text().count('"tokens"') == 1


def test_previews_reach_a_terminal_that_can_and_no_color_is_respected() -> None:
    env = {"TERM_PROGRAM": "iTerm.app", "NO_COLOR": "1"}
    with Terminal("--model", "demo", "--preview", "--no-history", cwd=IMAGES, env=env) as terminal:
        terminal.ask(ASK)
        terminal.ask("\\nothing")
        terminal.type("\x04")
        assert terminal.leave() == 0
    assert b"\x1b]1337;File=inline=1;" in terminal.raw
    assert not (Path(os.environ["XDG_STATE_HOME"]) / "mlx-qwenvl").exists()
    colours = re.findall(rb"\x1b\[([0-9;]*)m", terminal.raw)
    codes = {int(code or 0) for each in colours for code in each.split(b";")}
    assert not codes & {*range(30, 49), *range(90, 108)}


def test_a_dumb_terminal_gets_plain_lines() -> None:
    with Terminal("--model", "demo", cwd=IMAGES, env={"TERM": "dumb"}) as terminal:
        terminal.wait("\n>")
        terminal.type("Hello!\n")
        terminal.wait("help you")
        terminal.wait_for_prompt()
        terminal.type("\x03")
        terminal.wait("Ctrl-C again leaves")
        terminal.wait_for_prompt()
        terminal.type("\x03")
        assert terminal.leave() == 0
    assert b"\x1b" not in terminal.raw
