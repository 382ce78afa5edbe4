"""How answers, conversations and models look in a notebook: Markdown, with pictures inside it.

What a model writes is shown to people by programs that run whatever HTML they are given, so it is
made harmless first. Programs differ in what they take for code, links and HTML; nothing here relies
on one of them: what could begin such a thing is broken by a character that has no width.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

from PIL import Image

from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.video import Seen

SIDE = 320  # px: longer side of a picture that stands alone
SIDE_OF_MANY = 160  # px: of one beside others
MOST_PICTURES = 4  # shown of a longer list, the last ones
DRAWN_SIDE = 640  # px: of a picture with boxes, whose labels are to be read
JPEG_QUALITY = 85

BREAK = "\u2060"  # WORD JOINER: of no width, and no part of any mark
_FENCE = re.compile(r"(`{3,}|~{3,})[ \t]*([\w+#.-]*)[ \t]*")
# HTML, comments and `<scheme:...>`; pictures, which would be fetched; links but to the web; and
# what TeX makes links, styles or pictures with.
_BEGINNINGS = re.compile(
    r"<(?=[A-Za-z/!?])"
    r"|!(?=\[)"
    r"|\](?=\((?!https?://|mailto:))"
    r"|\](?=:(?![ \t]+https?://))"
    r"|\\(?=(?:href|style|class|cssId|data|require|url|include\w*|html\w*)(?![A-Za-z]))",
    re.IGNORECASE,
)


def safe_markdown(text: str) -> str:
    """Markdown that shows no more than text: no HTML, no pictures, no links but to the web.

    Lines end where they end in the text. Fenced code is kept to the letter.
    """
    lines: list[str] = []
    code: list[str] = []
    fence: re.Match[str] | None = None
    for line in text.splitlines():
        if fence is None:
            fence = _FENCE.fullmatch(line)
            if fence is None:
                lines.append(_BEGINNINGS.sub(lambda found: found[0] + BREAK, line))
        elif re.fullmatch(rf" {{0,3}}{fence[1]}{fence[1][0]}*[ \t]*", line):
            lines += ["", _fenced(fence[2], code), ""]
            fence, code = None, []
        else:
            code.append(line)
    if fence is not None:
        lines += ["", _fenced(fence[2], code), ""]
    following = [*lines, ""][1:]
    return "\n".join(
        f"{line}  " if line.strip() and after.strip() else line
        for line, after in zip(lines, following, strict=True)
    )


def picture_markdown(picture: Image.Image, side: int = SIDE) -> str:
    """A picture, made smaller where it is larger, as Markdown that holds all of it."""
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    png, jpeg = _encoded(small, "PNG"), _encoded(small, "JPEG")
    kind, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return f"![picture](data:image/{kind};base64,{base64.b64encode(data).decode()})"


def views_markdown(pictures: Sequence[Seen]) -> str:
    """Pictures side by side as the model saw them, in their own shapes; of many the last ones.

    A video is shown by some of its frames.
    """
    frames = [(seen, view) for seen in pictures for view in _views(seen)]
    side = SIDE if len(frames) == 1 else SIDE_OF_MANY
    views = []
    for seen, view in frames[-MOST_PICTURES:]:
        longest = max(seen.source_size)
        scale = min(side, max(seen.size), longest) / longest
        width, height = (max(1, round(length * scale)) for length in seen.source_size)
        views.append(view.resize((width, height), Image.Resampling.LANCZOS))
    return " ".join(picture_markdown(view, side) for view in views)


def _views(seen: Seen) -> list[Image.Image]:
    if isinstance(seen, ImagePatches):
        return [seen.to_image()]
    frames = seen.to_images()
    count = min(len(frames), MOST_PICTURES)
    return [frames[index * len(frames) // count] for index in range(count)]


def png_of(picture: Image.Image) -> bytes:
    """A PNG file of a picture."""
    return _encoded(picture, "PNG")


def small_line(parts: Sequence[str]) -> str:
    """A line in small letters."""
    return f"<sub>{' · '.join(safe_markdown(part) for part in parts)}</sub>"


def table_markdown(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and what they stand for."""
    cells = [tuple(safe_markdown(cell).replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {told} |" for name, told in cells)])


def joined(blocks: Sequence[str]) -> str:
    """Blocks of Markdown under each other; empty ones are left out."""
    return "\n\n".join(block for block in blocks if block)


def _fenced(language: str, lines: Sequence[str]) -> str:
    """Code in a fence of its own that nothing in it can close."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def _encoded(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, quality=JPEG_QUALITY)
    return file.getvalue()
