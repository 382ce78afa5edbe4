"""Texts that name a picture, as a server with its limits reads them."""

from __future__ import annotations

import base64
import random

from benchmarks.fuzz import pictures
from benchmarks.fuzz.mutate import mutate_bytes
from benchmarks.fuzz.target import Broken, Target
from mlx_qwenvl.inputs.media import decode
from mlx_qwenvl.inputs.source import MediaLimits, read_text

LIMITS = MediaLimits(max_bytes=2**16, max_pixels=1_000_000, local_files=False, urls=False)
OTHERS = (
    "",
    " ",
    "data:",
    "data:,",
    "data:;base64,",
    "data:image/png;base64",
    "DATA:text/html;charset=utf-8;BASE64,%3Chtml%3E",
    "data:image/svg+xml,%3Csvg%20xmlns='http://www.w3.org/2000/svg'/%3E",
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "/etc/passwd",
    "../../etc/passwd",
    "~root/x.png",
    "http://127.0.0.1/x.png",
    "https://user:secret@host.example/x.png?key=1",
    "ftp://host.example/x.png",
    "gopher://x",
    "blob:null/1",
    "x.png",
    "\ufeffdata:image/png;base64,iVBORw0KGgo=",
    "data:image/png;base64," + "A" * 70_000,
)
PIECES = (
    *("data:", "DATA:", "image/png", ";base64", ";charset=utf-8", ",", "%00", "%2C", "%", "\0"),
    *("=", "==", "-_", "+/", "\n", "\r\n ", "\u2028", "\ud800", "é", "file:", "http://", "://"),
)


def run(data: bytes) -> str:
    """Read what the text names and decode it."""
    text = data.decode("utf-8", "surrogatepass" if data.isascii() else "surrogateescape")
    read, name = read_text(text, LIMITS)
    decode(read, name, LIMITS)
    if len(read) > LIMITS.max_bytes:
        raise Broken(f"decodes {len(read)} bytes where {LIMITS.max_bytes} may pass")
    return "picture"


def seeds() -> list[bytes]:
    """Small pictures in all forms of text, and what is none."""
    found = [text.encode("utf-8", "surrogatepass") for text in OTHERS]
    for encoded in pictures.seeds()[::6]:
        plain = base64.b64encode(encoded).decode("ascii")
        safe = plain.replace("+", "-").replace("/", "_").rstrip("=")
        lines = "\r\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
        heads = ("data:image/png;base64,", "data:;base64,", "data:text/html;BASE64,", "")
        found += [(heads[i % 4] + text).encode() for i, text in enumerate((plain, safe, lines))]
        found.append(b"data:image/png," + "".join(f"%{byte:02x}" for byte in encoded).encode())
    return found


def mutate(drawn: random.Random, data: bytes, other: bytes) -> bytes:
    """Pieces of the syntax come, go and are swapped, or bytes change."""
    if drawn.random() < 0.5:
        return mutate_bytes(drawn, data, other)
    piece = drawn.choice(PIECES).encode("utf-8", "surrogatepass")
    place = drawn.randrange(min(len(data), 48) + 1)
    if drawn.random() < 0.3:
        theirs = drawn.choice(PIECES).encode("utf-8", "surrogatepass")
        return data.replace(theirs, piece, 1)
    return data[:place] + piece + data[place + drawn.choice((0, 0, 1, 4)) :]


TEXTS = Target("texts", seeds, mutate, run)
