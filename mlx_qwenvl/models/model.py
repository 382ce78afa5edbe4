"""A model of the family: pictures' features take the place of the slots among the token vectors.

Module names are the checkpoint's (`visual`, `model`, `lm_head`), so weights need no translation.
What a member does otherwise is a class of its own; `families.py` lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_qwenvl.grounding.frame import Unit
from mlx_qwenvl.inputs.frames import VideoBudget
from mlx_qwenvl.kernels.ops import TWINS, Ops
from mlx_qwenvl.models.cache import KVCache, LayerCache, Positions
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.linear import Dense
from mlx_qwenvl.models.quantized_cache import PLAIN, KVFormat, QuantizedKVCache
from mlx_qwenvl.models.rope import Slot, prompt_positions
from mlx_qwenvl.models.share import Share, check_share
from mlx_qwenvl.models.text import DecoderLayer, TextModel
from mlx_qwenvl.models.vision import VisionTransformer


class Model(nn.Module):
    """The whole model; it holds weights and no state of any request.

    Args:
        config: Its shape.
        ops: The fused steps: Metal kernels or their twins.

    Attributes:
        config_type: What its `config.json` is read into, and what tells it from other members.
        tower_type: Its vision tower.
        decoder_type: Its decoder.
        points_in: What it counts in where it points at pictures.
        video_budget: How it takes frames of a video, and how large they are.
        counts_seconds: Whether it places the frames of a video by seconds.
        tells_times: Whether its prompts say when each temporal patch of a video is seen.
    """

    config_type: ClassVar[type[Config]] = Config
    tower_type: ClassVar[type[VisionTransformer]] = VisionTransformer
    decoder_type: ClassVar[type[TextModel]] = TextModel
    points_in: ClassVar[Unit] = "thousandths"
    video_budget: ClassVar[type[VideoBudget]] = VideoBudget
    counts_seconds: ClassVar[bool] = False
    tells_times: ClassVar[bool] = False

    def __init__(self, config: Config, ops: Ops = TWINS) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.share: Share | None = None
        self.visual = self.tower_type(config.vision, ops)
        self.model = self.decoder_type(config.text, ops)
        if not config.text.tie_word_embeddings:
            self.lm_head = Dense(config.text.hidden_size, config.text.vocab_size, bias=False)

    @property
    def layers(self) -> list[DecoderLayer]:
        """The decoder's layers, as mlx-lm's tools expect them."""
        return self.model.layers

    def make_cache(self, kv: KVFormat = PLAIN) -> list[LayerCache]:
        """Empty caches for one conversation, one a layer, with one `Positions` between them.

        Args:
            kv: How keys and values are kept.

        Raises:
            OptionError: The model's heads cannot be kept so.
        """
        positions, form = Positions(), kv.for_heads(self.config.text.head_dim)
        if form.bits is None:
            return [KVCache(positions) for _ in self.layers]
        return [QuantizedKVCache(positions, form) for _ in self.layers]

    def shard(self, share: Share) -> None:
        """Leave one rank's part of the decoder's layers; call it before `merge_projections`.

        The vision tower, the embedding and the head stay whole, so every rank may look, embed and
        draw. A drawn token is rank 0's on all of them (`engine/sampling.py`).

        Raises:
            OptionError: So many ranks cannot share this model evenly.
        """
        check_share(self.config.text, share.size)
        for layer in self.layers:
            layer.shard(share)
        self.share = share
        self.ops = replace(self.ops, of_first=share.of_first)

    def merge_projections(self) -> None:
        """Merge the projections that read the same input; call it once, after loading."""
        for layer in self.layers:
            layer.merge_projections()

    def prompt_positions(self, length: int, slots: Sequence[Slot]) -> tuple[np.ndarray, int]:
        """M-RoPE positions [3, L] int32 of a prompt, and its `rope_delta`.

        Args:
            length: Tokens in the prompt, L.
            slots: Its pictures and videos, or videos' temporal patches, in order.
        """
        places = [(slot.start, slot.grid) for slot in slots]
        steps = [self.time_step(slot) for slot in slots]
        return prompt_positions(length, places, self.config.vision.spatial_merge_size, steps)

    def time_step(self, slot: Slot) -> float:
        """Positions between two temporal patches of a video."""
        return 1.0

    def embed(self, token_ids: mx.array, features: Sequence[tuple[int, mx.array]] = ()) -> mx.array:
        """Token vectors with pictures' features in their slots.

        Args:
            token_ids: [L] integers.
            features: For each picture, the index of its first slot and its features [n, F].

        Returns:
            [1, L, D].
        """
        embeddings = self._token_vectors(token_ids)
        for start, feature in features:
            share = self.shares(feature)[0]
            embeddings[start : start + share.shape[0]] = share.astype(embeddings.dtype)
        return embeddings[None]

    def shares(self, feature: mx.array) -> list[mx.array]:
        """What features [n, F] give to the embedding, and to the layers from the first on."""
        return [feature]

    def read(
        self,
        embeddings: mx.array,
        cache: Sequence[LayerCache],
        features: Sequence[tuple[int, mx.array]] = (),
    ) -> mx.array:
        """Hidden states [1, L, D] of some tokens of a prompt.

        Args:
            embeddings: [1, L, D], as `embed` has made them.
            cache: One entry a layer.
            features: For each picture among these tokens, the index of its first slot and the
                features [n, F] of the slots that are there.
        """
        shares = [(start, self.shares(feature)[1:]) for start, feature in features]
        additions = [(start, later) for start, later in shares if later]
        if not additions:
            return self.model(embeddings, cache)
        return self.model(embeddings, cache, additions)

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits [..., V] of hidden states [..., D]."""
        if self.config.text.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(hidden)
        return self.lm_head(hidden)

    def __call__(
        self,
        inputs: mx.array,
        cache: Sequence[LayerCache] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Logits [B, L, V] of token ids [B, L], or of embeddings [B, L, D] in their place."""
        if input_embeddings is None:
            input_embeddings = self._token_vectors(inputs)
        return self.logits(self.model(input_embeddings, cache))

    def _token_vectors(self, token_ids: mx.array) -> mx.array:
        """Rows of the embedding in the model's dtype, which those of mxfp4 and its like lack."""
        return self.model.embed_tokens(token_ids).astype(self.model.norm.weight.dtype)
