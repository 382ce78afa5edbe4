"""What a model needs of memory's size and of its speed, computed from shapes.

Size: weights, keys and values of the context, and the larger of two passing amounts, the arrays of
one block of the vision tower and those of one decoder layer in a step of prefill. All arrays of a
block or layer are counted as alive at once, because MLX queues work ahead of the device.

Speed: a step of decoding reads the decoder, the head and all keys and values once, so no chip
answers faster than its bandwidth allows. Real rates lie below, the more so for small models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import mlx.core as mx

from mlx_qwenvl.models.attention import blocks_for, is_fused
from mlx_qwenvl.models.config import Config, TextConfig, VisionConfig
from mlx_qwenvl.models.quantized_cache import PLAIN, KVFormat
from mlx_qwenvl.models.rows import WHOLE_ROWS
from mlx_qwenvl.weights.describe import Description
from mlx_qwenvl.weights.files import FLOATS, HALVES, StoredTensor
from mlx_qwenvl.weights.load import stays_narrow
from mlx_qwenvl.weights.pad import on_metal, pads_mlp, stored_padding
from mlx_qwenvl.weights.quantize import stored_format
from mlx_qwenvl.weights.recipes import Format

FLOAT32 = 4  # bytes
_DOWN = re.compile(r"model\.layers\.\d+\.mlp\.down_proj\.weight")
BLOCKS_UNDER_WAY = 7  # of attention, whose scores are held at once; measured on the CPU

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
        is_metal: Whether it is an Apple GPU.
    """

    name: str
    float_bytes: int
    fuses_attention: bool
    is_metal: bool = False


GPU = Backend("gpu", float_bytes=2, fuses_attention=True, is_metal=True)
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
    frames: int = 1,
) -> Memory:
    """Memory for one answer.

    Args:
        description: The model.
        backend: What computes.
        context: Tokens of prompt and answer.
        patches: Patches that the tower looks at together.
        prefill_step: Tokens of the prompt computed at once.
        kv: How keys and values are kept.
        frames: Frames whose pixels a patch holds: 1 of a picture, 2 of a video.
    """
    config = description.config
    step, pads = min(prefill_step, context), pads_mlp(backend.is_metal)
    mlp = config.text.mlp_values + (3 * description.mlp_padding if pads else 0)
    return Memory(
        weights=description.loaded_bytes(backend.float_bytes, pads),
        kv_cache=context * kv_bytes_per_token(config, backend, kv),
        vision=_vision_bytes(config.vision, patches, frames, backend, description.has_narrow_tower),
        prefill=_prefill_bytes(config.text, mlp, step, context, backend),
    )


def weight_bytes(
    tensors: dict[str, StoredTensor], text: TextConfig, float_bytes: int, plan: Mapping[str, Format]
) -> int:
    """Bytes of a model once it is loaded.

    Args:
        tensors: Its weights by name, unread.
        text: The decoder's shape.
        float_bytes: Bytes of a float once loaded.
        plan: What is quantized while loading, by path.
    """
    total = Fraction(0)
    grown: Mapping[str, Fraction] = {}
    if pads_mlp(on_metal()):
        ends = (name.removesuffix(".weight") for name in tensors if _DOWN.fullmatch(name))
        width = text.intermediate_size
        found = {path: plan.get(path) or stored_format(path, width, tensors) for path in ends}
        downs = {path: form for path, form in found.items() if form is not None}
        grown = stored_padding(width, downs, tensors)
    for name, tensor in tensors.items():
        form = plan.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if form is not None:
            # Scale and bias of each group; formats other than affine have a byte in their place.
            group = 2 * float_bytes if form.mode == "affine" else 1
            nbytes = tensor.size * form.bits // 8 + tensor.size // form.group_size * group
        else:
            narrow = stays_narrow(name, tensor.shape) and tensor.dtype in HALVES
            cast = tensor.dtype in FLOATS and not narrow
            nbytes = tensor.size * float_bytes if cast else tensor.nbytes
        total += nbytes * (1 + grown.get(name, 0))
    return int(total)


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


def weights_read(description: Description, backend: Backend = GPU) -> int:
    """Bytes of weights that one step of decoding reads."""
    return description.read_bytes_per_token(backend.float_bytes, pads_mlp(backend.is_metal))


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
    read = weights_read(description, backend)
    read += context * kv_bytes_per_token(description.config, backend)
    return bandwidth * 1e9 / read


def _vision_bytes(
    vision: VisionConfig, patches: int, frames: int, backend: Backend, narrow: bool
) -> int:
    """Patches in uint8, one block's arrays or the patch embedding's in float32, and scores.

    Where the tower's matrices are `narrow`, those of one block or the merger's are widened.
    Of many patches only so many rows are alive at once, beside what attention needs of all.
    """
    if patches == 0:
        return 0
    width, pixels = vision.embed_dim, vision.in_channels * vision.patch_size**2
    # Input, two norms, q, k, v, attention twice (by head, by patch), two projections, two sums.
    mlp = vision.mlp_matrices * vision.mlp_dim  # what goes into them, or comes out
    floats = 12 * width + mlp
    block = floats * backend.float_bytes + 2 * _rotation_bytes(width, backend)
    # Of a video each frame's levels and what is subtracted from them, and two products.
    made = pixels + width if frames == 1 else 2 * (frames * pixels + width)
    embedding = FLOAT32 * made + backend.float_bytes * width
    held = min(patches, WHOLE_ROWS) * max(block, embedding)
    if patches > WHOLE_ROWS:
        # Input, norm, q, k, v as they come and joined, output by head and by patch, projection.
        held += patches * 11 * width * backend.float_bytes
    scores = _score_bytes(vision.num_heads, 1, patches, patches, vision.head_dim, backend)
    widened = 0
    if narrow and backend.float_bytes == FLOAT32:
        matrices = 4 * width**2 + width * mlp
        widened = FLOAT32 * max(matrices, (width * vision.spatial_merge_size**2) ** 2)
    return patches * frames * pixels + held + scores + widened


def _prefill_bytes(text: TextConfig, mlp: int, step: int, context: int, backend: Backend) -> int:
    """One decoder layer's arrays for the tokens of a step, whose MLP makes `mlp` of each."""
    q_width, kv_width = (
        heads * text.head_dim for heads in (text.num_attention_heads, text.num_key_value_heads)
    )
    # As above, with narrower k and v, and what the MLP makes.
    floats = 6 * text.hidden_size + 4 * q_width + 2 * kv_width + mlp
    rotations = _rotation_bytes(q_width, backend) + _rotation_bytes(kv_width, backend)
    groups = text.num_key_value_heads
    repeats = text.num_attention_heads // groups
    scores = _score_bytes(groups, repeats, step, context, text.head_dim, backend)
    return step * (floats * backend.float_bytes + rotations) + scores


def _score_bytes(
    groups: int, repeats: int, length: int, total: int, width: int, backend: Backend
) -> int:
    """Scores of attention that are held at once: those of the blocks under way, or all."""
    if is_fused(width, on_gpu=backend.fuses_attention):
        return 0
    block = blocks_for(1, groups, repeats, length, total).nbytes
    return min(BLOCKS_UNDER_WAY * block, groups * repeats * length * total * FLOAT32)


def _rotation_bytes(width: int, backend: Backend) -> int:
    """Turning one row by its position, in float32: four half products, and their join."""
    casts = 0 if backend.float_bytes == FLOAT32 else FLOAT32 + backend.float_bytes
    return width * (2 * FLOAT32 + FLOAT32 + casts)
