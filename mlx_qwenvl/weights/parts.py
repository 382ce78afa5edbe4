"""The part of a checkpoint that one rank reads: other ranks' rows and columns stay on the disk.

Which part of a tensor it is follows from the model itself: wherever its shape differs between the
whole model and a rank's (`Qwen2VL.shard`), the tensor is cut along that axis, and what a rank's
model does not have is left out.

A part of all rows is one piece of the file. A part of all columns is a piece of every row; of what
lies between, the system may read some ahead, but nothing passes into the process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwenvl.errors import CheckpointError, OptionError
from mlx_qwenvl.models.share import Share
from mlx_qwenvl.weights.files import StoredTensor, from_bytes, item_bytes
from mlx_qwenvl.weights.recipes import Format

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Part(StoredTensor):
    """Some of a stored tensor; `shape` and `nbytes` are the part's, `begin` the whole tensor's.

    Attributes:
        whole: The shape of all that is stored.
        axis: Along which that is cut.
        first: Where the part begins there.
        count: How long it is there.
        is_turned: Whether the last two axes are stored the other way round.
    """

    whole: tuple[int, ...] = ()
    axis: int = 0
    first: int = 0
    count: int = 0
    is_turned: bool = False


def cut(
    tensors: Mapping[str, StoredTensor],
    whole: Shapes,
    ours: Shapes,
    formats: Mapping[str, Format],
    share: Share,
) -> dict[str, StoredTensor]:
    """What one rank reads of a checkpoint.

    Args:
        tensors: Everything stored, by name, of the shapes that the model expects.
        whole: Shapes of the whole model's arrays, by name, were it dense.
        ours: The same of this rank's model.
        formats: Formats of what is stored quantized or will be, by path.
        share: The rank's.

    Raises:
        OptionError: Groups of quantized rows would have to be cut in two.
    """
    parts: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        # Scales and packed weights are cut where their dense weight is.
        dense = name if kind == "bias" else f"{path}.weight"
        if dense not in ours:
            continue
        axis = _differs(whole[dense], ours[dense])
        if axis is None:
            parts[name] = tensor
            continue
        if path in formats and axis == len(whole[dense]) - 1:
            _check_groups(path, whole[dense][-1], formats[path], share.size)
        parts[name] = _part(tensor, axis, share)
    return parts


def read_part(part: Part) -> mx.array:
    """A part of a tensor, read from the disk now.

    Raises:
        CheckpointError: The file ends too early, or has a dtype that no checkpoint has.
    """
    inner = math.prod(part.whole[part.axis + 1 :]) * item_bytes(part)
    piece, row = part.count * inner, part.whole[part.axis] * inner
    buffer = bytearray(part.nbytes)
    view = memoryview(buffer)
    begin = part.begin + part.first * inner
    with part.file.open("rb", buffering=0) as opened:
        for index in range(part.nbytes // piece):
            _fill(opened.fileno(), view[index * piece : (index + 1) * piece], begin + index * row)
    shape = (*part.whole[: part.axis], part.count, *part.whole[part.axis + 1 :])
    array = from_bytes(part, buffer, shape)
    return array.swapaxes(-1, -2) if part.is_turned else array


def _fill(descriptor: int, view: memoryview, begin: int) -> None:
    while view:
        count = os.preadv(descriptor, [view], begin)
        if not count:
            raise CheckpointError("a weight file was cut short while it was read")
        view, begin = view[count:], begin + count


def _differs(whole: tuple[int, ...], ours: tuple[int, ...]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip(whole, ours, strict=True)) if a != b), None)


def _check_groups(path: str, inputs: int, form: Format, size: int) -> None:
    groups = inputs // form.group_size
    if groups % size:
        raise OptionError(
            f"{size} ranks cannot share {path} evenly: its rows of {inputs} make {groups} groups "
            f"of {form.group_size}"
        )


def _part(tensor: StoredTensor, axis: int, share: Share) -> Part:
    at, turned = share.part(tensor.shape[axis]), tensor.part
    first, count = at.start, at.stop - at.start
    shape = (*tensor.shape[:axis], count, *tensor.shape[axis + 1 :])
    whole, stored_axis = tensor.shape, axis
    if turned is not None:  # [E, in, columns], of which some columns are a tensor [E, out, in]
        whole, stored_axis = turned.shape, {1: 2, 2: 1}[axis]
        if axis == 1:
            first += turned.begin
    return Part(
        file=tensor.file,
        key=tensor.key,
        shape=shape,
        dtype=tensor.dtype,
        begin=tensor.begin,
        nbytes=tensor.nbytes // share.size,
        whole=whole,
        axis=stored_axis,
        first=first,
        count=count,
        is_turned=turned is not None,
    )
