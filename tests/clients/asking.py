"""What the clients ask, what the embedded model says to it, and how a foreign library is had."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

PICTURES = Path(__file__).parent.parent.parent / "examples" / "images"
KEY = "sk-local-0123456789"

GREETING = "Hello!"
GREETED = "Hello! How can I help you?"
QUESTION = "What is shown in this image?"
SHOWN = {
    "shapes.png": "The image shows a red circle and a blue square.",
    "heart.png": "The image shows a purple heart.",
    "star.png": "The image shows a green star.",
}
# The embedded model knows what the seed's own question means beside a picture of a word.
SEEDS_PICTURE = "word.png"
SEEDS_ANSWER = 'The image shows red text on a white background. The text says "STOP".'


def foreign(name: str) -> Any:
    """A client library, imported with its own warnings; without it the whole file is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            name, reason=f"{name} is not installed: pip install '.[clients]'"
        )


def data_url(name: str) -> str:
    """A picture of the examples, as a `data:` URL."""
    return "data:image/png;base64," + base64.b64encode((PICTURES / name).read_bytes()).decode()


def bare_jpeg(name: str) -> str:
    """The same as a JPEG in base64 and nothing around it, so that it begins with `/9j/4A`."""
    buffer = io.BytesIO()
    with Image.open(PICTURES / name) as picture:
        picture.convert("RGB").save(buffer, "JPEG", quality=90)
    return base64.b64encode(buffer.getvalue()).decode()


def seen(url: str, text: str = QUESTION) -> list[dict[str, Any]]:
    """Messages that ask about a picture."""
    picture = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]


def said(text: str) -> list[dict[str, Any]]:
    """Messages of one turn without a picture."""
    return [{"role": "user", "content": text}]
