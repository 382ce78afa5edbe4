"""Objects as bytes on the wire: JSON bodies and server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse


class Json(JSONResponse):
    """A JSON body of anything that JSON can say, lone surrogates included."""

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return dumps(content).encode()


def frame(data: Mapping[str, Any] | str, event: str | None = None) -> str:
    """One server-sent event.

    Args:
        data: An object, or text that stands for itself as in OpenAI's `[DONE]`.
        event: Its name, for the forms that name theirs.
    """
    text = data if isinstance(data, str) else dumps(data)
    return f"data: {text}\n\n" if event is None else f"event: {event}\ndata: {text}\n\n"


def dumps(data: object) -> str:
    """JSON on one line, safe to encode: a lone surrogate goes out as an escape."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text


DONE = "data: [DONE]\n\n"  # the end of OpenAI's streams
