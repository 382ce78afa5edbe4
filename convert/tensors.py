"""One stored tensor becomes the written ones, a block of rows at a time.

Rows of a matrix are quantized independently of each other, so a block of them gives the same bits
as the whole, and no tensor, however large, is ever in memory at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.weights.files import DTYPES, FLOATS, PACKED, StoredTensor, read_rows
from mlx_qwenvl.weights.quantize import BITS_PER_WORD, dequantized, quantized_tensors
from mlx_qwenvl.weights.recipes import Format

BLOCK_BYTES = 4 * 2**20  # most bytes of stored weights held at once; larger blocks fault more pages

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}
_EXPONENTS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}  # all ones: NaN or infinity


@dataclass(frozen=True)
class Spec:
    """A tensor to be written.

    Attributes:
        name: Its name in the output.
        dtype: Its safetensors dtype.
        shape: Its shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Job(Protocol):
    """What is written of one stored tensor, or of one small file."""

    @property
    def specs(self) -> list[Spec]:
        """The tensors, in the order in which their bytes come."""

    @property
    def read_bytes(self) -> int:
        """Bytes that are read for it."""

    def blocks(self) -> Iterator[memoryview]:
        """The bytes of all of them, one after another."""


@dataclass(frozen=True)
class Rules:
    """What holds for all tensors of a conversion.

    Attributes:
        dtype: Safetensors dtype of floats in the output, or None to keep each tensor's own.
        allow_nonfinite: Go on where weights are NaN or infinite.
    """

    dtype: str | None = None
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class Copy:
    """A tensor that stays dense.

    Attributes:
        name: Its name in the output.
        stored: Where it is.
        rules: See there.
        axes: Order of the axes in the output, or None for the stored one.
    """

    name: str
    stored: StoredTensor
    rules: Rules
    axes: tuple[int, ...] | None = None

    @property
    def specs(self) -> list[Spec]:
        """The tensor itself."""
        shape = self.stored.shape
        if self.axes is not None:
            shape = tuple(shape[axis] for axis in self.axes)
        return [Spec(self.name, self.rules.dtype or self.stored.dtype, shape)]

    @property
    def read_bytes(self) -> int:
        """Bytes that are read for it."""
        return self.stored.nbytes

    def rows(self, begin: int, end: int) -> mx.array:
        """Some rows as they are to be, along the first axis."""
        return _float_rows(self.stored, self.rules, begin, end)

    def blocks(self) -> Iterator[memoryview]:
        """The tensor's bytes."""
        for block in _float_blocks(self.stored, self.rules):
            # The axis of rows stays where it is, so a block can be turned by itself.
            yield _bytes_of(block if self.axes is None else block.transpose(self.axes))


