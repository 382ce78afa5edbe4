"""The tensors of safetensors files, found and checked without reading them.

Every file's header is validated against the file's length before anything is built, so that a
truncated or foreign file is one clear error and not a crash in the middle of a load.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.weights.names import canonical, halves, is_derived, is_turned

INDEX_FILE = "model.safetensors.index.json"
HALVES = ("F16", "BF16")
FLOATS = ("F32", *HALVES)
PACKED = "U32"  # quantized weights
LENGTH_BYTES = 8  # at the beginning of a file, little-endian: the length of its header

DTYPES = {
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "U8": mx.uint8,
}
_NUMPY_DTYPES = {2: np.uint16, 4: np.uint32, 1: np.uint8}  # by bytes of one item


@dataclass(frozen=True)
class TurnedPart:
    """Columns of a stored tensor [E, in, columns], which are a tensor [E, out, in].

    Attributes:
        shape: The stored shape.
        begin: The first column.
        end: The column behind the last.
    """

    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk.

    Attributes:
        file: The file that holds it.
        key: Its name in that file.
        shape: Its shape.
        dtype: Its safetensors dtype, such as "BF16".
        begin: Where its bytes begin in the file.
        nbytes: How many they are.
        part: Which part of the stored bytes it is, or None for all as they are.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    begin: int
    nbytes: int
    part: TurnedPart | None = None

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    def of(self, stored: mx.array) -> mx.array:
        """The tensor, or rows of it, given the stored rows that it is part of."""
        if self.part is None:
            return stored
        return stored[..., self.part.begin : self.part.end].swapaxes(-1, -2)


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All weights of a model folder by their names here.

    Raises:
        CheckpointError: No weights, only pickled ones, a missing or broken file, or two tensors of
            one name.
    """
    return by_canonical_name(t for file in weight_files(folder) for t in read_header(file))


def by_canonical_name(tensors: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors by their names here, whatever dialect and prefix they are stored under.

    Raises:
        CheckpointError: Two of them have one name.
    """
    found: dict[str, StoredTensor] = {}
    for stored in tensors:
        stored_name = canonical(stored.key.rpartition("/")[2])
        if is_derived(stored_name):
            continue
        for name, tensor in _parts(stored_name, stored):
            if name in found:
                first, second = found[name].file, tensor.file
                raise CheckpointError(f"{name} is stored twice: in {first} and {second}")
            found[name] = tensor
    return found


def _parts(name: str, stored: StoredTensor) -> list[tuple[str, StoredTensor]]:
    """What a stored tensor is here, by its names."""
    names, shape = halves(name), stored.shape
    if not is_turned(name) or len(shape) != 3 or shape[2] % len(names):
        return [(name, stored)]
    experts, inputs, columns = shape
    rows = columns // len(names)
    return [
        (
            own,
            replace(
                stored,
                shape=(experts, rows, inputs),
                nbytes=stored.nbytes // len(names),
                part=TurnedPart(shape, index * rows, (index + 1) * rows),
            ),
        )
        for index, own in enumerate(names)
    ]


def open_file(file: Path) -> dict[str, mx.array]:
    """The tensors of a weights file, each read when it is first evaluated."""
    opened = mx.load(str(file), format="safetensors")
    assert isinstance(opened, dict), "a safetensors file is a mapping"
    return opened


def read_rows(tensor: StoredTensor, begin: int, end: int) -> mx.array:
    """Some rows of a tensor, read from the disk now.

    Unlike an array of `open_file`, which is always read whole, this holds only what was asked for.

    Args:
        tensor: Its dtype is one of `DTYPES`.
        begin: First row, along the first axis.
        end: The row after the last.

    Raises:
        CheckpointError: The file ends too early, or has a dtype that no checkpoint has.
    """
    shape = tensor.shape if tensor.part is None else tensor.part.shape
    row_bytes = math.prod(shape[1:]) * item_bytes(tensor)
    raw = _read(tensor.file, tensor.begin + begin * row_bytes, (end - begin) * row_bytes)
    return tensor.of(from_bytes(tensor, raw, (end - begin, *shape[1:])))


def item_bytes(tensor: StoredTensor) -> int:
    """Bytes of one number of a tensor.

    Raises:
        CheckpointError: It has a dtype that no checkpoint has.
    """
    if tensor.dtype not in DTYPES:
        raise CheckpointError(f"{tensor.key} has dtype {tensor.dtype}, expected floats")
    return DTYPES[tensor.dtype].size


def from_bytes(tensor: StoredTensor, raw: bytes | bytearray, shape: tuple[int, ...]) -> mx.array:
    """An array of a tensor's dtype, of bytes as they are stored."""
    items = np.frombuffer(raw, dtype=_NUMPY_DTYPES[item_bytes(tensor)])
    return mx.array(items.reshape(shape)).view(DTYPES[tensor.dtype])


def read_bytes(tensor: StoredTensor) -> bytes:
    """A tensor's bytes as they are stored.

    Raises:
        CheckpointError: The file ends too early.
    """
    return bytes(_read(tensor.file, tensor.begin, tensor.nbytes))


def _read(file: Path, begin: int, nbytes: int) -> bytearray:
    buffer = bytearray(nbytes)
    with file.open("rb", buffering=0) as opened:
        opened.seek(begin)
        got = 0
        while got < nbytes:
            count = opened.readinto(memoryview(buffer)[got:])
            if not count:
                raise CheckpointError(f"{file} was cut short while it was read")
            got += count
    return buffer


def weight_files(folder: Path) -> list[Path]:
    """Files to read: those of the index where there is one, else every safetensors file.

    Raises:
        CheckpointError: There are none, or some are missing.
    """
    if (folder / INDEX_FILE).exists():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder / INDEX_FILE} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{folder / INDEX_FILE} names a file outside its folder")
        return existing(folder, names)
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return files
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise CheckpointError(
            f"{folder} holds pickled weights only; expected model.safetensors "
            "(pickles can run code and are not opened)"
        )
    raise CheckpointError(f"{folder} holds no weights; expected model*.safetensors")


def existing(folder: Path, names: Iterable[str]) -> list[Path]:
    """Paths of files that must be there.

    Raises:
        CheckpointError: Some are not.
    """
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more weight files" if len(missing) > 1 else "")
        )
    return files


def read_header(file: Path) -> list[StoredTensor]:
    """What a safetensors file holds, in the order of its bytes.

    Raises:
        CheckpointError: The file cannot be read, is damaged or was cut short.
    """
    try:
        with safe_open(file, framework="numpy"):  # checks every offset against the file's length
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
            entries = json.loads(opened.read(length))
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is damaged or was cut short ({_reason(error)}); "
            f"it has {file.stat().st_size} bytes"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or 'I/O error'}") from None
    tensors = []
    for key, entry in entries.items():
        if key != "__metadata__":
            begin, end = (LENGTH_BYTES + length + offset for offset in entry["data_offsets"])
            shape = tuple(entry["shape"])
            tensors.append(StoredTensor(file, key, shape, entry["dtype"], begin, end - begin))
    return sorted(tensors, key=lambda tensor: tensor.begin)


def read_metadata(file: Path) -> dict[str, str]:
    """The free texts in a checked safetensors file's header."""
    with safe_open(file, framework="numpy") as opened:
        return dict(opened.metadata() or {})


def _reason(error: SafetensorError) -> str:
    return str(error).removeprefix("Error while deserializing header: ").split("\n")[0]
