"""What a model needs of memory's size and of its speed, computed from shapes.

Size: weights, keys and values of the context, and the larger of two passing amounts, the arrays of
one block of the vision tower and those of one decoder layer in a step of prefill. All arrays of a
block or layer are counted as alive at once, because MLX queues work ahead of the device.

Speed: a step of decoding reads the decoder, the head and all keys and values once, so no chip
answers faster than its bandwidth allows. Real rates lie below, the more so for small models.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwenvl.models.config import Config, TextConfig, VisionConfig
from mlx_qwenvl.models.quantized_cache import PLAIN, KVFormat
from mlx_qwenvl.weights.describe import Description

FLOAT32 = 4  # bytes

# Bandwidth of unified memory in GB/s (10^9 bytes), as Apple states it.
CHIPS = {
    "M1": 68.25,
    "M2": 100.0,
    "M3": 100.0,
    "M4": 120.0,
    "M5": 153.0,
    "M1 Pro": 200.0,
    "M2 Pro": 200.0,
    "M3 Pro": 150.0,
    "M4 Pro": 273.0,
    "M1 Max": 400.0,
    "M2 Max": 400.0,
    "M3 Max (30-core GPU)": 300.0,
    "M3 Max (40-core GPU)": 400.0,
    "M4 Max (32-core GPU)": 410.0,
    "M4 Max (40-core GPU)": 546.0,
    "M1 Ultra": 800.0,
    "M2 Ultra": 800.0,
    "M3 Ultra": 819.0,
}


@dataclass(frozen=True)
class Backend:
    """How a kind of device computes.

    Attributes:
        name: "gpu" or "cpu".
        float_bytes: Bytes of a float in weights, activations, keys and values.
        fuses_attention: Whether attention never holds its scores.
    """

    name: str
    float_bytes: int
    fuses_attention: bool


GPU = Backend("gpu", float_bytes=2, fuses_attention=True)
CPU = Backend("cpu", float_bytes=FLOAT32, fuses_attention=False)


@dataclass(frozen=True)
class Memory:
    """Bytes that an answer needs at its peak.

    Attributes:
        weights: The loaded model.
        kv_cache: Keys and values of the context.
        vision: Arrays of the vision tower while it looks at the picture.
        prefill: Arrays of one step of reading the prompt.
    """

    weights: int
    kv_cache: int
    vision: int
    prefill: int

    @property
    def total(self) -> int:
        """The peak; the tower is done before the prompt is read."""
        return self.weights + self.kv_cache + max(self.vision, self.prefill)


def memory_needed(
    description: Description,
    backend: Backend,
    *,
    context: int,
    patches: int,
    prefill_step: int,
    kv: KVFormat = PLAIN,
) -> Memory:
    """Memory for one answer.

    Args:
        description: The model.
        backend: What computes.
        context: Tokens of prompt and answer.
        patches: Patches of the picture that the tower looks at.
        prefill_step: Tokens of the prompt computed at once.
        kv: How keys and values are kept.
    """
    config = description.config
    step = min(prefill_step, context)
    return Memory(
        weights=description.loaded_bytes(backend.float_bytes),
        kv_cache=context * kv_bytes_per_token(config, backend, kv),
        vision=_vision_bytes(config.vision, patches, backend),
        prefill=_prefill_bytes(config.text, step, context, backend),
    )


def kv_bytes_per_token(config: Config, backend: Backend, kv: KVFormat = PLAIN) -> int:
    """Bytes of one token's keys and values in all layers.

    Args:
        config: The model's shape.
        backend: What computes.
        kv: How they are kept; each group of quantized ones has a scale and a bias.
    """
    text = config.text
    values = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    form = kv.for_heads(text.head_dim)
    if form.bits is None or form.group_size is None:
        return values * backend.float_bytes
    return values * form.bits // 8 + values // form.group_size * 2 * backend.float_bytes


def memory_here() -> int:
    """Bytes that a model may take on this machine: what Metal recommends, else all there is."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended:
        return int(recommended)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def tokens_per_second(
    description: Description, context: int, bandwidth: float, backend: Backend = GPU
) -> float:
    """The rate that memory's bandwidth allows a single answer; computed, never reached.

    Args:
        description: The model.
        context: Tokens whose keys and values each step reads.
        bandwidth: In GB/s.
        backend: What computes.
    """
    read = description.read_bytes_per_token(backend.float_bytes)
    read += context * kv_bytes_per_token(description.config, backend)
    return bandwidth * 1e9 / read


def _vision_bytes(vision: VisionConfig, patches: int, backend: Backend) -> int:
    """Patches in uint8, and one block's arrays or the patch embedding's in float32."""
    width, pixels = vision.embed_dim, vision.in_channels * vision.patch_size**2
    # Input, two norms, q, k, v, attention twice (by head, by patch), two projections, two sums.
    floats = 12 * width + 2 * vision.mlp_dim
    block = floats * backend.float_bytes + 2 * _rotation_bytes(width, backend)
    embedding = FLOAT32 * (pixels + width) + backend.float_bytes * width
    scores = 0 if backend.fuses_attention else vision.num_heads * patches**2 * FLOAT32
    return patches * (pixels + max(block, embedding)) + scores


def _prefill_bytes(text: TextConfig, step: int, context: int, backend: Backend) -> int:
    """One decoder layer's arrays for the tokens of a step."""
    width, kv_width = text.hidden_size, text.num_key_value_heads * text.head_dim
    # As above, with narrower k and v, and gate, up and their product in the MLP.
    floats = 10 * width + 2 * kv_width + 3 * text.intermediate_size
    rotations = _rotation_bytes(width, backend) + _rotation_bytes(kv_width, backend)
    scores = 0 if backend.fuses_attention else text.num_attention_heads * step * context * FLOAT32
    return step * (floats * backend.float_bytes + rotations) + scores


def _rotation_bytes(width: int, backend: Backend) -> int:
    """Turning one row by its position, in float32: four half products, and their join."""
    casts = 0 if backend.float_bytes == FLOAT32 else FLOAT32 + backend.float_bytes
    return width * (2 * FLOAT32 + FLOAT32 + casts)
