"""`python -m mlx_qwenvl.generate --image path`: one question about pictures, answered on stdout.

Videos go the same way, with `--video`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlx_qwenvl.arguments import (
    DEFAULT_QUESTION,
    DEFAULT_VIDEO_QUESTION,
    EXTRACT_QUESTION,
    add_answer,
    add_form,
    add_model,
    add_video,
    form_of,
    launched,
    load_model,
    options_of,
)
from mlx_qwenvl.bars import bar
from mlx_qwenvl.command import EXIT_INTERRUPTED, EXIT_OK, Parser, run
from mlx_qwenvl.engine.options import GREEDY, CallOptions, read_options
from mlx_qwenvl.engine.reply import Chunk, Reply
from mlx_qwenvl.errors import MediaError, OptionError, PromptError
from mlx_qwenvl.extracting.answer import read_answer
from mlx_qwenvl.extracting.table import STYLES, written
from mlx_qwenvl.grounding.boxes import MarkFilter
from mlx_qwenvl.grounding.picture_file import PictureFile
from mlx_qwenvl.inputs.media import ImageSource, open_image
from mlx_qwenvl.inputs.video_file import check_video
from mlx_qwenvl.inputs.video_part import VideoSource
from mlx_qwenvl.thoughts import ThinkingPrinter

if TYPE_CHECKING:
    from mlx_qwenvl.distributed.ranks import Ranks
    from mlx_qwenvl.vlm import QwenVL

PROGRAM = "mlx-qwenvl generate"
PIPE_PATIENCE = 2.0  # seconds to wait for an open pipe when the question is known without it


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog=PROGRAM,
        description="Answer a question about pictures and videos, or describe them.",
        epilog="The question may be an argument, --prompt, piped in, or joined from all.",
    )
    p.add_argument("text", nargs="*", metavar="QUESTION", help="the question")
    p.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="PATH|URL|data:...|-",
        help="a picture; repeat it for more",
    )
    p.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="PATH|URL|data:...",
        help="a video; repeat it for more",
    )
    p.add_argument("--prompt", help=f"the question; with a picture {DEFAULT_QUESTION!r}")
    add_model(p)
    add_answer(p)
    add_video(p)
    p.add_argument("--no-cache", action="store_true", help="compute all, keep nothing")
    p.add_argument(
        "--disk-cache",
        action="store_true",
        help="keep pictures' features and prompts on disk, for you alone (docs/caches.md)",
    )
    p.add_argument("--draft", metavar="NAME|DIR", help="a smaller model that proposes tokens")
    p.add_argument("--no-speculation", action="store_true", help="one token a step, always")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.add_argument("--show-thinking", action="store_true", help="a model's thoughts on stderr")
    p.add_argument("--draw", metavar="FILE", help="save the picture with what the answer points at")
    add_form(p)
    p.add_argument("--as", dest="style", choices=STYLES, help="how --extract prints (json)")
    p.add_argument("--verbose", action="store_true", help="sizes and timings on stderr")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return run(lambda: _answer(arguments), PROGRAM, alone=False)


def _answer(arguments: argparse.Namespace) -> int:
    ranks = launched()
    if ranks is not None and not ranks.leads:
        return _load(arguments, ranks).follow()
    if arguments.verbose:
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        logging.getLogger("mlx_qwenvl").setLevel(logging.INFO)
    options = _options(arguments)
    _check_style(arguments)
    form = form_of(arguments)
    if form is not None:
        options["grammar"] = form.grammar
    read_options(options, GREEDY)  # refuses bad options before the model is loaded
    if ranks is not None and "-" in arguments.image:
        raise MediaError("--image - reads standard input, which mlx.launch never ends")
    images = _images(arguments)
    videos = _videos(arguments)
    if arguments.draw is not None and not images:
        raise PromptError("--draw: there is no picture to draw on; give one (--image)")
    drawing = None if arguments.draw is None else PictureFile.at(arguments.draw, "--draw")
    question = _question(arguments, has_pipe=ranks is None)
    if form is not None and arguments.extract:
        question = form.question(question)
    vlm = _load(arguments, ranks)
    chunks: list[Chunk] = []
    with _progress() as on_prefill:
        options["on_prefill"] = on_prefill
        stream = vlm.stream(
            question, images=images, videos=videos, system=arguments.system, **options
        )
        show = not (arguments.json or arguments.extract)
        interrupted = _listen(stream, chunks, show=show, thoughts=arguments.show_thinking)
    if interrupted:
        heard = "".join(chunk.text for chunk in chunks)
        if arguments.extract and not arguments.json:
            print(heard)
        if arguments.json:
            _print_json({"text": heard, "finish_reason": "interrupted", "model": vlm.name})
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    reply = Reply.of(chunks, vlm.name, images)
    data = None if form is None else read_answer(reply)
    if arguments.json:
        _print_json(reply.to_dict() | ({} if form is None else {"data": data}))
    elif arguments.extract:
        print(written(data, arguments.style or "json"))
    if drawing is not None:
        drawing.save(reply.draw())
        if not reply.boxes:
            print(
                f"the answer points at nothing; {arguments.draw} holds the picture alone",
                file=sys.stderr,
            )
    if arguments.verbose:
        _report(reply)
    return EXIT_OK


def _load(arguments: argparse.Namespace, ranks: Ranks | None) -> QwenVL:
    disk_cache, draft = _disk_cache(arguments), arguments.draft
    return load_model(arguments, disk_cache=disk_cache, draft=draft, ranks=ranks)


def _disk_cache(arguments: argparse.Namespace) -> bool | None:
    if arguments.no_cache:
        return False
    return True if arguments.disk_cache else None


def _options(arguments: argparse.Namespace) -> CallOptions:
    options = options_of(arguments)
    options["cache"] = not arguments.no_cache
    options["speculation"] = False if arguments.no_speculation else None
    return options


def _check_style(arguments: argparse.Namespace) -> None:
    if arguments.style and not arguments.extract:
        raise OptionError("--as says how --extract prints; give the fields with --extract")
    if arguments.style and arguments.json:
        raise OptionError("--json prints an object with the data in it; give either it or --as")


def _images(arguments: argparse.Namespace) -> list[ImageSource]:
    if arguments.image.count("-") > 1:
        raise PromptError("--image - was given more than once; standard input holds one picture")
    # Opened before the model is loaded, so that a wrong path is told at once.
    return [open_image(_piped_picture() if name == "-" else name) for name in arguments.image]


def _videos(arguments: argparse.Namespace) -> list[VideoSource]:
    if "-" in arguments.video:
        raise PromptError("--video - is not read: a video is sought in, which a pipe cannot be")
    for name in arguments.video:
        check_video(name)  # before the model is loaded, as above
    return list(arguments.video)


def _piped_picture() -> bytes:
    if sys.stdin is None:
        raise MediaError("--image - reads a picture from standard input, which is closed")
    return sys.stdin.buffer.read()


def _question(arguments: argparse.Namespace, *, has_pipe: bool) -> str:
    """The question, joined from the pipe, --prompt and the arguments.

    Args:
        arguments: The command line's.
        has_pipe: Whether standard input may hold a part of it, which mlx.launch's never does.
    """
    said = [part for part in (arguments.prompt, " ".join(arguments.text)) if part]
    has_question = bool(said or arguments.image or arguments.video)
    piped = _piped_text(has_question) if has_pipe and "-" not in arguments.image else ""
    question = "\n".join(part for part in [piped, *said] if part.strip())
    if not question and not (arguments.image or arguments.video):
        raise PromptError("nothing was asked; give a question, a picture (--image), or both")
    if question:
        return question
    if arguments.extract:
        return EXTRACT_QUESTION
    return DEFAULT_QUESTION if arguments.image or not arguments.video else DEFAULT_VIDEO_QUESTION


def _piped_text(has_question: bool) -> str:
    """Text from standard input, if something is piped or redirected into it."""
    if sys.stdin is None or sys.stdin.closed:
        return ""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return ""
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind)):
        return ""
    # Whoever starts programs may leave a pipe open that nobody writes to; do not hang on it.
    waits_in_vain = has_question and not stat.S_ISREG(kind)
    if waits_in_vain and not select.select([sys.stdin], [], [], PIPE_PATIENCE)[0]:
        print(
            f"standard input is open but silent for {PIPE_PATIENCE:.0f} s; going on without it",
            file=sys.stderr,
        )
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace").strip("\n")


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar for a prompt that takes more than one step, on terminals only."""
    if not sys.stderr.isatty():
        yield None
        return
    with bar("reading", "tokens") as advance:
        yield advance


