"""A model's name becomes a folder on this machine.

A name is `demo` (the model inside this package), a folder, a short name such as `2b`, or a
Hugging Face repository. What has been downloaded is used without asking the network again;
nothing that was not named is ever downloaded, and nothing falls back to another model.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_qwenvl.errors import CheckpointError, ModelNotFound
from mlx_qwenvl.weights.files import list_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "demo"

SHORT_NAMES = {
    short: f"mlx-community/Qwen2-VL-{size.upper()}-Instruct-{bits}bit"
    for size in ("2b", "7b", "72b")
    for bits in (4, 8)
    for short in ([f"{size}-{bits}bit", size] if bits == 4 else [f"{size}-{bits}bit"])
}

# Weights, their index, and the small files beside them; no pickles and no code.
WANTED_FILES = ["model*.safetensors", "*.json", "*.jinja"]

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(name: str, *, progress: bool = False) -> Path:
    """Folder of a model, downloaded if it has to be.

    Args:
        name: See above.
        progress: Show a bar while downloading.

    Raises:
        ModelNotFound: The name leads nowhere, or the repository cannot be reached.
    """
    if name == DEMO:
        return DEMO_FOLDER
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelNotFound(f"{name} is a file, expected a folder with config.json and weights")
    repository = SHORT_NAMES.get(name.lower(), name)
    if not _REPOSITORY.fullmatch(repository) or name.startswith((".", "~")):
        raise ModelNotFound(
            f"no model {name!r}: expected a folder, a Hugging Face name such as owner/model, or "
            f"one of {', '.join([DEMO, *SHORT_NAMES])}"
        )
    return _cached(repository) or _download(repository, progress)


def _cached(repository: str) -> Path | None:
    """The complete copy in Hugging Face's cache, if there is one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(repository, local_files_only=True, allow_patterns=WANTED_FILES)
        )
        list_tensors(folder)
    except (LocalEntryNotFoundError, CheckpointError):
        return None
    return folder if (folder / "config.json").exists() else None


def _download(repository: str, progress: bool) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        with _bars(progress):
            return Path(snapshot_download(repository, allow_patterns=WANTED_FILES))
    except hub.GatedRepoError:
        reason = "access is restricted; accept its terms on the Hub, then run `hf auth login`"
    except hub.RepositoryNotFoundError:
        reason = "the Hub has no such repository, or it is private; `hf auth login` if it is yours"
    except hub.OfflineModeIsEnabled:
        reason = "it is not downloaded yet and HF_HUB_OFFLINE is set"
    except hub.LocalEntryNotFoundError:
        reason = "it is not downloaded yet and the Hub cannot be reached"
    except OSError as error:  # includes the Hub's HTTP errors
        reason = str(error.strerror or error).strip().split("\n")[0]
    except Exception as error:  # the HTTP library's own errors, of several generations
        if not type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub")):
            raise
        reason = f"the Hub cannot be reached ({type(error).__name__})"
    raise ModelNotFound(f"model {repository!r} cannot be downloaded: {reason}")


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    from huggingface_hub import utils

    hidden_before = utils.are_progress_bars_disabled()
    if not shown:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if not shown and not hidden_before:
            utils.enable_progress_bars()
