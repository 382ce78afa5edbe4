"""What a bad input is: a request and how it has to be answered, or why there is none.

Every number of the list has a row. A row is one or more of `Case`, `Elsewhere` and `NotHere`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx2

CHAT = "/v1/chat/completions"
DEADLINE_S = 10.0  # in which a request without a deadline of its own is answered, in seconds

Body: TypeAlias = "Mapping[str, Any] | bytes"


@dataclass(frozen=True)
class Case:
    """A request to a server that streams to somebody else meanwhile.

    Attributes:
        name: What is bad about it, in a few words.
        send: Sends it and gives the answer.
        status: What the answer may have; 200 where what looks bad is harmless.
        says: What the error's message contains.
        deadline_s: In which it has to be answered, in seconds.
    """

    name: str
    send: Callable[[httpx2.Client], httpx2.Response]
    status: tuple[int, ...] = (400,)
    says: str = ""
    deadline_s: float = DEADLINE_S


@dataclass(frozen=True)
class Elsewhere:
    """Held by another test.

    Attributes:
        test: As pytest names it: `tests/test_media.py::test_truncated_files_are_errors`.
    """

    test: str


@dataclass(frozen=True)
class NotHere:
    """Does not apply to this server.

    Attributes:
        reason: One sentence.
    """

    reason: str


Row: TypeAlias = "tuple[Case | Elsewhere | NotHere, ...]"


def ask(content: Any = "How many shapes are there?", **fields: Any) -> dict[str, Any]:
    """A short question to the chat route, with fields of its own."""
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": 8, "temperature": 0} | fields


def picture(url: str) -> dict[str, Any]:
    """A part that names a picture."""
    return {"type": "image_url", "image_url": {"url": url}}


def posted(
    name: str,
    body: Body | Callable[[], Body],
    status: int | tuple[int, ...] = 400,
    says: str = "",
    *,
    path: str = CHAT,
    headers: Mapping[str, str] | None = None,
    deadline_s: float = DEADLINE_S,
) -> Case:
    """A case that is one POST.

    Args:
        name: As in `Case`.
        body: Sent as JSON, or bytes as they are; large ones are made when they are needed.
        status: One or more.
        says: As in `Case`.
        path: Of the route.
        headers: Beside the content type, which is JSON's.
        deadline_s: As in `Case`.
    """

    def send(client: httpx2.Client) -> httpx2.Response:
        made = body() if callable(body) else body
        sent = {"content-type": "application/json", **(headers or {})}
        if isinstance(made, bytes):
            return client.post(path, content=made, headers=sent)
        return client.post(path, json=made, headers=sent)

    allowed = (status,) if isinstance(status, int) else status
    return Case(name, send, allowed, says, deadline_s)
