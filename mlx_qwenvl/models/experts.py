"""Experts: MLPs of which a router gives each token a few.

All experts' matrices of one kind lie in one array, and one product takes for each row the matrix
that the router chose (`gather_mm`, `gather_qmm`). From some rows on they are sorted by expert
first, so that a matrix is read once for all its rows.

Axes: N tokens, D the decoder's width, E experts, K of them for a token, R = N K rows.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from mlx_qwenvl.models.activations import swiglu
from mlx_qwenvl.models.experts_config import ExpertsTextConfig
from mlx_qwenvl.models.linear import Dense
from mlx_qwenvl.models.share import Share, keep_columns, keep_rows

SORTED_ROWS = 64  # from which sorting costs less than reading matrices again


class Router(Dense):
    """Scores of the experts; it stays dense, because a wrong choice costs more than its bytes."""


class ExpertLinear(nn.Linear):
    """A matrix [out, in] for each of E experts."""

    def __init__(self, experts: int, outputs: int, inputs: int) -> None:
        nn.Module.__init__(self)
        self.weight = mx.zeros((experts, outputs, inputs))

    def __call__(self, x: mx.array, chosen: mx.array, is_sorted: bool = False) -> mx.array:
        """Apply to rows x [..., 1, in] the matrices of the experts `chosen` [...]."""
        return mx.gather_mm(
            x, self["weight"].swapaxes(-1, -2), rhs_indices=chosen, sorted_indices=is_sorted
        )


class QuantizedExpertLinear(nn.Module):
    """The same with packed matrices.

    Args:
        experts: E.
        outputs: Rows of a matrix.
        inputs: Length of a row.
        group_size: Weights that share a scale.
        bits: Bits per weight.
        mode: MLX's name of the number format.
    """

    def __init__(
        self, experts: int, outputs: int, inputs: int, group_size: int, bits: int, mode: str
    ) -> None:
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        empty = mx.zeros((experts, outputs, inputs))
        packed = mx.quantize(empty, group_size=group_size, bits=bits, mode=mode)
        for name, array in zip(("weight", "scales", "biases"), packed, strict=False):
            self[name] = array

    def __call__(self, x: mx.array, chosen: mx.array, is_sorted: bool = False) -> mx.array:
        """Apply to rows x [..., 1, in] the matrices of the experts `chosen` [...]."""
        return mx.gather_qmm(
            x,
            self["weight"],
            self["scales"],
            self.get("biases"),
            rhs_indices=chosen,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            sorted_indices=is_sorted,
        )


class Experts(nn.Module):
    """Gated MLPs, whose gate and up projections may be one product."""

    def __init__(self, config: ExpertsTextConfig) -> None:
        super().__init__()
        experts, inner = config.num_experts, config.moe_intermediate_size
        self.gate_proj = ExpertLinear(experts, inner, config.hidden_size)
        self.up_proj = ExpertLinear(experts, inner, config.hidden_size)
        self.down_proj = ExpertLinear(experts, config.hidden_size, inner)

    def merge_projections(self) -> None:
        """Make one layer `gate_up_proj` of the two, where their formats agree."""
        gate, up = self.gate_proj, self.up_proj
        if _format(gate) != _format(up):
            return
        gate.update({name: mx.concatenate([gate[name], up[name]], axis=1) for name in gate})
        self["gate_up_proj"] = gate
        del self.gate_proj, self.up_proj

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """What each of the experts `chosen` [N, K] makes of x [N, D]: [N, K, D]."""
        count = chosen.shape[-1]
        rows = chosen.reshape(-1)
        is_sorted = rows.size >= SORTED_ROWS
        order = mx.argsort(rows) if is_sorted else mx.arange(rows.size)
        taken = x[order // count][:, None]  # [R, 1, D]
        rows = rows[order]
        if "gate_up_proj" in self:
            gate, up = mx.split(self["gate_up_proj"](taken, rows, is_sorted), 2, axis=-1)
        else:
            gate = self.gate_proj(taken, rows, is_sorted)
            up = self.up_proj(taken, rows, is_sorted)
        made = self.down_proj(swiglu(gate, up), rows, is_sorted)[:, 0]
        if is_sorted:
            made = made[mx.argsort(order)]
        return made.reshape(*chosen.shape, -1)


class SparseMLP(nn.Module):
    """The router and the experts, in the place of a layer's MLP."""

    def __init__(self, config: ExpertsTextConfig) -> None:
        super().__init__()
        self.count = config.num_experts_per_tok
        self.gate = Router(config.hidden_size, config.num_experts, bias=False)
        self.switch_mlp = Experts(config)
        self._share: Share | None = None

    def shard(self, share: Share) -> None:
        """Leave one rank's columns of the middle of each expert."""
        experts = self.switch_mlp
        keep_rows(experts.gate_proj, share)
        keep_rows(experts.up_proj, share)
        keep_columns(experts.down_proj, share)
        self._share = share

    def merge_projections(self) -> None:
        """Merge the projections that read the same input."""
        self.switch_mlp.merge_projections()

    def __call__(self, x: mx.array) -> mx.array:
        """Transform x [..., D]."""
        rows = x.reshape(-1, x.shape[-1])
        # In float32, so that two experts are not alike for their rounding.
        scores = mx.softmax(self.gate(rows).astype(mx.float32), axis=-1)
        chosen = mx.argpartition(-scores, kth=self.count - 1, axis=-1)[:, : self.count]
        if (
            self._share is not None
        ):  # chips round differently, and each rank has a part of an expert
            chosen = self._share.of_first(chosen)
        weights = mx.take_along_axis(scores, chosen, axis=-1)
        weights = (weights / weights.sum(axis=-1, keepdims=True)).astype(x.dtype)
        made = self.switch_mlp(rows, chosen)
        out = (made * weights[..., None]).sum(axis=-2).reshape(x.shape)
        return out if self._share is None else self._share.total(out)


def can_be_quantized(module: nn.Module) -> bool:
    """Whether a module is a matrix, or one for each expert, that recipes speak of."""
    return isinstance(module, (nn.Linear, nn.Embedding)) and not isinstance(module, Router)


def _format(layer: ExpertLinear | QuantizedExpertLinear) -> tuple[object, ...]:
    """What has to be equal in layers that are merged."""
    if isinstance(layer, QuantizedExpertLinear):
        return type(layer), layer.bits, layer.group_size, layer.mode
    return (type(layer),)
