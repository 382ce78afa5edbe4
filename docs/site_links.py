"""A hook of mkdocs: links out of docs/ lead somewhere in a checkout and on GitHub, not in the site.

There they become the names of the files that they lead to.
"""

from __future__ import annotations

import re
from typing import Any

_LEAVING = re.compile(r"\[([^\]]*)\]\((?:\.\./)+([^)#]*)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A page's text without such links.

    Args:
        markdown: The text.
        page: Where it stands.
    """
    # Pages in a folder of docs/ reach its others by `../`, and nothing else.
    return markdown if "/" in page.file.src_uri else _LEAVING.sub(r"\1 (`\2`)", markdown)
