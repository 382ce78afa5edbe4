"""The tensors of a model folder, found and checked without reading them.

Every file's header is validated against the file's length before anything is built, so that a
truncated or foreign file is one clear error and not a crash in the middle of a load.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.weights.names import canonical, is_derived

INDEX_FILE = "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")
PACKED = "U32"  # quantized weights


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk.

    Attributes:
        file: The file that holds it.
        key: Its name in that file.
        shape: Its shape.
        dtype: Its safetensors dtype, such as "BF16".
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All weights of a model folder by their names here.

    Raises:
        CheckpointError: No weights, only pickled ones, a missing or broken file, or two tensors of
            one name.
    """
    found: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        for tensor in _header(file):
            name = canonical(tensor.key)
            if is_derived(name):
                continue
            if name in found:
                raise CheckpointError(f"{name} is stored twice: in {found[name].file} and {file}")
            found[name] = tensor
    return found


def open_file(file: Path) -> dict[str, mx.array]:
    """The tensors of a weights file, each read when it is first evaluated."""
    opened = mx.load(str(file))
    assert isinstance(opened, dict), "a safetensors file is a mapping"
    return opened


def _weight_files(folder: Path) -> list[Path]:
    """Files to read: those of the index where there is one, else every safetensors file."""
    if (folder / INDEX_FILE).exists():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder / INDEX_FILE} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{folder / INDEX_FILE} names a file outside its folder")
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {missing[0]}"
                + (f" and {len(missing) - 1} more weight files" if len(missing) > 1 else "")
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return files
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise CheckpointError(
            f"{folder} holds pickled weights only; expected model.safetensors "
            "(pickles can run code and are not opened)"
        )
    raise CheckpointError(f"{folder} holds no weights; expected model*.safetensors")


def _header(file: Path) -> list[StoredTensor]:
    try:
        with safe_open(file, framework="numpy") as opened:
            tensors = []
            for key in opened.keys():  # noqa: SIM118 - safe_open is no mapping
                entry = opened.get_slice(key)
                tensors.append(StoredTensor(file, key, tuple(entry.get_shape()), entry.get_dtype()))
            return tensors
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is damaged or was cut short ({_reason(error)}); "
            f"it has {file.stat().st_size} bytes"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or 'I/O error'}") from None


def _reason(error: SafetensorError) -> str:
    return str(error).removeprefix("Error while deserializing header: ").split("\n")[0]