def _listen(stream: Iterator[Chunk], chunks: list[Chunk], *, show: bool, thoughts: bool) -> bool:
    """Collect an answer, printing it as it comes; tell whether Ctrl-C ended it."""
    marks, thinking = MarkFilter(), ThinkingPrinter(sys.stderr if thoughts else None)
    if show and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 still gets an answer
    try:
        for chunk in stream:
            chunks.append(chunk)
            thinking.hear(chunk)
            text = marks.feed(chunk.text) if show else ""
            if text:
                print(text, end="", flush=True)
    except KeyboardInterrupt:
        return True
    finally:
        thinking.finish()
        if show and chunks:
            print(marks.finish(), flush=True)
    return False


def _print_json(value: dict[str, Any]) -> None:
    is_utf8 = sys.stdout is not None and sys.stdout.encoding.lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=not is_utf8))


def _report(reply: Reply) -> None:
    usage, timings, guessed = reply.usage, reply.timings, reply.speculation
    videos = f", {usage.video_tokens} of videos" if usage.video_tokens else ""
    print(
        f"{usage.prompt_tokens} prompt tokens ({usage.image_tokens} of pictures{videos}), "
        f"{timings.prompt_tokens_per_s:.1f}/s; {usage.completion_tokens} answer tokens, "
        f"{timings.completion_tokens_per_s:.1f}/s\n"
        f"load {timings.load_s:.2f} s, pictures {timings.vision_s:.2f} s, "
        f"prompt {timings.prefill_s:.2f} s, "
        f"first token after {timings.time_to_first_token_s:.2f} s, "
        f"answer {timings.decode_s:.2f} s; peak {reply.peak_memory_bytes / 1e6:.0f} MB",
        file=sys.stderr,
    )
    if guessed is not None and guessed.rounds:
        print(
            f"{guessed.accepted_tokens} of {guessed.proposed_tokens} proposed tokens were right, "
            f"in {guessed.rounds} steps",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
