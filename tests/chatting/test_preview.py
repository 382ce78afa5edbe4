"""Pictures in terminals: the sequences that iTerm2 and kitty document."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from mlx_qwenvl.chatting.preview import MOST_ROWS, PROTOCOLS, preview, protocol_of


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM_PROGRAM": "tmux", "LC_TERMINAL": "iTerm2", "TMUX": "x"}, "iterm2"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "Apple_Terminal", "TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_the_terminal_is_known_by_its_variables(
    environment: dict[str, str], protocol: str | None
) -> None:
    assert protocol_of(environment) == protocol


def noise(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 99).convert("RGB")


def test_iterm2_gets_one_sequence_with_the_whole_picture() -> None:
    text = preview(noise(640, 480), "iterm2", 80, in_tmux=False)
    found = re.search(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07", text)
    assert found is not None
    options = dict(part.split("=") for part in found[1].split(";"))
    data = base64.b64decode(found[2])
    assert options["inline"] == "1" and int(options["size"]) == len(data)
    assert int(options["height"]) == MOST_ROWS
    assert Image.open(io.BytesIO(data)).size == (320, 240)


def test_kitty_gets_pieces_of_4096_letters_and_is_told_to_be_silent() -> None:
    text = preview(noise(640, 480), "kitty", 80, in_tmux=False)
    found = re.findall(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\", text)
    assert len(found) > 1
    keys = [dict(part.split("=") for part in head.split(",")) for head, _ in found]
    assert keys[0]["a"] == "T" and keys[0]["f"] == "100" and keys[0]["r"] == str(MOST_ROWS)
    assert all(head["q"] == "2" for head in keys)
    assert [head["m"] for head in keys] == ["1"] * (len(found) - 1) + ["0"]
    assert all(len(piece) <= 4096 for _, piece in found)
    assert all(len(piece) % 4 == 0 for _, piece in found)
    data = base64.b64decode("".join(piece for _, piece in found))
    assert Image.open(io.BytesIO(data)).size == (320, 240)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tmux_is_asked_to_pass_it_on(protocol: str) -> None:
    plain = preview(noise(64, 48), protocol, 80, in_tmux=False)
    wrapped = preview(noise(64, 48), protocol, 80, in_tmux=True)
    for inner in re.findall(r"\x1bPtmux;((?:\x1b\x1b|[^\x1b])*)\x1b\\", wrapped):
        assert inner.startswith(("\x1b\x1b_G", "\x1b\x1b]1337"))
    assert wrapped.count("\x1bPtmux;") == plain.count("\x1b_G") + plain.count("\x1b]1337")


@pytest.mark.parametrize(
    ("size", "columns"), [((4000, 20), 80), ((20, 4000), 80), ((1, 1), 80), ((300, 300), 3)]
)
def test_a_picture_of_any_shape_fits_and_leaves_the_cursor_below(
    size: tuple[int, int], columns: int
) -> None:
    text = preview(noise(*size), "iterm2", columns, in_tmux=False)
    found = re.search(r"height=(\d+)", text)
    assert found is not None
    rows = int(found[1])
    assert 1 <= rows <= MOST_ROWS
    assert text.startswith("\n" * rows + f"\x1b[{rows}A") and text.endswith(f"\x1b[{rows}B\r")
    payload = re.search(r":([A-Za-z0-9+/=]*)\x07", text)
    assert payload is not None
    width, _ = Image.open(io.BytesIO(base64.b64decode(payload[1]))).size
    assert width <= max(1, columns - 1) * 10
