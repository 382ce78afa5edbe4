"""The commands by name: how they are written and what they do."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Entry:
    """A command as `help` lists it.

    Attributes:
        form: What is typed behind its name.
        purpose: What it does.
        takes: What completes its argument: "picture", "file", "model" or "".
    """

    form: str
    purpose: str
    takes: str = ""


COMMANDS: Final[dict[str, Entry]] = {
    "help": Entry("", "list the commands"),
    "exit": Entry("", "leave; so does Ctrl-D"),
    "image": Entry("PATH-or-URL [QUESTION]", "ask about a picture; repeat for more", "picture"),
    "video": Entry("PATH-or-URL [QUESTION]", "ask about a video", "file"),
    "paste": Entry("[QUESTION]", "ask about the clipboard's picture"),
    "screenshot": Entry("[QUESTION]", "ask about a region of the screen (macOS)"),
    "images": Entry("", "list the pictures of this conversation"),
    "boxes": Entry("[FILE.png]", "what the last answer points at; drawn into a file", "file"),
    "system": Entry("[TEXT]", "add a system message, or tell those in force"),
    "clear": Entry("", "begin a new conversation, as at the start"),
    "retry": Entry("", "another answer to the last question"),
    "edit": Entry("[QUESTION]", "change the last question; its pictures stay"),
    "save": Entry("FILE", "keep the conversation with its pictures", "file"),
    "load": Entry("FILE", "go on with a kept one", "file"),
    "model": Entry("[NAME]", "tell the model, or go on with another one", "model"),
    "stats": Entry("", "tokens and times of the last answer and of the session"),
    "temperature": Entry("[T]", "0 takes the likeliest word; default takes it back"),
    "topk": Entry("[K]", "draw from the K likeliest words; 0 from all"),
    "topp": Entry("[P]", "draw from the likeliest words that reach P together"),
    "minp": Entry("[P]", "draw from words at least P times as likely as the likeliest"),
    "seed": Entry("[N]", "make drawing repeatable"),
    "maxtokens": Entry("[N]", "longest answer"),
}
ALIASES: Final = {"quit": "exit", "q": "exit", "bye": "exit", "picture": "image"}


def help_text() -> str:
    """The commands as a table of lines."""
    forms = {f"\\{name} {entry.form}".strip(): entry.purpose for name, entry in COMMANDS.items()}
    width = max(map(len, forms)) + 2
    rows = [f"{form:<{width}}{purpose}" for form, purpose in forms.items()]
    return "\n".join(
        [
            *rows,
            "",
            "/ does as well as \\. Pictures may also be dropped or named anywhere in a question.",
            "A space before a line makes it text. Ctrl-C stops an answer and keeps what it said.",
        ]
    )


def unknown(name: str) -> str:
    """What to say of a command that there is none of."""
    near = difflib.get_close_matches(name, [*COMMANDS, *ALIASES], n=1, cutoff=0.5)
    hint = f"did you mean \\{near[0]}?" if near else "\\help lists them;"
    return f"no command \\{name}; {hint} A space before the line sends it as text"
