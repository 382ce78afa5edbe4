"""A repository on the Hub as a folder here that has everything but the weights.

The small files that describe a model are read whole. Of a weight file only the header is; behind
it comes a hole, so that the file has its true length and takes no room. What reads headers cannot
tell this folder from a downloaded one, and what is wrong with it is told in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, constants, errors, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from mlx_qwenvl.errors import ModelNotFound, QwenVLError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.weights.bundle import MANIFEST, variant_files
from mlx_qwenvl.weights.files import INDEX_FILE, LENGTH_BYTES
from mlx_qwenvl.weights.hub import failure, quiet, refusal

REVISION = "main"
SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    MANIFEST,
    INDEX_FILE,
)
FIRST_BYTES = 100_000  # of a weight file; most headers lie in them
LONGEST_HEADER = 100_000_000  # bytes that the safetensors format allows
SMALL_FILE_LIMIT = 50_000_000  # bytes; a description that is longer is none
CONNECTIONS = 8  # headers that are read at once


@contextmanager
def skeleton(repository: str) -> Iterator[Path]:
    """The repository's folder without its weights, for as long as the block lasts.

    Args:
        repository: `owner/model`.

    Raises:
        ModelNotFound: The Hub refuses, or cannot be reached.
        QwenVLError: What the block raises, with the repository named in place of the folder.
    """
    with TemporaryDirectory(prefix="mlx-qwenvl-") as temporary:
        folder = Path(temporary, repository)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _told_of_the_hub(repository), quiet(True):
                _fill(folder, repository)
            yield folder
        except QwenVLError as error:
            raise type(error)(str(error).replace(str(folder), repository)) from None


def _fill(folder: Path, repository: str) -> None:
    api = HfApi()
    commit = api.model_info(repository, revision=REVISION).sha
    tree = api.list_repo_tree(repository, revision=commit, recursive=True)
    sizes = {entry.path: entry.size for entry in tree if hasattr(entry, "size")}

    def first_bytes(name: str, count: int) -> bytes:
        return _first_bytes(hf_hub_url(repository, name, revision=commit), min(count, sizes[name]))

    for name in SMALL_FILES:
        if name in sizes:
            (folder / name).write_bytes(first_bytes(name, SMALL_FILE_LIMIT))
    weights = {n for n in sizes if Path(n).match("model*.safetensors") and "/" not in n}
    weights |= _files_of_variants(folder) & sizes.keys()

    def write_header(name: str) -> None:
        data = first_bytes(name, FIRST_BYTES)
        end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
        if len(data) < end <= min(sizes[name], LONGEST_HEADER):
            data = first_bytes(name, end)
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            opened.write(data[:end])
            opened.truncate(sizes[name])

    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="mlx-qwenvl-header") as pool:
        list(pool.map(write_header, sorted(weights)))


def _files_of_variants(folder: Path) -> set[str]:
    if not (folder / MANIFEST).exists():
        return set()
    variants = read_json(folder / MANIFEST).get("variants")
    names = list(variants) if isinstance(variants, dict) else []
    return {file for name in names for file in variant_files(folder, name)}


def _first_bytes(url: str, count: int) -> bytes:
    """The first bytes of a file and no more, even from a server that knows no ranges."""
    data = bytearray()
    if count == 0:
        return bytes(data)
    headers = build_hf_headers() | {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        for block in response.iter_bytes():
            data += block
            if len(data) >= count:
                break
    return bytes(data[:count])


@contextmanager
def _told_of_the_hub(repository: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line."""
    reason: Any
    try:
        yield
        return
    except errors.HfHubHTTPError as error:
        reason = refusal(error)
    except errors.HFValidationError:
        reason = "the Hub allows no such name"
    except errors.OfflineModeIsEnabled:
        reason = "it is not downloaded yet and HF_HUB_OFFLINE is set"
    except OSError as error:
        reason = failure(error)
    except QwenVLError:
        raise
    except Exception as error:  # the HTTP library's own errors, of several generations
        if not type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub")):
            raise
        reason = f"the Hub cannot be reached ({type(error).__name__})"
    raise ModelNotFound(f"model {repository!r} cannot be read from the Hub: {reason}") from None
