"""`mlx-qwenvl chat`: talk about pictures in the terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_qwenvl.arguments import (
    add_answer,
    add_model,
    add_video,
    launched,
    load_model,
    options_of,
)
from mlx_qwenvl.chatting.picture import read_checked
from mlx_qwenvl.chatting.preview import PROTOCOLS, protocol_of
from mlx_qwenvl.chatting.saved import check_saved
from mlx_qwenvl.chatting.screen import PlainScreen, Screen
from mlx_qwenvl.chatting.session import Session
from mlx_qwenvl.chatting.talk import Talk
from mlx_qwenvl.chatting.typed import PlainPrompt, Prompt
from mlx_qwenvl.command import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Parser,
    run,
)
from mlx_qwenvl.engine.options import GREEDY, read_options
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.video_file import check_video
from mlx_qwenvl.vlm import QwenVL, load

if TYPE_CHECKING:
    from mlx_qwenvl.distributed.ranks import Ranks

PROGRAM = "mlx-qwenvl chat"
DUMB = ("", "dumb", "unknown")  # terminals without a cursor


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog=PROGRAM,
        description="Talk about pictures. Lines that are piped in are answered on stdout.",
        epilog="\\help lists what can be typed; docs/chat.md explains it.",
    )
    p.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATH|URL|data:...",
        help="a picture for the first question; repeat for more",
    )
    p.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="PATH|URL|data:...",
        help="a video for the first question; repeat for more",
    )
    p.add_argument("--load", metavar="FILE", help="go on with a conversation that \\save kept")
    add_model(p)
    add_answer(p)
    add_video(p)
    p.add_argument("--draft", metavar="NAME|DIR", help="a smaller model that proposes tokens")
    p.add_argument(
        "--preview",
        nargs="?",
        const="auto",
        choices=("auto", *PROTOCOLS),
        metavar="PROTOCOL",
        help="show pictures in the terminal: auto, iterm2 or kitty",
    )
    p.add_argument("--show-thinking", action="store_true", help="a model's thoughts on stderr")
    p.add_argument("--no-history", action="store_true", help="keep no file of what was typed")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: _chat(arguments), PROGRAM, alone=False)


def _chat(arguments: argparse.Namespace) -> int:
    ranks = launched()
    if ranks is not None and not ranks.leads:
        return load_model(arguments, draft=arguments.draft, ranks=ranks).follow()
    options = options_of(arguments)
    read_options(options, GREEDY)  # refuses bad options before the model is loaded
    # What is wrong is told at once, not after the model was loaded.
    pictures = [read_checked(source) for source in arguments.image]
    for source in arguments.video:
        check_video(source)
    kept = None if arguments.load is None else Path(arguments.load).expanduser()
    if kept is not None:
        check_saved(kept)
    vlm = load_model(arguments, draft=arguments.draft, ranks=ranks)
    prompt, screen = terminal_of(arguments)
    talk = Talk(
        Session(vlm, options, arguments.system),
        screen,
        lambda other: _load_other(other, arguments.dtype, ranks),
        can_edit=prompt.can_edit,
        previews=arguments.preview is not None,
    )
    if kept is not None:
        talk.load_saved(kept, options)
    talk.waiting += pictures
    talk.films += arguments.video
    if prompt.is_interactive:
        screen.note(f"{vlm.name} listens; \\help lists the commands, Ctrl-D leaves")
    return _talk(talk, prompt)


def _talk(talk: Talk, prompt: Prompt) -> int:
    """Read and answer until the end."""
    while True:
        try:
            line = prompt.read(talk.draft)
            if line is None or not talk.take(line):
                break
        except KeyboardInterrupt:  # between an answer and the next prompt, say
            if not prompt.is_interactive:
                raise
        if talk.is_stopped and not prompt.is_interactive:
            return EXIT_INTERRUPTED
    return EXIT_ERROR if talk.failures and not prompt.is_interactive else EXIT_OK


def terminal_of(arguments: argparse.Namespace) -> tuple[Prompt, Screen]:
    """What gives lines and what shows answers, by what stands at both ends."""
    ends = (sys.stdin, sys.stdout)
    is_terminal = all(end is not None and end.isatty() for end in ends)
    if not is_terminal or os.environ.get("TERM", "dumb") in DUMB:
        return PlainPrompt(), PlainScreen(shows_thinking=arguments.show_thinking)
    # Imported only now: both libraries take a tenth of a second that a pipe does not need.
    from mlx_qwenvl.chatting.history import history_file
    from mlx_qwenvl.chatting.rich_prompt import RichPrompt
    from mlx_qwenvl.chatting.rich_screen import RichScreen

    asked = arguments.preview
    protocol = protocol_of(os.environ) if asked == "auto" else asked
    screen = RichScreen(protocol, shows_thinking=arguments.show_thinking)
    if asked == "auto" and protocol is None:
        screen.note("no previews: iTerm2, WezTerm, kitty and Ghostty can show pictures")
    return RichPrompt(None if arguments.no_history else history_file()), screen


def _load_other(name: str, dtype: str | None, ranks: Ranks | None) -> QwenVL:
    if ranks is not None:
        raise OptionError(f"{ranks.size} processes hold this model; start them with another one")
    return load(name, dtype=dtype, progress=sys.stderr.isatty())


if __name__ == "__main__":
    sys.exit(main())
