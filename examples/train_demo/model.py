"""The tiny Qwen2-VL and a packed forward pass on the weights of the transformers modules.

The packed forward computes what `Qwen2VLForConditionalGeneration` computes (see
`check_forward.py`), with all rows of a batch in one long sequence, so that no position is spent on
padding. It can also return the attention of chosen heads at chosen positions, which the training
supervises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from examples.train_demo.boxes import BINS
from examples.train_demo.labels import CHARACTERS, EDGE_REACH
from examples.train_demo.scenes import COLORS, SHAPES

PIXEL_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD: Final = (0.26862954, 0.26130258, 0.27577711)
VALUES_PER_CHANNEL: Final = 2 * 14 * 14  # frames x patch area

N_SHAPE, N_COLOR, N_CHAR = len(SHAPES) + 1, len(COLORS) + 1, len(CHARACTERS) + 1
# Classes of the auxiliary heads, in the order of the columns of the label tables.
CELL_CLASSES: Final = (N_SHAPE, N_COLOR, 4, N_CHAR, N_CHAR, N_CHAR, 4, 4)
PATCH_CLASSES: Final = (N_CHAR, N_SHAPE, N_COLOR)
TOKEN_CLASSES: Final = (N_SHAPE, N_COLOR, 4, 4, 8, 8, 4, 2, N_CHAR, 7)
POINTER_CLASSES: Final = (N_SHAPE, N_COLOR, 4, 4)
N_EDGE: Final = 2 * EDGE_REACH + 1
DIGITS: Final = 10
# Per edge of a box: its hundredth of the picture, and the two digits of that number.
BOX_CLASSES: Final = (BINS,) * 4 + (DIGITS,) * 8

GUIDED_LAYERS: Final = (2, 3)
GUIDED_HEADS: Final = (
    0,
    3,
)  # one per KV head: 0 counts (centres and sink), 3 looks (all cells of the thing)


def make_config(token_ids: Mapping[str, int], vocab_size: int = 960) -> Qwen2VLConfig:
    """The configuration of the demo model.

    `rope_theta` is 1000, not the 1e6 of the paper's models: with 32 values per head and pictures of
    at most 9 x 9 cells, most bands must still turn within tens of positions. It is not lower
    either, because matching a word with a cell needs bands that hardly turn over the length of a
    question.
    """
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000.0,
            "mrope_section": [2, 4, 10],
        },
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
    }
    vision = {
        "depth": 4,
        "embed_dim": 128,
        "hidden_size": 192,
        "num_heads": 4,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        bos_token_id=token_ids["<|endoftext|>"],
        eos_token_id=token_ids["<|im_end|>"],
        pad_token_id=token_ids["<|endoftext|>"],
        tie_word_embeddings=True,
    )


@dataclass(frozen=True)
class Guide:
    """Where the guided heads of one row should look.

    at: [K] positions in the row; counts: [K, L] target distribution; looks: [K, L] 0/1 mask of
    welcome positions.
    """

    at: Tensor
    counts: Tensor
    looks: Tensor


@dataclass
class TextOutput:
    """What the language model returns.

    hidden: [N or wanted, C] after the last norm; early: [N, C] after layer 1; pointing: [N, C]
    after the guided layers; guidance: sum of the attention losses over `guided` positions;
    looks_mass: the attention that landed right, summed.
    """

    hidden: Tensor
    early: Tensor
    pointing: Tensor
    guidance: Tensor
    guided: int
    looks_mass: float


class DemoModel(nn.Module):
    """`hf` holds the checkpoint's weights; the other heads serve training only."""

    HEADS: Final = ("aux", "iaux", "paux", "taux", "raux", "baux", "rbaux")

    def __init__(self, config: Qwen2VLConfig, *, bfloat16: bool = True) -> None:
        super().__init__()
        self.config = config
        self.bfloat16 = bfloat16
        self.hf = Qwen2VLForConditionalGeneration(config)
        vision, text = config.vision_config, config.text_config
        self.aux = nn.Linear(vision.hidden_size, sum(CELL_CLASSES))
        self.iaux = nn.Linear(vision.hidden_size, 7)
        self.paux = nn.Linear(vision.embed_dim, sum(PATCH_CLASSES))
        self.taux = nn.Linear(text.hidden_size, sum(TOKEN_CLASSES))
        self.raux = nn.Linear(text.hidden_size, sum(POINTER_CLASSES))
        self.baux = nn.Linear(vision.hidden_size, sum(BOX_CLASSES) + 4 * N_EDGE)
        self.rbaux = nn.Linear(text.hidden_size, sum(BOX_CLASSES))
        mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
        head = text.hidden_size // text.num_attention_heads
        rope = text.rope_parameters
        turns = 1.0 / rope["rope_theta"] ** (torch.arange(0, head, 2) / head)
        axis = torch.repeat_interleave(torch.arange(3), torch.tensor(rope["mrope_section"]))
        half = vision.embed_dim // vision.num_heads // 2
        self.register_buffer(
            "pixel_mean", (255 * mean).repeat_interleave(VALUES_PER_CHANNEL), persistent=False
        )
        self.register_buffer(
            "pixel_gain", (1 / (255 * std)).repeat_interleave(VALUES_PER_CHANNEL), persistent=False
        )
        self.register_buffer("turns", turns, persistent=False)
        self.register_buffer("axis", axis, persistent=False)
        self.register_buffer(
            "vision_turns", 10000.0 ** -(torch.arange(0, half, 2) / half), persistent=False
        )

    @property
    def embedding(self) -> Tensor:
        """[V, C] token embedding, which is also the output matrix."""
        weight: Tensor = self.hf.model.language_model.embed_tokens.weight
        return weight

    def vision(
        self, pixels: Tensor, positions: Tensor, groups: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Cells [M, C] and last patch states [N, E] of pictures whose equal sizes lie together.

        Args:
            pixels: [N, 1176] uint8.
            positions: [N, 2] row and column of each patch.
            groups: (pictures, patches per picture), in the order of `pixels`.
        """
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            tower, config = self.hf.model.visual, self.config.vision_config
            heads, width = config.num_heads, config.embed_dim // config.num_heads
            flat = (pixels.float() - self.pixel_mean) * self.pixel_gain
            x = F.linear(flat, tower.patch_embed.proj.weight.view(config.embed_dim, -1)).float()
            angle = (positions[..., None].float() * self.vision_turns).flatten(1)[:, None, :]
            cos, sin = angle.cos(), angle.sin()
            sizes = [pictures * patches for pictures, patches in groups]
            for block in tower.blocks:
                q, k, v = block.attn.qkv(block.norm1(x)).view(-1, 3, heads, width).unbind(1)
                q, k = _rotate(q, cos, sin).to(v.dtype), _rotate(k, cos, sin).to(v.dtype)
                parts = []
                for (count, length), *qkv in zip(
                    groups, q.split(sizes), k.split(sizes), v.split(sizes), strict=True
                ):
                    q_, k_, v_ = (
                        t.reshape(count, length, heads, width).transpose(1, 2) for t in qkv
                    )
                    o = F.scaled_dot_product_attention(q_, k_, v_)
                    parts.append(o.transpose(1, 2).reshape(count * length, heads * width))
                x = x + block.attn.proj(torch.cat(parts))
                x = x + block.mlp(block.norm2(x))
            return tower.merger(x).float(), x

    def text(
        self,
        ids: Tensor,
        positions: Tensor,
        masks: Sequence[Tensor],
        cells: Tensor | None,
        cells_at: Tensor,
        guides: Sequence[Guide | None] | None = None,
        wanted: Sequence[Tensor] | None = None,
    ) -> TextOutput:
        """Run the language model on packed rows.

        Args:
            ids: [N] token ids of all rows, end to end.
            positions: [3, N] M-RoPE positions (time, row, column).
            masks: per row [L, L] float, 0 where a position may look and -inf elsewhere.
            cells: [M, C] vision cells, or None.
            cells_at: [M] positions of the cells in the packed sequence.
            guides: per row, where the guided heads should look.
            wanted: per row, the positions whose last hidden state is wanted; all of them if None.
        """
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            lm, config = self.hf.model.language_model, self.config.text_config
            heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
            width = config.hidden_size // heads
            group = heads // kv_heads
            lengths = [len(mask) for mask in masks]
            starts = [sum(lengths[:i]) for i in range(len(lengths))]
            x = lm.embed_tokens(ids)
            if cells is not None and len(cells):
                x = x.index_copy(0, cells_at, cells)
            angle = (positions.float()[self.axis].T * self.turns)[:, None, :]
            cos, sin = angle.cos(), angle.sin()
            typed = [mask.to(torch.bfloat16) if self.bfloat16 else mask for mask in masks]
            guidance, guided, looks = x.new_zeros(()), 0, 0.0
            early = pointing = x
            turn = cos, sin
            queries = typed  # what the queries of each row may see
            for index, layer in enumerate(lm.layers):
                a = layer.self_attn
                h = _rms(layer.input_layernorm.weight, x, config.rms_norm_eps)
                kv = _project(h, (a.k_proj, a.v_proj)).view(len(ids), 2 * kv_heads, width)
                if wanted is not None and index == len(lm.layers) - 1:
                    # Nothing reads the other positions after this layer.
                    at = torch.cat([row + start for row, start in zip(wanted, starts, strict=True)])
                    x, h, turn = x[at], h[at], (cos[at], sin[at])
                    queries = [mask[row] for mask, row in zip(typed, wanted, strict=True)]
                q = _rotate(_project(h, (a.q_proj,)).view(len(x), heads, width).float(), *turn)
                k, v = _rotate(kv[:, :kv_heads].float(), cos, sin), kv[:, kv_heads:]
                if guides is not None and index in GUIDED_LAYERS:
                    loss, count, mass = _guidance(q, k, masks, guides, group)
                    guidance, guided, looks = guidance + loss, guided + count, looks + mass
                rows = zip(
                    q.to(v.dtype).split([len(m) for m in queries]),
                    k.to(v.dtype).split(lengths),
                    v.split(lengths),
                    queries,
                    strict=True,
                )
                x = x + F.linear(torch.cat([_attend(*row, group) for row in rows]), a.o_proj.weight)
                h = _rms(layer.post_attention_layernorm.weight, x, config.rms_norm_eps)
                gate, up = _project(h, (layer.mlp.gate_proj, layer.mlp.up_proj)).chunk(2, -1)
                x = x + F.linear(F.silu(gate) * up, layer.mlp.down_proj.weight)
                if index == 1:
                    early = x
                if index == max(GUIDED_LAYERS):
                    pointing = x
            hidden = _rms(lm.norm.weight, x, config.rms_norm_eps)
            return TextOutput(hidden, early, pointing, guidance, guided, looks)

    def logits(self, hidden: Tensor) -> Tensor:
        """[K, V] float32 logits of hidden states [K, C]."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return F.linear(hidden, self.embedding).float()


def _guidance(
    q: Tensor, k: Tensor, masks: Sequence[Tensor], guides: Sequence[Guide | None], group: int
) -> tuple[Tensor, int, float]:
    """Cross-entropy of the counting head plus -log(mass on welcome cells) of the looking head."""
    total, count, mass, start = q.new_zeros(()), 0, 0.0, 0
    scale = q.shape[-1] ** -0.5
    for mask, guide in zip(masks, guides, strict=True):
        length = len(mask)
        if guide is not None and len(guide.at):
            rows = slice(start, start + length)
            allowed = mask[guide.at].clamp(min=-1e4)
            counts, looks = (
                F.log_softmax(
                    q[rows][guide.at, head] @ k[rows, head // group].T * scale + allowed, -1
                )
                for head in GUIDED_HEADS
            )
            hit = torch.logsumexp(looks + (guide.looks + 1e-9).log(), -1)
            mass += hit.detach().exp().sum().item()
            total = total - (guide.counts * counts).sum() - hit.sum()
            count += len(guide.at)
        start += length
    return total, count, mass


def _project(x: Tensor, layers: Sequence[nn.Linear]) -> Tensor:
    """Several linear layers of one input as one product."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers]) if layers[0].bias is not None else None
    return F.linear(x, weight, bias)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, group: int) -> Tensor:
    """Grouped-query attention of one row.

    Two plain matrix products: on CPU they are more than twice as fast as the fused kernel at these
    lengths.

    Args:
        q: [Q, H, D].
        k: [L, H / group, D].
        v: [L, H / group, D].
        mask: [Q, L], added to the scores.
        group: query heads per key head.

    Returns:
        [Q, H * D].
    """
    length, heads, width = q.shape
    kv = heads // group
    stacked = (
        q.view(length, kv, group, width).permute(1, 2, 0, 3).reshape(kv, group * length, width)
    )
    scores = ((stacked * width**-0.5) @ k.permute(1, 2, 0)).view(kv, group, length, len(k))
    weights = F.softmax(scores + mask, -1).view(kv, group * length, len(k))
    out = weights.to(v.dtype) @ v.transpose(0, 1)
    return out.view(kv, group, length, width).permute(2, 0, 1, 3).reshape(length, heads * width)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _rms(weight: Tensor, x: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)
