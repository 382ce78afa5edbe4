"""What all command lines share: their names, one-line errors, exit codes.

stdout carries the answer alone; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from mlx_qwenvl.errors import OptionError, PromptError, QwenVLError
from mlx_qwenvl.weights.resolve import DOWNLOAD_THREAD

RANK_VARIABLE = "MLX_RANK"  # set by mlx.launch
EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

# By name: the module, which has `parser()` and `main(argv)`, and what it is for.
COMMANDS = {
    "generate": ("mlx_qwenvl.generate", "answer a question about pictures"),
    "chat": ("mlx_qwenvl.chat", "talk about pictures in the terminal"),
    "batch": ("mlx_qwenvl.batch", "ask one question about many pictures"),
    "use": ("mlx_qwenvl.use", "choose the model that answers when none is named"),
    "convert": ("mlx_qwenvl.convert.__main__", "write a quantized copy of a model"),
    "info": ("mlx_qwenvl.info", "what a model consists of, and what it needs"),
    "bench": ("mlx_qwenvl.bench", "how fast a model answers on this machine"),
    "serve": ("mlx_qwenvl.server.__main__", "answer over HTTP, as OpenAI's API does"),
    "doctor": ("mlx_qwenvl.doctor", "what works here, as text to paste into a report"),
    "completion": ("mlx_qwenvl.completion", "a script that completes commands in a shell"),
}


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (--help lists the options)\n")


_endings: list[Callable[[int, str], None]] = []


def at_end(tell: Callable[[int, str], None]) -> None:
    """Have it told how this command ends: its exit code, and its last line where it fails."""
    _endings.append(tell)


def run(body: Callable[[], int], program: str, *, alone: bool = True) -> int:
    """Run a command line's body and turn what it raises into one line and an exit code.

    Args:
        body: Gives the exit code.
        program: Its name, in front of errors.
        alone: Whether it is for one process, and not for several that mlx.launch starts.
    """
    _open_standard_descriptors()

    def work() -> int:
        if alone:
            _refuse_several()
        return body()

    code, said = _outcome(work, program)
    for tell in _endings:
        tell(code, said)
    _leave_if_downloading(code)
    return code


def _refuse_several() -> None:
    """Refuse what each of several processes would do for itself, at once."""
    if RANK_VARIABLE in os.environ:
        from mlx_qwenvl.distributed.join import place_of

        if (place := place_of(os.environ)) is not None:
            raise OptionError(
                f"this command is for one process, and mlx.launch started {place.size}"
            )


def _outcome(body: Callable[[], int], program: str) -> tuple[int, str]:
    """The exit code, and what was said of an error."""
    try:
        return body(), ""
    except (OptionError, PromptError) as error:
        return _fail(program, str(error), EXIT_USAGE)
    except QwenVLError as error:
        return _fail(program, str(error), EXIT_ERROR)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", EXIT_INTERRUPTED)
    except SystemExit as end:
        return int(end.code or EXIT_OK), ""
    except BrokenPipeError:
        # The reader left, as `head` does. Point stdout elsewhere, or Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR, ""
    except OSError as error:
        reason = error.strerror or type(error).__name__
        place = f": {error.filename}" if error.filename else ""
        return _fail(program, f"{reason}{place}", EXIT_ERROR)
    except (MemoryError, RuntimeError) as error:
        # MLX says "Attempting to allocate ..." of a buffer that the GPU cannot hold.
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        return _fail(
            program, "out of memory; lower --max-pixels or take a smaller model", EXIT_ERROR
        )


def announce_demo() -> None:
    """Say on stderr which model answers where nobody chose one."""
    print(
        "No model chosen: the tiny embedded demo answers, which knows drawn shapes and short "
        "text. `mlx-qwenvl use 2b` downloads Qwen2-VL-2B.",
        file=sys.stderr,
    )


def _fail(program: str, message: str, code: int) -> tuple[int, str]:
    said = " ".join(message.splitlines())
    print(f"{program}: {said}", file=sys.stderr)
    return code, said


def _open_standard_descriptors() -> None:
    """Open what the caller has closed (`<&-`, `>&-`), or the next files take those descriptors.

    A model's file at descriptor 0 is refused by MLX, and one at 1 would be written to.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free one, which is this


def _leave_if_downloading(code: int) -> None:
    """End the process now if a download that took no interruption would keep it for minutes."""
    if not any(thread.name == DOWNLOAD_THREAD for thread in threading.enumerate()):
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)
