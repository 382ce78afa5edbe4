"""Command lines as the README and the pages of docs/ write them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_qwenvl.command import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = {module.removesuffix(".__main__"): name for name, (module, _) in COMMANDS.items()}
WINGS = {"server": "serve", "convert": "convert"}  # as they are called in a checkout
PROGRAM = "mlx-qwenvl"

_FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SHELLS = ("", "sh", "bash", "zsh", "console", "text")
_INDENTED = re.compile(r"(?:^(?: {4}|\t).*\n)+", re.MULTILINE)
_ASSIGNMENT = re.compile(r"\w+=")


@dataclass(frozen=True)
class Written:
    """A command in a code block.

    Attributes:
        page: The file's name.
        command: One of `COMMANDS`, or what stands in its place.
        arguments: What follows it, as a shell would split it.
    """

    page: str
    command: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.command} {shlex.join(self.arguments)}"


def written_commands(page: Path) -> Iterator[Written]:
    """All commands of ours in the code blocks of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for language, block in _FENCED.findall(text) if language in _SHELLS]
    blocks += _INDENTED.findall(_FENCED.sub("", text))
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            for words in _simple_commands(line.strip().removeprefix("$ ")):
                found = _ours(words)
                if found is not None:
                    yield Written(page.name, found[0], tuple(found[1]))


def _simple_commands(line: str) -> list[list[str]]:
    """A shell's line, divided at pipes and the like, without redirections and assignments."""
    if "mlx" not in line and "python -m" not in line:
        return []  # such as output, in which quotes need not match
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    lexer.wordchars += ",:=@{}[]^%!"
    try:
        tokens = list(lexer)
    except ValueError:
        return []
    commands: list[list[str]] = [[]]
    redirected = False
    for token in tokens:
        if redirected:
            redirected = False
        elif token in (">", ">>", "<"):
            redirected = True
        elif set(token) <= set("();|&"):
            commands.append([])
        elif commands[-1] or not _ASSIGNMENT.match(token):
            commands[-1].append(token)
    return commands


def _ours(words: list[str]) -> tuple[str, list[str]] | None:
    """Command and arguments of a line that runs this package."""
    if words[:1] == [PROGRAM] and len(words) > 1 and not words[1].endswith(":"):  # an error's start
        return words[1], words[2:]
    if words[:2] == ["python", "-m"] and len(words) > 2:
        module = words[2]
        if module == "mlx_qwenvl" and len(words) > 3:
            return words[3], words[4:]
        name = MODULES.get(module) or WINGS.get(module)
        if name is not None:
            return name, words[3:]
    return None
