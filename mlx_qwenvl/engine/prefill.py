"""From a prompt to the logits of its first answer token.

Only what the conversation does not hold yet is computed, in steps that bound memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.feature_store import FeatureStore
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.prompt import ImageSlot, Prompt
from mlx_qwenvl.models.qwen2_vl import Qwen2VL
from mlx_qwenvl.models.rope import prompt_positions

VISION_BATCH = 4096  # patches of small pictures encoded at once: fewer than one of a megapixel has


@dataclass(frozen=True)
class Prefilled:
    """What prefill leaves behind.

    Attributes:
        logits: [1, L', V]: of the last token, or of every computed one where asked for.
        cached_tokens: Prompt tokens that were in the conversation already.
        vision_s: Seconds in the vision tower.
    """

    logits: mx.array
    cached_tokens: int
    vision_s: float


def prefill(
    model: Qwen2VL,
    conversation: Conversation,
    prompt: Prompt,
    *,
    step: int,
    store: FeatureStore | None = None,
    on_prefill: Callable[[int, int], None] | None = None,
    all_logits: bool = False,
) -> Prefilled:
    """Compute a prompt.

    Args:
        model: The model.
        conversation: Holds the conversation so far, and the whole prompt afterwards.
        prompt: The whole conversation.
        step: Tokens computed at once.
        store: Features of pictures seen before, which receives the new ones; None where all are
            to be computed.
        on_prefill: Called with tokens done and tokens in all, after every step.
        all_logits: Give the logits of every computed token instead of the last one's.
    """
    total = prompt.token_ids.size
    cached = conversation.begin(prompt)
    merge = model.config.vision.spatial_merge_size
    positions, rope_delta = prompt_positions(
        total, [(slot.start, slot.image.grid_thw) for slot in prompt.slots], merge
    )
    conversation.positions.expect(positions, rope_delta, start=0)

    clock = time.perf_counter()
    waiting = [slot for slot in prompt.slots if _end(slot) > cached]
    features = _features(model, store or FeatureStore(0), waiting, cached)
    vision_s = time.perf_counter() - clock
    embeddings = model.embed(mx.array(prompt.token_ids[cached:]), features)

    outputs: list[mx.array] = []
    under_way: Any = []
    for begin in range(cached, total, step):
        end = min(begin + step, total)
        hidden = model.model(embeddings[:, begin - cached : end - cached], conversation.cache)
        if all_logits:
            outputs.append(model.logits(hidden))
        if end < total:
            # The device goes on with this step while the host waits for the one before.
            mx.eval(under_way)
            under_way = [layer.state for layer in conversation.cache], outputs[-1:]
            mx.async_eval(under_way)
            mx.clear_cache()
        if on_prefill is not None:
            on_prefill(end, total)
    logits = mx.concatenate(outputs, axis=1) if all_logits else model.logits(hidden[:, -1:])
    return Prefilled(logits, cached, vision_s)


def encode_images(model: Qwen2VL, images: Sequence[ImagePatches]) -> dict[bytes, mx.array]:
    """Features [n, D] of pictures by their digests; each picture is encoded once.

    Small pictures of one size go through the tower together, as many as `VISION_BATCH` allows, and
    others one by one, so that memory does not grow with their number. While one batch is computed
    the next is made ready; more than that is not begun.
    """
    distinct = {image.digest: image for image in images}
    features: dict[bytes, mx.array] = {}
    under_way: list[mx.array] = []
    by_grid = sorted(distinct.values(), key=lambda image: image.grid_thw)
    for grid, same in groupby(by_grid, key=lambda image: image.grid_thw):
        waiting = list(same)
        at_once = max(1, VISION_BATCH // waiting[0].patches.shape[0])
        for begin in range(0, len(waiting), at_once):
            batch = waiting[begin : begin + at_once]
            patches = mx.array(np.stack([image.patches for image in batch]))
            encoded = model.visual(patches, grid)
            # Copied out of the batch, so that one that is kept does not keep the others.
            rows = [mx.contiguous(encoded[row]) for row in range(len(batch))]
            mx.eval(under_way)
            mx.async_eval(rows)
            under_way = rows
            features |= {image.digest: row for image, row in zip(batch, rows, strict=True)}
    mx.eval(under_way)
    return features


def _features(
    model: Qwen2VL, store: FeatureStore, slots: Sequence[ImageSlot], cached: int
) -> list[tuple[int, mx.array]]:
    """Features for the slots behind the cached tokens, placed relative to the first of these."""
    known = {slot.image.digest: store.get(slot.image.digest) for slot in slots}
    encoded = {digest: features for digest, features in known.items() if features is not None}
    new = encode_images(model, [s.image for s in slots if s.image.digest not in encoded])
    for digest, features in new.items():
        store.put(digest, features)
    encoded |= new
    placed = []
    for slot in slots:
        hidden = max(0, cached - slot.start)  # slots of this picture that are cached
        placed.append((slot.start + hidden - cached, encoded[slot.image.digest][hidden:]))
    return placed


def _end(slot: ImageSlot) -> int:
    return slot.start + slot.image.n_tokens
