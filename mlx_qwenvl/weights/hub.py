"""Model folders from the Hugging Face Hub: the copy that is here, or a download.

Downloads resume, honour offline mode and the cache's place, and hold no pickles and no code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from huggingface_hub import errors, snapshot_download, utils

from mlx_qwenvl.errors import CheckpointError, ModelNotFound, OptionError, QwenVLError
from mlx_qwenvl.weights.bundle import open_bundle, variant_files

# Weights, their index, and the small files beside them; no pickles and no code.
SMALL_FILES = ["*.json", "*.jinja"]
WANTED_FILES = ["model*.safetensors", *SMALL_FILES]

SIGNAL_PERIOD = 0.2  # seconds between looks for Ctrl-C
INTERRUPT_PATIENCE = 3.0  # seconds that an interrupted download gets to clear up


def cached(repository: str, variant: str | None = None) -> Path | None:
    """The complete copy in Hugging Face's cache, if there is one."""
    try:
        # Of a variant the small files say which weights it needs, and these are looked for below.
        wanted = WANTED_FILES if variant is None else SMALL_FILES
        folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=wanted))
        with open_bundle(folder, variant):
            pass
    except errors.HFValidationError:
        raise ModelNotFound(f"no model {repository!r}: the Hub allows no such name") from None
    except (errors.LocalEntryNotFoundError, CheckpointError, OptionError):
        return None
    # Older clients give a folder whose download was broken off as if it were complete.
    complete = all((folder / name).exists() for name in ("config.json", "tokenizer.json"))
    return folder if complete else None


def download(repository: str, variant: str | None, *, progress: bool, thread_name: str) -> Path:
    """Download a repository's weights and the small files beside them.

    Args:
        repository: `owner/model`.
        variant: Which of several quantizations, or None for the weights at the top.
        progress: Show bars.
        thread_name: Of the thread that downloads, which may outlive an interruption.

    Raises:
        ModelNotFound: The Hub refuses, or cannot be reached.
        OptionError: The repository has no such variant.
    """
    stop = threading.Event()
    bars: list[Bar] = []

    class Bar(utils.tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            if stop.is_set():  # every part of every file comes by here
                raise InterruptedError("the download was interrupted")
            shown: bool | None = super().update(n)
            return shown

    def fetch() -> str:
        wanted = WANTED_FILES
        if variant is not None:
            small = snapshot_download(repository, allow_patterns=SMALL_FILES, tqdm_class=Bar)
            wanted = [*SMALL_FILES, *variant_files(Path(small), variant)]
        return snapshot_download(repository, allow_patterns=wanted, tqdm_class=Bar)

    try:
        return Path(in_thread(fetch, thread_name, is_quiet=not progress, stop=stop))
    except errors.HfHubHTTPError as error:
        reason = refusal(error)
    except OSError as error:  # nothing is cached, or the disk is at fault
        reason = failure(error)
    except QwenVLError:
        raise
    except Exception as error:  # the HTTP library's own errors, of several generations
        if not type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub")):
            raise
        reason = f"the Hub cannot be reached ({type(error).__name__})"
    finally:
        for bar in bars:  # those left open would be drawn once more over what is printed next
            bar.close()
    raise ModelNotFound(f"model {repository!r} cannot be downloaded: {reason}") from None


def refusal(error: Any) -> str:
    """What an answer of the Hub that is no file means."""
    if isinstance(error, errors.GatedRepoError):
        return "access is restricted; accept its terms on the Hub, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the Hub has no such repository, or it is private; `hf auth login` if it is yours"
    known = {status.value: f" ({status.phrase})" for status in HTTPStatus}
    status = error.response.status_code
    advice = "; renew your token with `hf auth login`" if status == HTTPStatus.UNAUTHORIZED else ""
    return f"the Hub answered {status}{known.get(status, '')}{advice}"


def failure(error: OSError) -> str:
    """What kept a request from an answer."""
    cause = error.__cause__
    if isinstance(cause, errors.HfHubHTTPError):
        return refusal(cause)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return "it is not downloaded yet and HF_HUB_OFFLINE is set"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "it is not downloaded yet and the Hub cannot be reached"
    return str(error.strerror or error).strip().split("\n")[0]


def in_thread(
    do: Callable[[], str],
    thread_name: str,
    *,
    is_quiet: bool,
    stop: threading.Event | None = None,
) -> str:
    """Let the Hub's client work in a thread of its own, so that Ctrl-C is not held up.

    In the main thread the client would first finish all files that it has begun.

    Args:
        do: The work.
        thread_name: By which the command line knows that it need not be waited for.
        is_quiet: Show neither bars nor warnings.
        stop: Set on Ctrl-C; the work then gets a moment to clear up.
    """
    done: Future[str] = Future()

    def work() -> None:
        try:
            with quiet(is_quiet):
                result = do()
            done.set_result(result)
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=work, name=thread_name, daemon=True)
    thread.start()
    try:
        # A signal that comes just before a wait without end is not seen until that wait is over.
        while not wait([done], timeout=SIGNAL_PERIOD).done:
            pass
    except KeyboardInterrupt:
        if stop is not None:
            stop.set()
            thread.join(INTERRUPT_PATIENCE)
        raise
    return done.result()


@contextmanager
def quiet(is_quiet: bool) -> Iterator[None]:
    """Keep the Hub's client from writing bars and warnings, or let it."""
    if not is_quiet:
        yield
        return
    had_bars = not utils.are_progress_bars_disabled()
    verbosity = utils.logging.get_verbosity()
    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        utils.logging.set_verbosity(verbosity)
        if had_bars:
            utils.enable_progress_bars()
