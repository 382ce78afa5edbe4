"""Checksums: whether the weight files are still what the converter wrote.

A folder's indices (`model.safetensors.index.json` at the top and in `variants/*/`) hold the SHA-256
of each of their files. A single file's header holds that of everything behind the header.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.weights.files import INDEX_FILE, LENGTH_BYTES, read_header, read_metadata

BLOCK_BYTES = 4 * 1024**2  # read and hashed at once
INDEX_KEY = "sha256"  # in an index's metadata: {file: hex digest}
HEADER_KEY = "data_sha256"  # in a single file's header: hex digest of the bytes behind it


@dataclass(frozen=True)
class Checked:
    """A weight file that was held against its checksum.

    Attributes:
        file: The file.
        nbytes: Bytes that were read.
        expected: The SHA-256 that was written, in hex.
        found: The SHA-256 that it has, or None where there is no such file.
    """

    file: Path
    nbytes: int
    expected: str
    found: str | None

    @property
    def is_sound(self) -> bool:
        """Whether it is there and unchanged."""
        return self.found == self.expected


def verify(path: Path, progress: Callable[[int, int], None] | None = None) -> list[Checked]:
    """Read every weight file of a model, all variants included, and compare checksums.

    Args:
        path: A folder or a single file; symbolic links are followed.
        progress: Called with bytes read and bytes in all, after every block.

    Returns:
        One entry a file, damaged and missing ones included.

    Raises:
        CheckpointError: There are no checksums, or an index is damaged.
    """
    expected = _folder_digests(path) if path.is_dir() else _file_digest(path)
    begins = {file: 0 if path.is_dir() else _header_end(file) for file in expected}
    total = sum(f.stat().st_size - begin for f, begin in begins.items() if f.exists())
    checked, done = [], 0
    for file, digest in expected.items():
        if not file.exists():
            checked.append(Checked(file, 0, digest, None))
            continue
        before = done
        sha = hashlib.sha256()
        with file.open("rb") as opened:
            opened.seek(begins[file])
            while block := opened.read(BLOCK_BYTES):
                sha.update(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
        checked.append(Checked(file, done - before, digest, sha.hexdigest()))
    return checked


def _folder_digests(folder: Path) -> dict[Path, str]:
    digests: dict[Path, str] = {}
    for place in (folder, *sorted(folder.glob("variants/*/"))):
        index = place / INDEX_FILE
        if index.exists():
            digests |= _index_digests(folder, index)
        elif any(place.glob("model*.safetensors")):
            raise _unwritten(place)
    if not digests:
        raise _unwritten(folder)
    return digests


def _unwritten(place: Path) -> CheckpointError:
    return CheckpointError(f"{place} has no checksums; only mlx-qwenvl's converter writes them")


def _index_digests(folder: Path, index: Path) -> dict[Path, str]:
    content = read_json(index)
    metadata, weight_map = content.get("metadata"), content.get("weight_map")
    digests = metadata.get(INDEX_KEY) if isinstance(metadata, dict) else None
    if digests is None:
        raise _unwritten(index)
    if not isinstance(digests, dict) or not all(isinstance(d, str) for d in digests.values()):
        raise CheckpointError(f"{index} is damaged: its checksums are not one text a file")
    mapped = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
    if unchecked := sorted(mapped - digests.keys()):
        raise CheckpointError(f"{index} has no checksum of {unchecked[0]}")
    # Compared as they are written: in the Hub's cache every file is a link to somewhere else.
    files = {name: Path(os.path.normpath(index.parent / name)) for name in digests}
    top = Path(os.path.normpath(folder))
    if any(not file.is_relative_to(top) for file in files.values()):
        raise CheckpointError(f"{index} names a file outside its model's folder")
    return {file: digests[name] for name, file in files.items()}


def _file_digest(file: Path) -> dict[Path, str]:
    read_header(file)
    digest = read_metadata(file).get(HEADER_KEY)
    if digest is None:
        raise _unwritten(file)
    return {file: digest}


def _header_end(file: Path) -> int:
    with file.open("rb") as opened:
        return LENGTH_BYTES + int.from_bytes(opened.read(LENGTH_BYTES), "little")
