"""Marks in sentences that say which drawn things the words speak of.

`⟦ids|words⟧` names the things; `⟦>ids|words⟧` says that an answer has to find the words in them.
Things are numbered 10 * picture + index, glyphs of a text 100 + index; no ids means that nothing in
the picture matches. An `ANCHOR` and a `twin` behind two words say whether the words agree. Training
uses the marks to supervise attention; `plain` removes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

MARK: Final = re.compile(r"⟦([>@=!]?)([\d,]*)\|([^⟧]*)⟧")
ANCHOR: Final = "⟦@|⟧"  # the word before it is one to compare with
GLYPHS: Final = 100  # number of the first glyph


def known(ids: Sequence[int], words: str) -> str:
    """Mark words that speak of `ids`."""
    return f"⟦{','.join(map(str, ids))}|{words}⟧"


def seen(ids: Sequence[int], words: str) -> str:
    """Mark words of an answer that must be read off `ids`."""
    return f"⟦>{','.join(map(str, ids))}|{words}⟧"


def twin(agrees: bool) -> str:
    """A mark behind a word that agrees with the word before the anchor, or does not."""
    return "⟦=|⟧" if agrees else "⟦!|⟧"


def plain(marked: str) -> str:
    """The sentence without marks."""
    return MARK.sub(lambda match: match[3], marked)
