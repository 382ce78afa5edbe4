"""A model as it lies on disk: a folder, one of several variants in a folder, or a single file.

A folder with several quantizations is an ordinary one to whoever knows nothing of them: the
default variant's files stand at the top, the others' in `variants/`, and what several share is
stored once. The manifest says which files make which variant. A single file holds the same
tensors, those of a variant behind its name, and the small files as tensors of bytes. The format is
described in `docs/format.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from mlx_qwenvl.errors import CheckpointError, OptionError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.weights.files import (
    StoredTensor,
    by_canonical_name,
    existing,
    list_tensors,
    read_bytes,
    read_header,
)

MANIFEST = "mlx_qwenvl.json"
FORMAT_VERSION = 1  # of the manifest; a higher one is not understood
FILES_PREFIX = "files/"  # of the small files among a single file's tensors

# Files of a variant. No wildcards: what the manifest names is also what is downloaded.
_WEIGHTS = re.compile(r"([\w.+-]+/)*[\w.+-]+\.safetensors")


@dataclass(frozen=True)
class Bundle:
    """An opened model.

    Attributes:
        folder: Where the small files are: configuration, vocabulary, template.
        tensors: The weights, by their names here.
        variant: Which of several quantizations this is, or None where there is but one.
    """

    folder: Path
    tensors: dict[str, StoredTensor]
    variant: str | None


@contextmanager
def open_bundle(path: Path, variant: str | None = None) -> Iterator[Bundle]:
    """Open a model folder, or a single file for as long as the block lasts.

    Args:
        path: The folder or the file.
        variant: Which quantization, where there are several; by default the model's own default.

    Raises:
        CheckpointError: Files are missing or damaged.
        OptionError: There is no such variant.
    """
    if path.is_dir():
        yield _open_folder(path, variant)
        return
    tensors = read_header(path)
    small = {t.key.removeprefix(FILES_PREFIX): t for t in tensors if _is_small_file(t)}
    if MANIFEST not in small:
        raise CheckpointError(f"{path} holds weights alone; expected a model folder")
    for name in small:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise CheckpointError(f"{path} is damaged: it holds a file named {name!r}")
    with TemporaryDirectory(prefix="mlx-qwenvl-") as folder:
        for name, tensor in small.items():
            Path(folder, name).write_bytes(read_bytes(tensor))
        chosen, entry = _choose(path, read_json(Path(folder, MANIFEST)), variant)
        prefixes = _texts(path, chosen, entry, "prefixes")
        weights = [tensor for tensor in tensors if not _is_small_file(tensor)]
        found = by_canonical_name(_selected(weights, prefixes))
        yield Bundle(Path(folder), found, chosen)


def variant_files(folder: Path, variant: str) -> list[str]:
    """Names of the weight files that make one variant of a folder.

    Raises:
        CheckpointError: The manifest is damaged.
        OptionError: There is no such variant.
    """
    if not (folder / MANIFEST).exists():
        raise OptionError(f"{folder} has no variants, so no {variant!r}")
    chosen, entry = _choose(folder, read_json(folder / MANIFEST), variant)
    names = _texts(folder, chosen, entry, "files")
    for name in names:
        if not _WEIGHTS.fullmatch(name) or ".." in PurePosixPath(name).parts:
            raise CheckpointError(
                f"{folder / MANIFEST} names {name!r}, expected a safetensors file in its folder"
            )
    return names


def _open_folder(folder: Path, variant: str | None) -> Bundle:
    if variant is None:
        return Bundle(folder, list_tensors(folder), None)
    files = existing(folder, variant_files(folder, variant))
    tensors = by_canonical_name(tensor for file in files for tensor in read_header(file))
    return Bundle(folder, tensors, variant)


def _choose(
    place: Path, manifest: dict[str, Any], variant: str | None
) -> tuple[str, dict[str, Any]]:
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{place} has format version {version!r}, expected {FORMAT_VERSION}; "
            "a newer mlx-qwenvl may know it"
        )
    variants = manifest.get("variants")
    chosen: Any = manifest.get("default") if variant is None else variant
    if not isinstance(variants, dict) or not variants:
        raise CheckpointError(f"{place} has a manifest without variants")
    if variant is None and not (isinstance(chosen, str) and chosen in variants):
        raise CheckpointError(f"{place} has a manifest whose default is none of its variants")
    entry = variants.get(chosen)
    if entry is None:
        raise OptionError(f"{place} has no variant {chosen!r}; it has {', '.join(variants)}")
    return chosen, entry


def _texts(place: Path, variant: str, entry: object, key: str) -> list[str]:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise CheckpointError(f"{place} has a manifest that lacks {key} of variant {variant!r}")
    return value


def _is_small_file(tensor: StoredTensor) -> bool:
    return tensor.key.startswith(FILES_PREFIX)


def _selected(tensors: list[StoredTensor], prefixes: list[str]) -> Iterator[StoredTensor]:
    """Tensors behind one of the prefixes."""
    for tensor in tensors:
        prefix, slash, _ = tensor.key.rpartition("/")
        if prefix + slash in prefixes:
            yield tensor
