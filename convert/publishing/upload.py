"""A converted folder goes to the Hugging Face Hub, and nothing else of what lies in it.

What is sent is decided by the folder's own index and manifest and by a list of known small files,
never by what happens to be there. The files appear on the Hub with one commit at the end, so an
upload that fails leaves the repository as it was.
"""

from __future__ import annotations

import glob
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import HfApi, errors, get_token

from mlx_qwenvl import __version__
from mlx_qwenvl.errors import CheckpointError, QwenVLError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.weights.bundle import MANIFEST, variant_files
from mlx_qwenvl.weights.files import INDEX_FILE, existing, weight_files
from mlx_qwenvl.weights.hub import in_thread
from mlx_qwenvl.weights.resolve import DOWNLOAD_THREAD

from .card import CARD_FILE

# The small files that a model folder may hold beside its weights.
SMALL_FILES = (
    CARD_FILE,
    "LICENSE",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    INDEX_FILE,
    MANIFEST,
    "report.json",
    "report.html",
)
# Weights of an earlier upload, which loaders that take every file would mix with the new ones.
REPLACED_FILES = ("model*.safetensors", "variants/*")
SHOWN_LENGTH = 200  # characters of what the Hub says in messages


def upload(folder: Path, repository: str, *, private: bool, progress: bool) -> str:
    """Send a converted folder to a repository on the Hub, made where there is none.

    In a repository that has files already, those of the same names and the other weights are
    replaced; what was there stays in its history.

    An interruption (Ctrl-C) is raised at once. The upload then goes on in the background for as
    long as the process lives; the command line ends it.

    Args:
        folder: What the converter wrote.
        repository: `owner/model`, or `model` for the token's owner.
        private: Only the owner shall see it. A repository that is there and public is refused.
        progress: Show bars on stderr.

    Returns:
        The repository's address.

    Raises:
        CheckpointError: The folder holds no model, or not all of one.
        QwenVLError: There is no token, or the Hub refuses or cannot be reached.
    """
    wanted = uploaded_files(folder)
    token = stored_token()

    def send() -> str:
        api = HfApi(token=token)
        url = api.create_repo(repository, private=private, repo_type="model", exist_ok=True)
        if private and not api.repo_info(url.repo_id).private:
            raise QwenVLError(f"{url.repo_id} is there already and public; choose another name")
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in wanted],
            delete_patterns=list(REPLACED_FILES),
            commit_message=f"Upload a model converted by mlx-qwenvl {__version__}",
        )
        return str(url)

    try:
        # Half of an upload is nothing, so the command line does not wait for the thread.
        return in_thread(send, DOWNLOAD_THREAD, is_quiet=not progress)
    except errors.HFValidationError:
        raise QwenVLError(
            f"the Hub allows no repository {repository!r}; expected owner/model"
        ) from None
    except QwenVLError:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:  # not the Hub's doing
            raise
        raise QwenVLError(f"{folder} cannot be uploaded to {repository}: {reason}") from None


def stored_token() -> str:
    """The token that the Hub is asked with.

    Raises:
        QwenVLError: There is none.
    """
    token = get_token()
    if token is None:
        raise QwenVLError("uploading needs a token of the Hub; `hf auth login` stores one")
    return str(token)


def uploaded_files(folder: Path) -> list[str]:
    """Names of the files that make a converted folder, as they are on the Hub.

    Raises:
        CheckpointError: The folder holds no model, or not all of one.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; only a converted folder can be uploaded")
    names = {file.name for file in existing(folder, ["config.json"])}
    names |= {name for name in SMALL_FILES if (folder / name).is_file()}
    names |= {file.name for file in weight_files(folder)}
    if MANIFEST in names:
        for variant in read_json(folder / MANIFEST).get("variants") or {}:
            files = variant_files(folder, variant)
            existing(folder, files)
            names |= {Path(name).as_posix() for name in files}
    # The others' weights lie in folders of their own, each with an index.
    for place in {Path(name).parent for name in names}:
        if (folder / place / INDEX_FILE).is_file():
            names.add((place / INDEX_FILE).as_posix())
    return sorted(names)


def _reason(error: BaseException) -> str | None:
    """What went wrong with the Hub, or None where it was something else."""
    cause: BaseException | None = error
    while cause is not None:  # the Hub's client wraps what befalls a single file
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        if isinstance(cause, errors.HfHubHTTPError):
            return _refusal(cause)
        kind = type(cause).__name__
        if type(cause).__module__.startswith(("httpx", "httpcore")):  # of several generations
            if kind.startswith("Connect"):
                return f"the Hub cannot be reached ({kind})"
            return (
                f"the connection broke ({kind}); run it again, what has arrived is not sent twice"
            )
        if cause.__cause__ is None and isinstance(cause, OSError):
            place = f": {cause.filename}" if cause.filename else ""
            return f"{cause.strerror or _one_line(str(cause))}{place}"
        if cause.__cause__ is None and isinstance(cause, (RuntimeError, ValueError)):
            return _one_line(str(cause)) or kind
        cause = cause.__cause__
    return None


def _refusal(error: errors.HfHubHTTPError) -> str:
    """What an answer of the Hub that is no success means."""
    status = error.response.status_code
    if status == HTTPStatus.UNAUTHORIZED:
        return "the Hub does not accept the token; renew it with `hf auth login`"
    if status == HTTPStatus.FORBIDDEN:
        return "the token may not write there; `hf auth login` with one that may"
    phrases = {known.value: f" ({known.phrase})" for known in HTTPStatus}
    said = _one_line(error.server_message or "")
    return f"the Hub answered {status}{phrases.get(status, '')}" + (f": {said}" if said else "")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:SHOWN_LENGTH]
