"""A model's name becomes a folder on this machine.

A name is `demo` (the model inside this package), a folder, a single-file model, a short name such
as `2b`, or a Hugging Face repository. What has been downloaded is used without asking the network
again; nothing that was not named is ever downloaded, and nothing falls back to another model.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlx_qwenvl.bars import choose_tqdm
from mlx_qwenvl.errors import ModelNotFound
from mlx_qwenvl.weights.short_names import SHORT_NAMES, plain

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "demo"

DOWNLOAD_THREAD = "mlx-qwenvl-download"  # name of the thread that a download runs in
SHOWN_LENGTH = 100  # characters of a name in messages

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def resolve_model(name: str, variant: str | None = None, *, progress: bool = False) -> Path:
    """Folder of a model, or its single file; downloaded if it has to be.

    Args:
        name: See above.
        variant: Which of several stored quantizations will be wanted; no other is downloaded.
        progress: Show a bar while downloading.

    Raises:
        ModelNotFound: The name leads nowhere, or the repository cannot be reached.
    """
    path = local_path(name)
    if path is not None:
        return path
    repository = repository_of(name)
    choose_tqdm()  # the Hub's client would have it warn
    # Imported late: the Hub's client costs a tenth of a second that a folder does not need.
    from mlx_qwenvl.weights.hub import cached, download

    return cached(repository, variant) or download(
        repository, variant, progress=progress, thread_name=DOWNLOAD_THREAD
    )


def local_path(name: str) -> Path | None:
    """The folder or single file that a name leads to without the Hub, if it does.

    Raises:
        ModelNotFound: The name is a file of another kind.
    """
    if name == DEMO:
        return DEMO_FOLDER
    # os.path, unlike Path, answers for names that cannot be paths at all.
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return Path(path)
    if os.path.isfile(path) and path.endswith(".safetensors"):
        return Path(path)
    if os.path.isfile(path):
        kind = "a GGUF file, which MLX's models are not" if path.endswith(".gguf") else "a file"
        raise ModelNotFound(f"{name} is {kind}; expected a folder with config.json and weights")
    return None


def repository_of(name: str) -> str:
    """The Hugging Face repository that a name stands for.

    Raises:
        ModelNotFound: It cannot be the name of one.
    """
    repository = SHORT_NAMES.get(plain(name), name)
    if not _REPOSITORY.fullmatch(repository) or name.startswith((".", "~")):
        name = name if len(name) <= SHOWN_LENGTH else f"{name[:SHOWN_LENGTH]}..."
        raise ModelNotFound(
            f"no model {name!r}: expected a folder, a Hugging Face name such as owner/model, or "
            f"one of {DEMO}, 2b, 7b-8bit, qwen3-vl-8b and what else `mlx-qwenvl use --help` lists"
        )
    return repository
