"""Conversations in files: what comes back is what was there, and nothing else is taken for one."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwenvl import QwenVL, QwenVLError, load
from mlx_qwenvl.chatting.picture import read_picture
from mlx_qwenvl.chatting.saved import HEAD, read_saved, save
from mlx_qwenvl.chatting.session import Session
from mlx_qwenvl.inputs.messages import ImagePart, TextPart, TokensPart
from tests.chatting.conftest import IMAGES
from tests.test_chat import counting


@pytest.fixture
def held(session: Session) -> Session:
    """A conversation about a picture, with a system message and settings."""
    session.instruct("Be brief.")
    session.options = {"max_tokens": 50, "temperature": None, "max_pixels": 112 * 112}
    list(session.ask("What is shown in this image?", [read_picture(str(IMAGES / "shapes.png"))]))
    return session


@pytest.fixture
def file(held: Session, tmp_path: Path) -> Path:
    """The same, kept."""
    save(held, tmp_path / "talk.json")
    return tmp_path / "talk.json"


def resumed(file: Path, vlm: QwenVL) -> Session:
    saved = read_saved(file, vlm)
    session = Session(vlm, saved.options)
    session.resume(saved.messages, saved.originals)
    return session


def test_what_comes_back_is_what_was_there(held: Session, file: Path) -> None:
    again = resumed(file, held.vlm)
    for old, new in zip(held.chat.messages, again.chat.messages, strict=True):
        assert old.role == new.role
        for before, after in zip(old.parts, new.parts, strict=True):
            if not isinstance(before, ImagePart):
                assert before == after
    assert isinstance(again.chat.messages[-1].parts[0], TokensPart)
    ((seen, given),), ((seen_again, given_again),) = held.pictures(), again.pictures()
    assert seen.digest == seen_again.digest and seen.source_size == seen_again.source_size
    assert given is not None and given_again is not None
    assert given.getvalue() == given_again.getvalue() and given.name == given_again.name
    assert again.options == {"max_tokens": 50, "max_pixels": 112 * 112}
    assert again.boxes() == held.boxes()


def test_the_next_answer_is_the_same_and_starts_at_once(
    held: Session, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "What color is the background?"
    again = resumed(file, held.vlm)
    list(held.ask(question))
    assert held.last is not None and held.last.usage is not None
    with counting(held.vlm, monkeypatch) as work:
        answer = "".join(chunk.text for chunk in again.ask(question))
    assert answer == held.last_answer() and work.pictures == 0
    assert again.last is not None and again.last.usage is not None
    assert again.last.usage.prompt_tokens == held.last.usage.prompt_tokens
    assert again.last.usage.cached_tokens >= held.last.usage.cached_tokens
    # Where nothing was computed before, it is the same answer too.
    anew = resumed(file, load("demo", dtype="float32"))
    assert "".join(chunk.text for chunk in anew.ask(question)) == answer


def test_another_vocabulary_gets_the_words(held: Session, file: Path, tiny: QwenVL) -> None:
    (*_, answer) = read_saved(file, tiny).messages
    assert answer.parts == (TextPart(held.last_answer()),)


def test_the_file_is_for_its_owner_alone(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes().startswith(HEAD.encode())


def test_it_is_written_over_but_nothing_else_is(held: Session, file: Path) -> None:
    before = file.read_bytes()
    list(held.ask("Hello"))
    save(held, file)
    assert len(file.read_bytes()) > len(before)
    photo = file.with_name("photo.png")
    photo.write_bytes(b"\x89PNG mine")
    with pytest.raises(QwenVLError, match="no saved conversation; take another name"):
        save(held, photo)
    assert photo.read_bytes() == b"\x89PNG mine"


def test_a_full_disk_leaves_the_old_file(
    held: Session, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QwenVLError, match="No space left on device"):
        save(held, file)
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing/talk.json", "cannot be written"), ("", "is a directory|Is a directory")],
)
def test_a_place_that_cannot_be_written_is_told(
    held: Session, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(QwenVLError, match=message):
        save(held, tmp_path / name)


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        raw = json.loads(text)
        change(raw)
        return json.dumps(raw)

    return apply


def picture_of(raw: dict[str, Any]) -> dict[str, Any]:
    part = raw["messages"][1]["parts"][0]
    assert isinstance(part, dict) and part["type"] == "image"
    return part


FAULTS: dict[str, tuple[Callable[[str], str], str]] = {
    "foreign": (lambda text: '{"messages": []}', "is no saved conversation"),
    "empty": (lambda text: "", "is no saved conversation"),
    "cut": (lambda text: text[: len(text) // 2], "is damaged"),
    "newer": (damaged(lambda raw: raw.update(version=2)), "version 2 .*expected 1"),
    "odd version": (damaged(lambda raw: raw.update(version="\x1b[31m" * 99)), "has version"),
    "no messages": (damaged(lambda raw: raw.pop("messages")), "is damaged"),
    "odd role": (damaged(lambda raw: raw["messages"][1].update(role="tool")), "is damaged"),
    "two questions": (damaged(lambda raw: raw["messages"].pop()), "is damaged"),
    "odd option": (damaged(lambda raw: raw["options"].update(top_p=7)), "is damaged"),
    "odd part": (damaged(lambda raw: picture_of(raw).update(type="film")), "is damaged"),
    "odd base64": (damaged(lambda raw: picture_of(raw).update(seen="?")), "is damaged"),
    "no picture": (
        damaged(lambda raw: picture_of(raw).update(seen=base64.b64encode(b"GIF89a").decode())),
        "shapes.png: GIF data",
    ),
    "odd size": (damaged(lambda raw: picture_of(raw).update(source_size=[1])), "is damaged"),
    "odd turn": (damaged(lambda raw: picture_of(raw).update(orientation=9)), "is damaged"),
    "deep": (lambda text: HEAD + ', "x": ' + "[" * 10**5, "is damaged"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_is_none_is_told_in_one_line(file: Path, talker: QwenVL, name: str) -> None:
    change, message = FAULTS[name]
    file.write_text(change(file.read_text()))
    with pytest.raises(QwenVLError, match=message) as caught:
        read_saved(file, talker)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path, talker: QwenVL) -> None:
    with pytest.raises(QwenVLError, match="no such file"):
        read_saved(tmp_path / "none.json", talker)
    with pytest.raises(QwenVLError, match="no such file"):
        read_saved(tmp_path, talker)


def test_tokens_that_no_answer_holds_are_words(file: Path, talker: QwenVL) -> None:
    """A file cannot say that the model's turn is over, or that a picture stands in an answer."""
    tokenizer = talker.tokenizer
    for name in ("<|im_end|>", "<|image_pad|>"):
        raw = json.loads(file.read_text())
        (part,) = raw["messages"][-1]["parts"]
        part["ids"] = [tokenizer.token_id(name)]
        part["text"] = name
        file.write_text(json.dumps(raw))
        assert read_saved(file, talker).messages[-1].parts == (TextPart(name),)
        assert list(resumed(file, talker).ask("Hello", options={"max_tokens": 2}))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a JSON value."""
    inside: list[tuple[Any, ...]] = []
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, entry in value.items() if isinstance(value, dict) else ():
        inside += places(entry, (*path, key))
    return [path, *inside] if path else inside


JSON = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_file_that_somebody_changed_never_breaks_the_chat(
    data: st.DataObject, talker: QwenVL, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = json.loads(template(talker, tmp_path_factory))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from([p for p in places(raw) if p[0] != "format"]))
        within = raw
        for key in place[:-1]:
            within = within[key]
        within[place[-1]] = data.draw(JSON)
    changed = tmp_path_factory.mktemp("changed") / "talk.json"
    changed.write_text(json.dumps(raw))
    try:
        session = resumed(changed, talker)
    except QwenVLError as error:
        assert "\n" not in str(error)
    else:
        session.boxes()
        save(session, changed)


TEMPLATES: list[str] = []


def template(vlm: QwenVL, folders: pytest.TempPathFactory) -> str:
    """A kept conversation with all kinds of parts, made once."""
    if not TEMPLATES:
        session = Session(vlm, {"temperature": 0.5}, "Be brief.")
        picture = read_picture(str(IMAGES / "shapes.png"))
        list(session.ask("What?", [picture], {"max_tokens": 3, "max_pixels": 56 * 56}))
        file = folders.mktemp("template") / "talk.json"
        save(session, file)
        TEMPLATES.append(file.read_text())
    return TEMPLATES[0]
