"""What all command lines share: one-line errors, exit codes, and the choice of the model.

stdout carries the answer alone; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from mlx_qwenvl.errors import OptionError, PromptError, QwenVLError

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (--help lists the options)\n")


def run(body: Callable[[], int], program: str) -> int:
    """Run a command line's body and turn what it raises into one line and an exit code."""
    try:
        return body()
    except (OptionError, PromptError) as error:
        return _fail(program, str(error), EXIT_USAGE)
    except QwenVLError as error:
        return _fail(program, str(error), EXIT_ERROR)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader left, as `head` does. Point stdout elsewhere, or Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except OSError as error:
        reason = error.strerror or type(error).__name__
        place = f": {error.filename}" if error.filename else ""
        return _fail(program, f"{reason}{place}", EXIT_ERROR)
    except MemoryError:
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


def _fail(program: str, message: str, code: int) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return code
