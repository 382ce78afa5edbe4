"""Pictures between the lines of terminals that can: iTerm2's protocol and kitty's.

Through tmux they pass where it has `allow-passthrough on`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Final

from PIL import Image

PROTOCOLS: Final = ("iterm2", "kitty")
MOST_ROWS: Final = 12  # lines of a preview
CELL: Final = (10, 20)  # pixels of a letter, about; terminals scale to the lines that are said
_PIECE: Final = 4096  # letters of base64 in one of kitty's sequences
_ITERM2: Final = {"iTerm.app", "WezTerm", "mintty"}
_KITTY_TERMS: Final = ("xterm-kitty", "xterm-ghostty")


def protocol_of(environment: Mapping[str, str]) -> str | None:
    """The protocol that a terminal understands, by the variables that it sets."""
    get = environment.get
    if get("KITTY_WINDOW_ID") or get("TERM") in _KITTY_TERMS or get("TERM_PROGRAM") == "ghostty":
        return "kitty"
    if get("TERM_PROGRAM") in _ITERM2 or get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return None


def preview(picture: Image.Image, protocol: str, columns: int, *, in_tmux: bool) -> str:
    """What shows a picture at the cursor, and leaves the cursor in the line below it.

    Args:
        picture: The picture.
        protocol: One of `PROTOCOLS`.
        columns: Columns of the terminal.
        in_tmux: Whether the sequences have to pass tmux.
    """
    room = max(1, columns - 1) * CELL[0], MOST_ROWS * CELL[1]
    scale = min(1.0, room[0] / picture.width, room[1] / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    rows = -(-size[1] // CELL[1])
    file = io.BytesIO()
    picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    sequences = _kitty(data, rows) if protocol == "kitty" else [_iterm2(data, file.tell(), rows)]
    if in_tmux:
        sequences = [f"\x1bPtmux;{part.replace(chr(27), chr(27) * 2)}\x1b\\" for part in sequences]
    # Lines are made first and the cursor is put back, since protocols and tmux move it variously.
    lines = "\n" * rows
    return f"{lines}\x1b[{rows}A\x1b7{''.join(sequences)}\x1b8\x1b[{rows}B\r"


def _iterm2(data: str, size: int, rows: int) -> str:
    options = f"inline=1;size={size};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={options}:{data}\x07"


def _kitty(data: str, rows: int) -> list[str]:
    """Transmit and show, without an answer from the terminal that would look like typed keys."""
    pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
    sequences = []
    for index, piece in enumerate(pieces):
        more = int(index + 1 < len(pieces))
        keys = f"a=T,f=100,q=2,C=1,r={rows},m={more}" if index == 0 else f"q=2,m={more}"
        sequences.append(f"\x1b_G{keys};{piece}\x1b\\")
    return sequences
