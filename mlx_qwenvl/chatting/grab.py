"""Pictures from the clipboard and from the screen, through the system's own tools."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageGrab

from mlx_qwenvl.chatting.picture import Picture, drawn_picture, read_picture
from mlx_qwenvl.errors import MediaError

SCREENCAPTURE = "screencapture"


def from_clipboard() -> Picture:
    """The clipboard's picture.

    Pillow asks `osascript` on macOS and `wl-paste` or `xclip` on Linux.

    Raises:
        MediaError: There is none, or nothing to ask for it.
    """
    try:
        found = ImageGrab.grabclipboard()
        if isinstance(found, Image.Image):
            return drawn_picture(found, "clipboard")
    except NotImplementedError:
        raise MediaError("\\paste needs macOS, or wl-paste or xclip on Linux") from None
    except Exception:  # what the tools say and what they give is of any kind
        raise MediaError("\\paste: the clipboard cannot be read as a picture") from None
    if found:  # files that were copied
        return read_picture(found[0])
    raise MediaError("\\paste: the clipboard holds no picture")


def from_screen() -> Picture:
    """A region of the screen that a person marks.

    Raises:
        MediaError: None was marked, or the system has no tool for it.
    """
    tool = shutil.which(SCREENCAPTURE)
    if tool is None:
        here = "is not in $PATH" if sys.platform == "darwin" else "comes with macOS"
        raise MediaError(f"\\screenshot needs {SCREENCAPTURE}, which {here}")
    with tempfile.TemporaryDirectory(prefix="mlx-qwenvl-") as folder:
        file = Path(folder) / "screenshot.png"
        ran = subprocess.run(
            [tool, "-i", "-x", str(file)], capture_output=True, stdin=subprocess.DEVNULL
        )
        if not file.exists():
            told = ran.stderr.decode("utf-8", "replace").strip()
            raise MediaError(f"\\screenshot: {told or 'no region was marked'}")
        return Picture(file.read_bytes(), "screenshot")