@dataclass(frozen=True)
class Quantize:
    """A matrix that is quantized, by rounding or as it was learned.

    Attributes:
        name: The module's path in the output.
        stored: Its dense weight.
        form: The format to have.
        rules: See `Rules`.
        learned: The packed weight, scales and biases where they were learned, by these names.
    """

    name: str
    stored: StoredTensor
    form: Format
    rules: Rules
    learned: dict[str, StoredTensor] | None = None

    @property
    def specs(self) -> list[Spec]:
        """Packed weight, scales, and for affine formats biases."""
        *rows, inputs = self.stored.shape
        form, groups = self.form, (*rows, inputs // self.form.group_size)
        words = (*rows, inputs * form.bits // BITS_PER_WORD)
        packed = Spec(f"{self.name}.weight", PACKED, words)
        if form.mode != "affine":
            return [packed, Spec(f"{self.name}.scales", "U8", groups)]
        dtype = self.rules.dtype or self.stored.dtype
        return [packed, *(Spec(f"{self.name}.{n}", dtype, groups) for n in _AFFINE[1:])]

    @property
    def read_bytes(self) -> int:
        """Bytes that are read for it."""
        return self.stored.nbytes

    def blocks(self) -> Iterator[memoryview]:
        """The packed weight block by block, then the scales, then the biases."""
        # Scales and biases are some percent of the weights, and wait until their turn.
        waiting: dict[str, list[memoryview]] = {name: [] for name in _AFFINE[1:]}
        begin = 0
        for block in _float_blocks(self.stored, self.rules):
            end = begin + block.shape[0]
            parts = self._parts(block, begin, end)
            mx.eval(parts)
            yield _bytes_of(parts["weight"])
            for name, waits in waiting.items():
                if name in parts:
                    waits.append(_bytes_of(parts[name]))
            begin = end
        for waits in waiting.values():
            yield from waits

    def _parts(self, block: mx.array, begin: int, end: int) -> dict[str, mx.array]:
        if self.learned is not None:
            return {n: read_rows(tensor, begin, end) for n, tensor in self.learned.items()}
        rounded = quantized_tensors("", block, self.form)
        return {name.removeprefix("."): array for name, array in rounded.items()}


@dataclass(frozen=True)
class Dequantize:
    """A quantized matrix that becomes dense again.

    Attributes:
        name: The module's path in the output.
        stored: Its weight, scales and biases, by these names.
        form: The format that they have.
        inputs: Length of its dense rows.
        dtype: Safetensors dtype of the output.
        allow_nonfinite: Go on where weights are NaN or infinite.
    """

    name: str
    stored: dict[str, StoredTensor]
    form: Format
    inputs: int
    dtype: str
    allow_nonfinite: bool = False

    @property
    def specs(self) -> list[Spec]:
        """The dense weight."""
        rows = self.stored["weight"].shape[:-1]
        return [Spec(f"{self.name}.weight", self.dtype, (*rows, self.inputs))]

    @property
    def read_bytes(self) -> int:
        """Bytes that are read for it."""
        return sum(tensor.nbytes for tensor in self.stored.values())

    def rows(self, begin: int, end: int) -> mx.array:
        """Some dense rows, along the first axis."""
        parts = {name: read_rows(t, begin, end) for name, t in self.stored.items()}
        dense = dequantized(parts, self.form).astype(DTYPES[self.dtype])
        if not self.allow_nonfinite and _has_nonfinite(dense, self.dtype):
            raise CheckpointError(
                f"{self.name}.weight holds NaN, infinity, or what {self.dtype} cannot hold; "
                "--allow-nonfinite goes on"
            )
        return dense

    def blocks(self) -> Iterator[memoryview]:
        """The dense weight, block by block."""
        (spec,) = self.specs
        for begin, end in _row_blocks(spec.shape[0], spec.nbytes // spec.shape[0]):
            yield _bytes_of(self.rows(begin, end))


@dataclass(frozen=True)
class Beside:
    """Experts [E, out, in] that become one tensor [E, in, columns], one beside the other.

    Attributes:
        name: The tensor's name in the output.
        parts: What lies side by side.
    """

    name: str
    parts: tuple[Copy | Dequantize, ...]

    @property
    def specs(self) -> list[Spec]:
        """The one tensor."""
        specs = [part.specs[0] for part in self.parts]
        experts, _, inputs = specs[0].shape
        columns = sum(spec.shape[1] for spec in specs)
        return [Spec(self.name, specs[0].dtype, (experts, inputs, columns))]

    @property
    def read_bytes(self) -> int:
        """Bytes that are read for it."""
        return sum(part.read_bytes for part in self.parts)

    def blocks(self) -> Iterator[memoryview]:
        """The tensor, some experts at a time."""
        (spec,) = self.specs
        for begin, end in _row_blocks(spec.shape[0], spec.nbytes // spec.shape[0]):
            rows = mx.concatenate([part.rows(begin, end) for part in self.parts], axis=1)
            yield _bytes_of(rows.swapaxes(1, 2))


@dataclass(frozen=True)
class SmallFile:
    """A file beside the weights, stored as a tensor of bytes.

    Attributes:
        name: Its name in the output.
        content: Its bytes.
    """

    name: str
    content: bytes

    @property
    def specs(self) -> list[Spec]:
        """The bytes."""
        return [Spec(self.name, "U8", (len(self.content),))]

    @property
    def read_bytes(self) -> int:
        """Bytes that are read for it."""
        return len(self.content)

    def blocks(self) -> Iterator[memoryview]:
        """The bytes."""
        yield memoryview(self.content)


_AFFINE = ("weight", "scales", "biases")


def _row_blocks(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    at_once = max(1, BLOCK_BYTES // max(1, row_bytes))
    for begin in range(0, rows, at_once):
        yield begin, min(begin + at_once, rows)


def _float_blocks(stored: StoredTensor, rules: Rules) -> Iterator[mx.array]:
    """A dense tensor's rows in the dtype they are to have, checked."""
    rows = stored.shape[0]
    for begin, end in _row_blocks(rows, stored.nbytes // max(1, rows)):
        yield _float_rows(stored, rules, begin, end)


def _float_rows(stored: StoredTensor, rules: Rules, begin: int, end: int) -> mx.array:
    if stored.dtype not in FLOATS:
        raise CheckpointError(f"{stored.key} has dtype {stored.dtype}, expected floats")
    block = read_rows(stored, begin, end)
    if not rules.allow_nonfinite and _has_nonfinite(block, stored.dtype):
        raise CheckpointError(
            f"{stored.key} in {stored.file} holds NaN or infinity; --allow-nonfinite goes on"
        )
    if rules.dtype not in (None, stored.dtype):
        cast = block.astype(DTYPES[rules.dtype])
        if not rules.allow_nonfinite and _has_nonfinite(cast, rules.dtype):
            raise CheckpointError(
                f"{stored.key} has values up to {mx.abs(block).max().item():.3g}, too large "
                f"for {rules.dtype}; bfloat16 holds them"
            )
        block = cast
    return block


def _has_nonfinite(block: mx.array, dtype: str) -> bool:
    exponents = _EXPONENTS[dtype]
    bits = np.asarray(block.view(mx.uint32 if dtype == "F32" else mx.uint16))
    return bool(((bits & exponents) == exponents).any())


def _bytes_of(array: mx.array) -> memoryview:
    """An array's bytes in row-major order, without a copy where it has that order already."""
    flat = mx.contiguous(array).reshape(-1).view(mx.uint8)
    return np.asarray(flat).data
