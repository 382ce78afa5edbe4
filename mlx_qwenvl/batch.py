"""`python -m mlx_qwenvl.batch --images 'photos/**/*.jpg'`: one question about many files."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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
from mlx_qwenvl.batching.files import STDIN, check_stdin, find_named
from mlx_qwenvl.batching.ledger import Ledger
from mlx_qwenvl.batching.lines import NO_SPACE, FileLines, StreamLines
from mlx_qwenvl.batching.named import Kind, Named
from mlx_qwenvl.batching.questions import Question
from mlx_qwenvl.batching.run import Counts, Run
from mlx_qwenvl.batching.terminal import progress, stoppable
from mlx_qwenvl.command import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_OK,
    Parser,
    run,
)
from mlx_qwenvl.engine.options import GREEDY, read_options
from mlx_qwenvl.engine.reply import Reply
from mlx_qwenvl.engine.scheduler import MAX_RUNNING
from mlx_qwenvl.errors import OptionError, PromptError, QwenVLError
from mlx_qwenvl.extracting.answer import read_answer
from mlx_qwenvl.extracting.form import Form
from mlx_qwenvl.inputs.pyav import pyav

PROGRAM = "mlx-qwenvl batch"
BOTH_QUESTION = "Describe what is shown."  # where pictures and videos are asked about


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        prog=PROGRAM,
        description="Ask one question about many pictures or videos; a line of JSON for each.",
        epilog="The same command goes on where it was broken off, and asks again what failed.",
    )
    p.add_argument("pictures", nargs="*", metavar="PICTURE", help="as --images")
    p.add_argument(
        "--images",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH|DIR|URL|-",
        help="'photos/**/*.jpg', a folder, a file, a URL, or - for a list on standard input",
    )
    p.add_argument(
        "--images-from",
        action="append",
        default=[],
        metavar="FILE|-",
        help="a list of pictures, one a line",
    )
    p.add_argument(
        "--videos",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH|DIR|URL|-",
        help="the same of videos, with the extra video: 'clips/**/*.mp4', ...",
    )
    p.add_argument(
        "--videos-from",
        action="append",
        default=[],
        metavar="FILE|-",
        help="a list of videos, one a line",
    )
    p.add_argument("--null", action="store_true", help="lists end names with NUL (find -print0)")
    p.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help=f"the question ({DEFAULT_QUESTION}); several make several lines a file",
    )
    p.add_argument(
        "--prompt-file", action="append", default=[], metavar="FILE", help="a question, from a file"
    )
    p.add_argument(
        "--prompt-first", action="store_true", help="put it before the picture (docs/batch.md)"
    )
    p.add_argument(
        "--output", default="-", metavar="FILE", help="where lines are added; - is stdout (-)"
    )
    add_model(p)
    add_answer(p)
    add_video(p)
    p.add_argument(
        "--max-running",
        type=int,
        default=MAX_RUNNING,
        metavar="N",
        help=f"answers computed side by side ({MAX_RUNNING})",
    )
    add_form(p)
    p.add_argument(
        "--disk-cache", action="store_true", help="keep pictures' features on disk, for you alone"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    arguments = parser().parse_intermixed_args(argv)
    return run(lambda: _ask(arguments), PROGRAM, alone=False)


def _ask(arguments: argparse.Namespace) -> int:
    ranks = launched()
    if ranks is not None and not ranks.leads:
        return load_model(arguments, ranks=ranks).follow()
    options, form = options_of(arguments), form_of(arguments)
    if form is not None:
        options["grammar"] = form.grammar
    read_options(options, GREEDY)  # refuses bad options before the model is loaded
    if arguments.max_running < 1:
        raise OptionError(f"--max-running is {arguments.max_running}, expected a number from 1 up")
    named = _named(arguments, is_launched=ranks is not None)
    kinds = {one.kind: None for one in named}
    questions = _questions(arguments, form, kinds)
    with _output(arguments.output) as (ledger, file):
        vlm = load_model(
            arguments,
            # What was seen once is not asked for again, unless there is another question.
            feature_bytes=0 if len(questions) == 1 else None,
            disk_cache=True if arguments.disk_cache else None,
            ranks=ranks,
        )
        job = Run(
            vlm,
            questions,
            read_options(options, vlm.sampling),
            ledger,
            _no_data if form is None else _data,
            arguments.max_running,
            kinds,
        )
        return _over(job, named, len(named) * len(questions), file)


def _named(arguments: argparse.Namespace, *, is_launched: bool) -> list[Named]:
    """What is asked about: pictures, then videos."""
    pictures = [*arguments.images, *arguments.pictures]
    lists = arguments.images_from, arguments.videos_from
    if not any((pictures, arguments.videos, *lists)):
        raise PromptError("no pictures were named; give --images, or --videos")
    names = [*pictures, *arguments.videos, *lists[0], *lists[1]]
    check_stdin(names)
    if is_launched and STDIN in names:
        raise OptionError("files named on standard input: mlx.launch never ends that")
    nul = arguments.null
    named = find_named("image", pictures, lists[0], ends_with_nul=nul)
    videos = find_named("video", arguments.videos, lists[1], ends_with_nul=nul)
    if videos:
        pyav("--videos")  # before the model is loaded, or each line would say the same
    return [*named, *videos]


def _over(job: Run, named: Sequence[Named], total: int, file: Path | None) -> int:
    begin, counts = time.perf_counter(), job.counts
    kinds = {one.kind for one in named}
    what = "file" if len(kinds) > 1 else "video" if kinds == {"video"} else "picture"
    unit = f"{what}s" if total == len(named) else "answers"
    try:
        bar = progress(total, unit, beside_lines=file is None)
        with stoppable() as stops, bar as told:
            is_complete = job.over(named, told, stops)
    except OSError as error:
        if file is None or error.errno not in NO_SPACE:
            raise
        raise QwenVLError(
            f"no space is left for {file}; its answers are kept; make some, and the same "
            "command goes on"
        ) from None
    seconds = time.perf_counter() - begin
    print(_summary(counts, total, seconds, unit, what), file=sys.stderr)
    if not is_complete:
        how = "begin anew" if file is None else "the same command goes on"
        print(f"{PROGRAM}: interrupted; {total - counts.done} are left; {how}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_ERROR if counts.failed else EXIT_OK


def _summary(counts: Counts, total: int, seconds: float, unit: str, what: str) -> str:
    computed = counts.answered - counts.repeated
    same = f" ({counts.repeated} of them as the same {what})" if counts.repeated else ""
    why = " (their lines say why)" if counts.failed else ""
    speed = f", {computed / seconds:.3g} {unit}/s" if computed else ""
    return (
        f"{counts.answered} of {total} answered{same}, {counts.skipped} were done before, "
        f"{counts.failed} failed{why}; {seconds:.1f} s{speed}"
    )


def _data(reply: Reply) -> dict[str, object]:
    return {"data": read_answer(reply)}


def _no_data(_: Reply) -> dict[str, object]:
    return {}


def _questions(
    arguments: argparse.Namespace, form: Form | None, kinds: Collection[Kind]
) -> list[Question]:
    """What is asked about each file; no question twice."""
    texts = [*arguments.prompt, *map(_text_of, arguments.prompt_file)]
    if not texts:
        usual = DEFAULT_VIDEO_QUESTION if set(kinds) == {"video"} else DEFAULT_QUESTION
        usual = BOTH_QUESTION if len(kinds) > 1 else usual
        texts = [EXTRACT_QUESTION if arguments.extract else usual]
    if not all(text.strip() for text in texts):
        raise PromptError("a question is empty; expected some text")
    if form is not None and arguments.extract:
        texts = [form.question(text) for text in texts]
    return [
        Question(text, arguments.system, arguments.prompt_first) for text in dict.fromkeys(texts)
    ]


def _text_of(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8").strip("\r\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is no UTF-8 text"
        raise OptionError(f"--prompt-file {name}: {reason}") from None


@contextmanager
def _output(name: str) -> Iterator[tuple[Ledger, Path | None]]:
    """What is answered already, and the file that it is in; None for what cannot be read again."""
    path = Path(name).expanduser()
    if name == "-":
        yield Ledger(StreamLines(sys.stdout.buffer)), None
    elif path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device
        with path.open("wb") as stream:
            yield Ledger(StreamLines(stream)), None
    else:
        with FileLines(path) as file:
            yield Ledger.of_file(file), file.path


if __name__ == "__main__":
    sys.exit(main())
