"""What typed lines do, with the embedded model and a screen that remembers."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageGrab

from mlx_qwenvl import MemoryExceeded, QwenVL
from mlx_qwenvl.chatting import grab
from mlx_qwenvl.chatting.commands import ALIASES, COMMANDS, help_text
from mlx_qwenvl.chatting.picture import read_picture
from mlx_qwenvl.chatting.session import Session
from mlx_qwenvl.chatting.talk import Talk
from mlx_qwenvl.grounding.boxes import find_boxes
from mlx_qwenvl.grounding.frame import Frame
from mlx_qwenvl.inputs.messages import Message, TextPart
from tests.chatting.conftest import IMAGES, Recorder

ASK = r"\image shapes.png What is shown in this image?"
POINT = "<|object_ref_start|>it<|object_ref_end|><|box_start|>(100,100),(500,500)<|box_end|>"


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        width, height = picture.size
    return width, height


def point(talk: Talk) -> None:
    """Let the last answer point at something."""
    talk.take(ASK)
    talk.session.chat.messages[-1] = Message("assistant", (TextPart(POINT),))


def test_the_session_of_mistral_rs_goes_word_for_word(talk: Talk, screen: Recorder) -> None:
    assert talk.take("Hello!") and talk.take(ASK)
    assert screen.answers[0].startswith("Hello!")
    assert "circle" in screen.answers[1] and "square" in screen.answers[1]
    assert screen.read == ["shapes.png"] and not screen.errors


def test_every_command_of_the_table_is_known_and_told(talk: Talk, screen: Recorder) -> None:
    for name in COMMANDS:
        if name not in ("exit", "paste", "screenshot"):
            assert talk.take(f"\\{name}") and talk.take(f"/{name}")
        assert f"\\{name}" in help_text()
    assert not any("no command" in error for error in screen.errors)
    assert set(ALIASES.values()) <= set(COMMANDS)


@pytest.mark.parametrize("line", [r"\exit", "/exit", r"\quit", "/q"])
def test_exit_ends_it(talk: Talk, line: str) -> None:
    assert not talk.take(line)


@pytest.mark.parametrize(
    ("line", "hint"),
    [("\\imge a.png", "\\image?"), ("/sistem x", "\\system?"), ("\\xyzzy", "\\help lists them")],
)
def test_an_unknown_command_names_the_nearest(
    talk: Talk, screen: Recorder, line: str, hint: str
) -> None:
    assert talk.take(line)
    (error,) = screen.errors
    assert hint in error and "A space before" in error and not screen.answers


def test_image_alone_is_an_error_and_the_talk_goes_on(talk: Talk, screen: Recorder) -> None:
    assert talk.take("\\image")
    assert "PATH-or-URL" in screen.errors[0] and talk.failures == 1
    assert talk.take("Hello!") and len(screen.answers) == 1


@pytest.mark.parametrize(
    "line", [r"\image no.png What?", r"\image /etc/hosts What?", r"\image https://[ What?"]
)
def test_a_picture_that_cannot_be_read_changes_nothing(
    talk: Talk, screen: Recorder, line: str
) -> None:
    talk.take("Hello!")
    before = list(talk.session.chat.messages)
    assert talk.take(line)
    assert len(screen.errors) == 1 and talk.session.chat.messages == before


def test_several_pictures_of_one_line_are_one_question(talk: Talk, screen: Recorder) -> None:
    talk.take(r"\image star.png \image heart.png How many images are there?")
    assert [given.name for _, given in talk.session.pictures() if given] == [
        "star.png",
        "heart.png",
    ]
    assert len(screen.answers) == 1


def test_a_picture_may_be_named_in_a_sentence(talk: Talk, screen: Recorder) -> None:
    talk.take("What is shown in shapes.png?")
    assert len(talk.session.pictures()) == 1
    assert talk.session.last_question().parts[-1] == TextPart("What is shown in shapes.png?")


def test_pictures_of_the_command_line_go_with_the_first_question(
    talk: Talk, screen: Recorder
) -> None:
    talk.waiting.append(read_picture("shapes.png"))
    talk.take("\\images")
    assert screen.said == ["shapes.png: waits for the next question"]
    talk.take(r"What is shown? no-such\.png")
    talk.take("And now?")
    assert len(talk.session.pictures()) == 1 and not talk.waiting


def test_pictures_wait_on_where_a_question_fails(talk: Talk) -> None:
    talk.waiting.append(read_picture("shapes.png"))
    talk.take(r"\image no.png What?")
    assert len(talk.waiting) == 1


def test_pictures_are_listed(talk: Talk, screen: Recorder) -> None:
    talk.take("\\images")
    talk.take(ASK)
    talk.take("\\images")
    width, height = size_of(Path("shapes.png"))
    assert screen.said[0] == "no pictures yet"
    assert screen.said[1].startswith(f"1. shapes.png: {width} x {height} pixels, read as 168 x 168")


def test_settings_are_changed_told_and_checked(talk: Talk, screen: Recorder) -> None:
    for line in (r"\temperature 0.5", "/topk 40", r"\topp 0.9", r"\maxtokens 3", r"\seed 1"):
        talk.take(line)
    assert talk.session.options == {
        **{"temperature": 0.5, "top_k": 40, "top_p": 0.9},
        **{"max_tokens": 3, "seed": 1},
    }
    assert "temperature 0.5, top-k 40, top-p 0.9, seed 1; at most 3" in screen.notes[-1]
    talk.take(r"\topp 2")
    assert "from 0 to 1" in screen.errors[0] and talk.session.options["top_p"] == 0.9
    talk.take("Tell me a story")
    assert any("\\maxtokens" in note for note in screen.notes)


def test_a_system_message_is_added_without_running_the_model(talk: Talk, screen: Recorder) -> None:
    talk.take("\\system")
    talk.take("\\system Be brief.\nVery.")
    talk.take("\\system")
    assert not screen.answers and talk.session.chat.messages[0].role == "system"
    assert screen.said == ["the model's own system message", "Be brief.\nVery."]


def test_clear_begins_as_at_the_start(screen: Recorder, talker: QwenVL) -> None:
    talk = Talk(Session(talker, {}, "Be brief."), screen, lambda name: talker, can_edit=False)
    talk.take("\\system Sing.")
    talk.take("Hello!")
    talk.take("\\clear")
    assert talk.session.systems() == ["Be brief."] and len(talk.session.chat.messages) == 1


def test_edit_gives_the_question_back_and_keeps_its_picture(talk: Talk, screen: Recorder) -> None:
    talk.take(ASK)
    talk.take("\\edit")
    assert talk.draft == "What is shown in this image?"
    talk.take("What color is the background?")
    assert len(talk.session.chat.messages) == 2 and len(talk.session.pictures()) == 1
    assert talk.draft is None


def test_edit_that_is_left_changes_nothing(talk: Talk, screen: Recorder) -> None:
    talk.take(ASK)
    before = list(talk.session.chat.messages)
    talk.take("\\edit")
    talk.take("")
    assert talk.session.chat.messages == before and "stays" in screen.notes[-1]


def test_edit_takes_the_new_question_in_one_line(talk: Talk, screen: Recorder) -> None:
    talk.take(ASK)
    talk.take("\\edit What color is the background?")
    assert len(talk.session.chat.messages) == 2 and len(screen.answers) == 2
    plain = Talk(talk.session, screen, lambda name: talk.session.vlm, can_edit=False)
    plain.take("\\edit")
    assert "\\edit QUESTION" in screen.errors[-1]


def test_retry_says_that_it_draws(talk: Talk, screen: Recorder) -> None:
    talk.take("\\retry")
    assert "nothing was asked" in screen.errors[0]
    talk.take("Hello!")
    talk.take("\\retry")
    assert len(screen.answers) == 2 and "drawn" in screen.notes[-1]
    assert len(talk.session.chat.messages) == 2


def test_save_and_load_go_on_where_it_was(
    talk: Talk, screen: Recorder, tmp_path: Path, talker: QwenVL
) -> None:
    talk.take(ASK)
    talk.take(f"\\save {tmp_path}/my\\ talk.json")
    assert (tmp_path / "my talk.json").exists()
    other = Talk(Session(talker, {"max_tokens": 5}), screen, lambda name: talker, can_edit=False)
    other.take(f"\\load {tmp_path}/my talk.json")
    assert other.session.last_answer() == screen.answers[0]
    assert "1 question and 1 picture" in screen.notes[-1]
    for line in ("\\save", "\\load", "\\load nowhere.json"):
        other.take(line)
    assert len(screen.errors) == 3


def test_stats_tell_what_was_known(talk: Talk, screen: Recorder) -> None:
    talk.take(ASK)
    talk.take("What color is the background?")
    talk.take("\\stats")
    assert "last answer:" in screen.said[0] and "session: 2 answers" in screen.said[0]
    assert " 0 of them known" not in screen.said[0].splitlines()[0]


def test_boxes_are_listed_and_drawn(talk: Talk, screen: Recorder, tmp_path: Path) -> None:
    talk.take("\\boxes")
    assert "points at nothing" in screen.errors[0]
    point(talk)
    talk.take("\\boxes")
    assert screen.said[-1].startswith("1. it: box (45, 45) (224, 224)")
    talk.take(f"\\boxes {tmp_path}/drawn.png")
    assert size_of(tmp_path / "drawn.png") == size_of(Path("shapes.png"))
    talk.take(f"\\boxes {tmp_path}/drawn.xyz")
    assert screen.errors[-1].startswith("\\boxes ")


def test_boxes_are_hinted_at(talk: Talk, screen: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = find_boxes(POINT, [Frame((10, 10))])
    monkeypatch.setattr(Session, "boxes", lambda self: boxes)
    talk.take("Hello!")
    assert screen.notes == ["it points at 1 place; \\boxes draws them"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Attempting to allocate 9 bytes")])
def test_a_lack_of_memory_is_told_and_the_talk_goes_on(
    talk: Talk, screen: Recorder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(screen, "answer", fail)
    assert talk.take("Hello!") and "out of memory" in screen.errors[0]
    assert not talk.session.chat.messages


def test_ctrl_c_before_the_first_word_leaves_the_conversation(
    talk: Talk, screen: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(screen, "answer", press)
    assert talk.take("Hello!") and talk.is_stopped
    assert not talk.session.chat.messages and "as it was" in screen.notes[0]


def test_previews_show_pictures_and_boxes(session: Session, screen: Recorder) -> None:
    talk = Talk(session, screen, lambda name: session.vlm, can_edit=True, previews=True)
    talk.take(f"\\image {IMAGES}/shapes.png What is it?")
    session.chat.messages[-1] = Message("assistant", (TextPart(POINT),))
    talk.take("\\boxes")
    assert screen.pictures == [(448, 448), (448, 448)]


def test_the_model_is_told_and_changed(talk: Talk, screen: Recorder, tiny_folder: Path) -> None:
    talk.take(ASK)
    talk.take("\\model")
    assert "demo" in screen.said[0]
    talk.take("\\model no/such/model")
    assert "no model" in screen.errors[0] and talk.session.vlm.name == "demo"
    talk.take(f"\\model {tiny_folder}")
    assert talk.session.vlm.name == str(tiny_folder)
    assert talk.session.last_answer() == screen.answers[0]
    assert len(talk.session.pictures()) == 1


def test_a_model_that_does_not_fit_leaves_the_old_one(session: Session, screen: Recorder) -> None:
    def load(name: str) -> QwenVL:
        raise MemoryExceeded("it needs 99 GB")

    talk = Talk(session, screen, load, can_edit=True)
    talk.take("\\model 72b")
    assert "--model 72b --load FILE" in screen.errors[0] and session.vlm.name == "demo"


# --- Clipboard and screen -------------------------------------------------------------------------


def test_the_clipboards_picture_is_asked_about(
    talk: Talk, screen: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: Image.open(IMAGES / "shapes.png"))
    talk.take("\\paste What is shown in this image?")
    assert "circle" in screen.answers[0] and screen.read == ["clipboard"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "holds no picture"),
        (NotImplementedError("x"), "needs macOS, or wl-paste or xclip"),
        (ChildProcessError("x"), "cannot be read"),
        (["/no/such.png"], "no such file"),
    ],
)
def test_a_clipboard_without_a_picture_is_told(
    talk: Talk, screen: Recorder, monkeypatch: pytest.MonkeyPatch, found: Any, message: str
) -> None:
    def give() -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(ImageGrab, "grabclipboard", give)
    talk.take("\\paste")
    assert message in screen.errors[0] and not talk.session.chat.messages


def test_files_that_were_copied_are_read(
    talk: Talk, screen: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: [str(IMAGES / "star.png")])
    talk.take("\\paste")
    assert len(talk.session.pictures()) == 1


def fake_screencapture(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / grab.SCREENCAPTURE
    tool.write_text(f"#!{sys.executable}\nimport shutil, sys\n{body}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_a_region_of_the_screen_is_asked_about(
    talk: Talk, screen: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"""assert sys.argv[1:3] == ["-i", "-x"]
shutil.copy({str(IMAGES / "shapes.png")!r}, sys.argv[3])"""
    fake_screencapture(tmp_path, body, monkeypatch)
    talk.take("\\screenshot What is shown in this image?")
    assert "circle" in screen.answers[0] and not screen.errors


def test_a_region_that_was_not_marked_is_told(
    talk: Talk, screen: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_screencapture(tmp_path, "sys.exit(1)", monkeypatch)
    talk.take("\\screenshot")
    fake_screencapture(tmp_path, "sys.exit('may not see the screen')", monkeypatch)
    talk.take("\\screenshot")
    assert "no region was marked" in screen.errors[0]
    assert "may not see the screen" in screen.errors[1]


def test_a_system_without_the_tool_is_told(
    talk: Talk, screen: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    talk.take("\\screenshot")
    assert "needs screencapture, which comes with macOS" in screen.errors[0]
