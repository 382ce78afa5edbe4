"""Writing the output: files of weights with their index, the small files, and the manifest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwenvl import __version__
from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.sizes import in_bytes
from mlx_qwenvl.weights.bundle import FORMAT_VERSION, MANIFEST
from mlx_qwenvl.weights.files import INDEX_FILE

from .draft import draft_folder, written_bytes
from .layout import Piece, folder_shards, piece_prefix, single_shard
from .progress import Progress
from .settings import output_settings
from .shard import Shard, write_shard
from .tensors import Job

SINGLE_SUFFIX = ".safetensors"
SMALL_FILES = ("*.json", "*.jinja", "*.txt")  # copied: settings, vocabulary, template
NOT_COPIED = ("config.json", INDEX_FILE, MANIFEST, "report.json")
SPARE_BYTES = 64 * 2**20  # left free on the disk besides what is written


@dataclass(frozen=True)
class Record:
    """What the output says about itself.

    Attributes:
        source: What it was made of.
        revision: Its commit on the Hub, where it is known.
        variants: The `quantization` statement of each variant; the first is the default.
        dtype: Of what stays dense, where it was changed.
        calibrated: What the rounding was learned from, if it was.
    """

    source: str
    revision: str | None
    variants: Mapping[str, Mapping[str, Any] | None]
    dtype: str | None = None
    calibrated: str | None = None

    @property
    def default(self) -> str:
        """Name of the default variant."""
        return next(iter(self.variants))


def check_output(source: Path, output: Path, *, is_file: bool, overwrite: bool) -> None:
    """Refuse an output that cannot be, or that would destroy something.

    Raises:
        QwenVLError: It exists, holds something that is no model, or overlaps with the source.
    """
    source, place = source.resolve(), output.resolve()
    if source == place or source in place.parents:
        raise QwenVLError(f"{output} lies inside the source {source}; choose another output")
    if place in source.parents:
        raise QwenVLError(f"{output} holds the source {source}; choose another output")
    if is_file and output.suffix != SINGLE_SUFFIX:
        raise QwenVLError(f"{output} is to be a single file; expected a name with {SINGLE_SUFFIX}")
    if source == draft_folder(place):
        raise QwenVLError(f"{source} is the draft of {output}; choose another output")
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise QwenVLError(f"{output} exists already; --overwrite replaces it")
    is_model = output.is_file() and output.suffix == SINGLE_SUFFIX
    if (
        not is_model
        and output.exists()
        and not (output / "config.json").exists()
        and any(_entries(output))
    ):
        raise QwenVLError(f"{output} is no model and is not overwritten; choose another output")


def write_output(
    draft: Path,
    output: Path,
    folder: Path,
    pieces: Sequence[Piece],
    record: Record,
    single_file: bool,
    progress: Progress,
) -> Path:
    """Write everything into the draft.

    Args:
        draft: Where to write.
        output: What it will become.
        folder: Where the source's small files are.
        pieces: The tensors.
        record: What the output says about itself.
        single_file: Write one file instead of a folder.
        progress: Who is told how far it is.

    Returns:
        What is to be renamed: the draft, or the file in it.

    Raises:
        QwenVLError: The disk has no room.
    """
    _check_room(output, sum(piece.nbytes for piece in pieces))
    progress.begin("converting", _bytes_to_read(pieces), is_bytes=True)

    def on_job(job: Job) -> None:
        progress.advance(job.read_bytes)

    if single_file:
        prefixes = {
            variant: [piece_prefix(p, pieces) for p in pieces if variant in p.variants]
            for variant in record.variants
        }
        small = _small_files(folder, record)
        small[MANIFEST] = _manifest(record, "prefixes", prefixes)
        shard = single_shard(output.name, pieces, small)
        write_shard(draft, shard, on_job)
        return draft / shard.name
    shards = folder_shards(pieces, record.default)
    digests = {
        shard.name: write_shard(draft, shard, on_job) for same in shards.values() for shard in same
    }
    _write_indices(draft, [shard for same in shards.values() for shard in same], digests)
    files = {
        variant: [s.name for p in pieces if variant in p.variants for s in shards[p.name]]
        for variant in record.variants
    }
    for name, content in _small_files(folder, record).items():
        (draft / name).write_bytes(content)
    (draft / MANIFEST).write_bytes(_manifest(record, "files", files))
    return draft


def _entries(path: Path) -> list[Path]:
    return list(path.iterdir()) if path.is_dir() else [path]


def _check_room(output: Path, nbytes: int) -> None:
    needed = nbytes + SPARE_BYTES - written_bytes(output)
    free = shutil.disk_usage(output.parent).free
    if needed > free:
        raise QwenVLError(
            f"{output} needs {in_bytes(needed)} more, and {output.parent} has {in_bytes(free)} free"
        )


def _bytes_to_read(pieces: Sequence[Piece]) -> int:
    return sum(job.read_bytes for piece in pieces for job in piece.jobs)


def _small_files(folder: Path, record: Record) -> dict[str, bytes]:
    """All files beside the weights but the manifest and the indices, by name."""
    found = {
        file.name: file.read_bytes()
        for pattern in SMALL_FILES
        for file in sorted(folder.glob(pattern))
        if file.is_file() and file.name not in NOT_COPIED
    }
    quantization = record.variants[record.default]
    settings = output_settings(read_json(folder / "config.json"), quantization, record.dtype)
    return found | {"config.json": _to_json(settings)}


def _manifest(record: Record, key: str, places: Mapping[str, Sequence[str]]) -> bytes:
    """What `weights/bundle.py` reads: where each variant is, and where all of it came from."""
    return _to_json(
        {
            "format_version": FORMAT_VERSION,
            "converter": f"mlx-qwenvl {__version__}",
            "source": record.source,
            "revision": record.revision,
            "calibrated": record.calibrated,
            "default": record.default,
            "variants": {
                name: {"quantization": statement, key: list(places[name])}
                for name, statement in record.variants.items()
            },
        }
    )


def _write_indices(draft: Path, shards: Sequence[Shard], digests: Mapping[str, str]) -> None:
    """An index in every folder that has files of weights, with their checksums."""
    folders: dict[Path, list[Shard]] = {}
    for shard in shards:
        folders.setdefault((draft / shard.name).parent, []).append(shard)
    for folder, inside in folders.items():
        names = {shard.name: Path(shard.name).name for shard in inside}
        index = {
            "metadata": {
                "total_size": sum(shard.nbytes for shard in inside),
                "sha256": {names[shard.name]: digests[shard.name] for shard in inside},
            },
            "weight_map": {
                spec.name: names[shard.name]
                for shard in inside
                for job in shard.jobs
                for spec in job.specs
            },
        }
        (folder / INDEX_FILE).write_bytes(_to_json(index))


def _to_json(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
