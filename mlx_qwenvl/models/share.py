"""One process's part of a decoder that several hold together: tensor parallel, after Megatron-LM.

A layer's first projections are cut by rows, so that each rank has whole heads, or the same rows of
gate and up. Its last ones are cut by columns: what a rank computes there is one summand of the
layer's output, and `Share.total` adds them up. So a layer costs two sums, and everything between
them, keys and values included, is a rank's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.models.config import TextConfig


@dataclass(frozen=True)
class Share:
    """Which part of a model is this process's.

    Attributes:
        rank: Its number, from 0.
        size: How many parts there are.
        total: Adds up an array of all ranks; each of them gets the same sum.
    """

    rank: int
    size: int
    total: Callable[[mx.array], mx.array]

    @classmethod
    def of(cls, group: mx.distributed.Group, stream: mx.Stream) -> Share:
        """The part of a process that MLX has connected with others.

        Args:
            group: Those processes.
            stream: Of the CPU, for sums alone, whichever thread begins them.
        """

        def total(array: mx.array) -> mx.array:
            return mx.distributed.all_sum(array, group=group, stream=stream)

        return cls(group.rank(), group.size(), total)

    def of_first(self, array: mx.array) -> mx.array:
        """What rank 0 holds, on all ranks."""
        if self.rank > 0:
            # Behind the array all the same: every rank has to come to its sums in one order.
            array = mx.depends([mx.zeros_like(array)], [array])[0]
        return self.total(array)

    def of_text(self, text: TextConfig) -> TextConfig:
        """The decoder's shape with the middle of its MLPs as wide as a rank's part of it."""
        return replace(text, intermediate_size=text.intermediate_size // self.size)

    def part(self, length: int) -> slice:
        """This rank's part of an axis.

        Raises:
            OptionError: The ranks cannot share it evenly.
        """
        part, left = divmod(length, self.size)
        if left:
            raise OptionError(f"{self.size} ranks cannot share {length} rows or columns evenly")
        return slice(self.rank * part, (self.rank + 1) * part)


def check_share(config: TextConfig, size: int) -> None:
    """Refuse a number of ranks that cannot share a decoder evenly.

    Raises:
        OptionError: Heads would be left over.
    """
    heads = config.num_key_value_heads
    if heads % size:
        fitting = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
        raise OptionError(
            f"{size} ranks cannot share {heads} key-value heads evenly; "
            + (f"this model runs on {fitting}" if fitting else "this model runs on one")
        )


def keep_rows(layer: nn.Module, share: Share) -> None:
    """Leave of a linear layer, quantized or not, or of one for each expert, a rank's outputs."""
    for name in _arrays(layer):
        array = layer[name]
        axis = max(array.ndim - 2, 0)
        layer[name] = array[(slice(None),) * axis + (share.part(array.shape[axis]),)]


def keep_columns(layer: nn.Module, share: Share) -> None:
    """Leave of a linear layer what one rank's inputs add to all outputs.

    A bias is added once: rank 0 keeps it. Groups of quantized rows must not be cut in two, which
    is for the caller to see to (`weights/parts.py`).
    """
    for name in _arrays(layer):
        if layer[name].ndim > 1:
            layer[name] = layer[name][..., share.part(layer[name].shape[-1])]
        elif share.rank > 0:
            layer.pop(name)


def _arrays(layer: nn.Module) -> list[str]:
    return [name for name in layer if isinstance(layer[name], mx.array)]
