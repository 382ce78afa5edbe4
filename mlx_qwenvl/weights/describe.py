"""What a checkpoint consists of: parameters, bytes and formats of its parts, told from headers.

Parameters are the weights that a module stands for, however they are packed: a row of 192 words of
32 bits is 1,536 weights at 4 bits. Scales and biases of groups are bytes and no parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from mlx_qwenvl.models.config import Config, VisionConfig
from mlx_qwenvl.models.families import build
from mlx_qwenvl.weights.files import FLOATS, HALVES, StoredTensor
from mlx_qwenvl.weights.load import check_tensors, stays_narrow, stored_formats
from mlx_qwenvl.weights.pad import stored_padding
from mlx_qwenvl.weights.plan import PATCH_EMBED
from mlx_qwenvl.weights.quantize import BITS_PER_WORD
from mlx_qwenvl.weights.recipes import Format

# The first prefix that fits says which part a tensor belongs to.
_PREFIXES = {
    "visual.merger.": "merger",
    "visual.deepstack_merger_list.": "merger",
    "visual.": "vision tower",
    "model.embed_tokens.": "embeddings",
    "model.": "decoder",  # the layers and the last norm
    "lm_head.": "head",
}
_EXPERTS = ".switch_mlp."  # in the names of the decoder's experts, which are a part of their own
PARTS = ("vision tower", "merger", "embeddings", "decoder", "experts", "head")
FLOAT_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Part:
    """One part of a model.

    Attributes:
        name: One of `PARTS`.
        parameters: Weights, as many as the dense module has.
        stored_bytes: Bytes of its tensors in the files.
        formats: Matrices by how they are stored, such as {"4bit (groups of 64)": 196}.
        dense: Matrices that are not quantized in a part that has quantized ones, by name.
        cast_values: Floats that take the dtype of the device when loaded; scales are among them.
        kept_bytes: Bytes in memory of everything else: packed weights, byte scales, the tower's
            matrices of 16 bits, and the patch embedding, folded to one frame of float32.
        padded_values: Floats that padding the MLPs adds (`weights/pad.py`).
        padded_bytes: Bytes of everything else that it adds.
    """

    name: str
    parameters: int
    stored_bytes: int
    formats: Mapping[str, int]
    dense: tuple[str, ...]
    cast_values: int
    kept_bytes: int
    padded_values: int
    padded_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each parameter, scales, biases and norms included."""
        return 8 * self.stored_bytes / self.parameters

    def loaded_bytes(self, float_bytes: int, pads: bool = False) -> int:
        """Bytes in memory where floats have so many bytes and MLPs are padded or not."""
        padding = self.padded_bytes + self.padded_values * float_bytes if pads else 0
        return self.kept_bytes + self.cast_values * float_bytes + padding


@dataclass(frozen=True)
class Description:
    """A whole checkpoint.

    Attributes:
        config: Its shape.
        parts: Its parts, in the order of `PARTS`; a tied head is none.
        mlp_padding: Most columns by which an MLP is widened where that is done.
        has_narrow_tower: Whether matrices of the vision tower have 16 bits.
    """

    config: Config
    parts: tuple[Part, ...]
    mlp_padding: int = 0
    has_narrow_tower: bool = False

    @property
    def parameters(self) -> int:
        """Weights of all parts."""
        return sum(part.parameters for part in self.parts)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all tensors in the files."""
        return sum(part.stored_bytes for part in self.parts)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each parameter."""
        return 8 * self.stored_bytes / self.parameters

    def loaded_bytes(self, float_bytes: int, pads: bool = False) -> int:
        """Bytes in memory where floats have so many bytes and MLPs are padded or not."""
        return sum(part.loaded_bytes(float_bytes, pads) for part in self.parts)

    def read_bytes_per_token(self, float_bytes: int, pads: bool = False) -> int:
        """Weights that one step of decoding reads: the decoder and the head, in bytes.

        Of the embedding it reads one row, unless that is the head; of experts those of one token.
        """
        head = "embeddings" if self.config.text.tie_word_embeddings else "head"
        share = {"decoder": Fraction(1), "experts": self.config.text.active_experts}
        share[head] = Fraction(1)
        read = (part for part in self.parts if part.name in share)
        return int(sum(share[p.name] * p.loaded_bytes(float_bytes, pads) for p in read))


def describe(config: Config, tensors: dict[str, StoredTensor]) -> Description:
    """Sort a checkpoint's tensors into parts and count them.

    Args:
        config: The shape that they must have.
        tensors: The weights, by their names here; their bytes are not read.

    Raises:
        CheckpointError: Weights are missing, superfluous or of another shape.
    """
    stored = check_tensors(tensors, config)
    formats = stored_formats(build(config), stored)
    by_part: dict[str, dict[str, StoredTensor]] = {name: {} for name in PARTS}
    for name, tensor in stored.items():
        by_part[_part_of(name)][name] = tensor
    grown = stored_padding(config.text.intermediate_size, formats, by_part["decoder"])
    parts = (
        _part(name, held, formats, config.vision, grown) for name, held in by_part.items() if held
    )
    padding = max(grown.values(), default=0) * config.text.intermediate_size
    narrow = any(stays_narrow(n, t.shape) and t.dtype in HALVES for n, t in stored.items())
    return Description(config, tuple(parts), int(padding), narrow)


def format_name(form: Format) -> str:
    """A format as people are told it."""
    label = f"{form.bits}bit" if form.mode == "affine" else form.mode
    return f"{label} (groups of {form.group_size})"


def _part_of(name: str) -> str:
    if _EXPERTS in name:
        return "experts"
    return next(part for prefix, part in _PREFIXES.items() if name.startswith(prefix))


def _part(
    part: str,
    tensors: Mapping[str, StoredTensor],
    formats: Mapping[str, Format],
    vision: VisionConfig,
    grown: Mapping[str, Fraction],
) -> Part:
    parameters = cast_values = kept_bytes = padded_values = padded_bytes = 0
    counted: Counter[str] = Counter()
    dense = []
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        form = formats.get(path)
        if form is None or kind == "bias":
            parameters += tensor.size
        elif kind == "weight":
            parameters += tensor.size * BITS_PER_WORD // form.bits
            counted[format_name(form)] += 1
        if form is None and len(tensor.shape) > 1:
            counted[FLOAT_NAMES.get(tensor.dtype, tensor.dtype)] += 1
            dense.append(name)
        if path == PATCH_EMBED:
            kept_bytes += _folded_bytes(vision) if kind == "weight" else 0
        elif stays_narrow(name, tensor.shape) and tensor.dtype in HALVES:
            kept_bytes += tensor.nbytes
        elif tensor.dtype in FLOATS:
            cast_values += tensor.size
            padded_values += int(tensor.size * grown.get(name, 0))
        else:
            kept_bytes += tensor.nbytes
            padded_bytes += int(tensor.nbytes * grown.get(name, 0))
    return Part(
        name=part,
        parameters=parameters,
        stored_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        formats=dict(counted.most_common()),
        dense=tuple(dense) if len(dense) < counted.total() else (),
        cast_values=cast_values,
        kept_bytes=kept_bytes,
        padded_values=padded_values,
        padded_bytes=padded_bytes,
    )


def _folded_bytes(vision: VisionConfig) -> int:
    """Bytes of the loaded patch embedding: every frame's columns and a bias in float32."""
    pixels = vision.in_channels * vision.patch_size**2
    return 4 * vision.embed_dim * (vision.temporal_patch_size * pixels + 1)
