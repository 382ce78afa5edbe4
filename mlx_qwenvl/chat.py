"""`mlx-qwenvl chat`: talk about pictures in the terminal."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

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
    announce_demo,
    run,
)
from mlx_qwenvl.engine.options import GREEDY, CallOptions, read_options
from mlx_qwenvl.vlm import QwenVL, load
from mlx_qwenvl.weights.choice import default_model
from mlx_qwenvl.weights.resolve import DEMO

PROGRAM = "mlx-qwenvl chat"
DUMB = ("", "dumb", "unknown")  # terminals without a cursor


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog=PROGRAM,
        description="Talk about pictures. Lines that are piped in are answered on stdout.",
        epilog="\\help lists what can be typed; docs/chat.md explains it.",
    )
    p.add_argument("--model", metavar="NAME|DIR", help="demo, 2b, owner/model, or a folder")
    p.add_argument("--system", metavar="TEXT", help="system message; by default the model's own")
    p.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATH|URL|data:...",
        help="a picture for the first question; repeat for more",
    )
    p.add_argument("--load", metavar="FILE", help="go on with a conversation that \\save kept")
    p.add_argument("--max-tokens", type=int, metavar="N", help="longest answer (1024)")
    sampling = p.add_argument_group("sampling (by default the checkpoint's own, as a whole)")
    sampling.add_argument("--temperature", type=float, metavar="T", help="0 is repeatable")
    sampling.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest that sum to P"
    )
    sampling.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    sampling.add_argument("--min-p", type=float, metavar="P", help="none below P of the likeliest")
    sampling.add_argument("--seed", type=int, metavar="N", help="makes drawing repeatable")
    p.add_argument("--min-pixels", type=int, metavar="N", help="least pixels of a picture")
    p.add_argument("--max-pixels", type=int, metavar="N", help="most pixels (1003520)")
    p.add_argument("--quantize", metavar="RECIPE", help="quantize at load: 4bit, 8bit, mxfp4, ...")
    p.add_argument("--topology", metavar="FILE", help="YAML: which parts to quantize otherwise")
    p.add_argument("--variant", metavar="NAME", help="which of a model's stored quantizations")
    p.add_argument("--kv-bits", type=int, metavar="N", help="8 or 4: quantized keys and values")
    p.add_argument("--draft", metavar="NAME|DIR", help="a smaller model that proposes tokens")
    p.add_argument("--dtype", help="float32, float16 or bfloat16")
    p.add_argument(
        "--preview",
        nargs="?",
        const="auto",
        choices=("auto", *PROTOCOLS),
        metavar="PROTOCOL",
        help="show pictures in the terminal: auto, iterm2 or kitty",
    )
    p.add_argument("--no-history", action="store_true", help="keep no file of what was typed")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_args(argv)
    return run(lambda: _chat(arguments), PROGRAM)


def _chat(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    read_options(options, GREEDY)  # refuses bad options before the model is loaded
    # What is wrong is told at once, not after the model was loaded.
    pictures = [read_checked(source) for source in arguments.image]
    kept = None if arguments.load is None else Path(arguments.load).expanduser()
    if kept is not None:
        check_saved(kept)
    name = default_model() if arguments.model is None else arguments.model
    vlm = load(
        name,
        dtype=arguments.dtype,
        quantize=arguments.quantize,
        topology=arguments.topology,
        variant=arguments.variant,
        draft=arguments.draft,
        progress=sys.stderr.isatty(),
    )
    if arguments.model is None and name == DEMO:
        announce_demo()
    prompt, screen = terminal_of(arguments)
    talk = Talk(
        Session(vlm, options, arguments.system),
        screen,
        lambda other: _load_other(other, arguments.dtype),
        can_edit=prompt.can_edit,
        previews=arguments.preview is not None,
    )
    if kept is not None:
        talk.load_saved(kept, options)
    talk.waiting += pictures
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
        return PlainPrompt(), PlainScreen()
    # Imported only now: both libraries take a tenth of a second that a pipe does not need.
    from mlx_qwenvl.chatting.history import history_file
    from mlx_qwenvl.chatting.rich_prompt import RichPrompt
    from mlx_qwenvl.chatting.rich_screen import RichScreen

    asked = arguments.preview
    protocol = protocol_of(os.environ) if asked == "auto" else asked
    screen = RichScreen(protocol)
    if asked == "auto" and protocol is None:
        screen.note("no previews: iTerm2, WezTerm, kitty and Ghostty can show pictures")
    return RichPrompt(None if arguments.no_history else history_file()), screen


def _load_other(name: str, dtype: str | None) -> QwenVL:
    return load(name, dtype=dtype, progress=sys.stderr.isatty())


def _options(arguments: argparse.Namespace) -> CallOptions:
    options: CallOptions = {
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "seed": arguments.seed,
        "min_pixels": arguments.min_pixels,
        "max_pixels": arguments.max_pixels,
        "kv_bits": arguments.kv_bits,
    }
    return options


if __name__ == "__main__":
    sys.exit(main())
