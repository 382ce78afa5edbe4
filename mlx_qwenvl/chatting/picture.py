"""A picture of the conversation: its bytes, read once, and what it is called."""

from __future__ import annotations

import io

from PIL import Image

from mlx_qwenvl.inputs.media import open_image, read_encoded
from mlx_qwenvl.inputs.source import shown


class Picture(io.BytesIO):
    """An encoded picture as a file, which is what the model's inputs take.

    Args:
        data: PNG, JPEG, ...
        name: What people know it by.
    """

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


def read_picture(source: str) -> Picture:
    """The picture that a path, a URL or base64 names.

    Raises:
        MediaError: There is none.
    """
    encoded = read_encoded(source)
    assert encoded is not None, "text names encoded bytes"
    return Picture(*encoded)


def read_checked(source: str) -> Picture:
    """The same, opened once, so that a damaged one is told now.

    Raises:
        MediaError: There is none, or it cannot be opened.
    """
    picture = read_picture(source)
    open_image(picture)
    return picture


def drawn_picture(image: Image.Image, name: str) -> Picture:
    """A picture that is decoded already."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return Picture(file.getvalue(), shown(name))
