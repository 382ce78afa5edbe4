"""Keys and values on disk, in blocks of tokens that each name all that came before them.

The key of a block is a hash of the block before it, its tokens and the pictures that begin in it.
So conversations share the files of their common beginning, and the longest beginning that is kept
is found by asking for one block after another, without an index.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from itertools import takewhile

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_qwenvl.engine.conversation import Conversation, Slot, slots_of
from mlx_qwenvl.engine.disk_tier import DiskTier
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models.cache import LayerCache
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.quantized_cache import PLAIN, KVFormat

BLOCK = 64  # tokens; 1.8 MB of keys and values at the 2B in bf16
_KIND = "prefix"


class PrefixDisk:
    """Beginnings of conversations in a disk tier.

    Args:
        model: The model whose keys and values they are.
        disk: Where they are kept.
    """

    def __init__(self, model: Model, disk: DiskTier) -> None:
        self._model = model
        self._disk = disk

    def longest(self, prompt: Prompt, kv: KVFormat) -> int:
        """Tokens of a prompt whose keys and values are kept; its last token is not among them."""
        return self._longest(prompt, kv)[1]

    def load(self, prompt: Prompt, kv: KVFormat) -> Conversation | None:
        """A conversation that holds what is kept of a prompt's beginning, or None for nothing."""
        stored, length = self._longest(prompt, kv)
        blocks = []
        for key in self._keys(prompt, stored, length):
            arrays = self._disk.get(_KIND, key)
            if arrays is None:
                break
            blocks.append(arrays)
        if not blocks or len(blocks) * BLOCK < stored.start:
            return None
        conversation = Conversation(self._model, kv)
        # Keys and values, or for each of them the packed numbers, scales and biases.
        two, three = ("0", "1"), ("0", "1", "2")
        names = two if stored.bits is None else [f"{i}.{part}" for i in two for part in three]
        for index, layer in enumerate(conversation.cache):
            parts = [
                mx.concatenate([b[p][index] for b in blocks], axis=-2) for p in range(len(names))
            ]
            layer.state = tree_unflatten(list(zip(names, parts, strict=True)))
            mx.eval(layer.state)
        conversation.hold(prompt)
        return conversation

    def save(self, conversation: Conversation) -> None:
        """Write the whole blocks of a conversation that are not kept yet."""
        packed = {layer.is_packed for layer in conversation.cache}
        stored = conversation.kv if packed == {True} else PLAIN
        if len(packed) > 1 or conversation.length < stored.start:
            return  # broken off between two layers, or packed and then forgotten to before that
        keys = block_keys(conversation.token_ids, conversation.slots, stored)
        for index, key in enumerate(keys):
            if not self._disk.has(_KIND, key):
                self._disk.put(_KIND, key, _block(conversation.cache, index * BLOCK))

    def _longest(self, prompt: Prompt, kv: KVFormat) -> tuple[KVFormat, int]:
        """Form and tokens of the longest kept beginning that a cache of a format can go on from.

        Before its start that is what is kept of unquantized caches, from there on its own.
        """
        length = self._kept(prompt, kv, prompt.token_ids.size)
        if length and length >= kv.start:
            return kv, length
        return PLAIN, self._kept(prompt, PLAIN, kv.start)

    def _kept(self, prompt: Prompt, stored: KVFormat, most: int) -> int:
        keys = self._keys(prompt, stored, most)
        return BLOCK * sum(1 for _ in takewhile(lambda key: self._disk.has(_KIND, key), keys))

    def _keys(self, prompt: Prompt, stored: KVFormat, most: int) -> Iterator[bytes]:
        """Keys of a prompt's blocks up to `most` tokens, without its last token."""
        return block_keys(prompt.token_ids[:-1][:most], slots_of(prompt), stored)


def block_keys(token_ids: np.ndarray, slots: Sequence[Slot], kv: KVFormat) -> Iterator[bytes]:
    """Keys of the whole blocks of a sequence.

    Args:
        token_ids: [L] int32.
        slots: Its pictures.
        kv: How the keys and values in the blocks are kept.
    """
    form = struct.pack("<4i", BLOCK, kv.bits or 0, kv.group_size or 0, kv.start)
    before = hashlib.sha256(form).digest()
    for begin in range(0, token_ids.size - BLOCK + 1, BLOCK):
        end = begin + BLOCK
        sha = hashlib.sha256(before + token_ids[begin:end].astype("<i4").tobytes())
        for slot in slots:
            if begin <= slot.start < end:
                sha.update(struct.pack("<i", slot.start) + slot.digest)
        before = sha.digest()
        yield before


def _block(cache: Sequence[LayerCache], begin: int) -> list[mx.array]:
    """Arrays [layers, ..., BLOCK, X] of the block that begins at a token."""
    layers = [
        [array[..., begin : begin + BLOCK, :] for _, array in tree_flatten(layer.state)]
        for layer in cache
    ]
    return [mx.stack(list(arrays)) for arrays in zip(*layers, strict=True)]
