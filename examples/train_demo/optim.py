"""Muon for the matrices of the layers, AdamW for everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Muon:
    """Momentum whose update is orthogonalised by five Newton-Schulz steps.

    Matrices of one shape are stacked and shared out over the processes. The update has the root
    mean square that AdamW's would have: 0.2 * sqrt(longer side) for an orthogonal matrix.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], rank: int, world: int, momentum: float = 0.95
    ) -> None:
        self.parameters = list(parameters)
        self.world = world
        self.momentum = momentum
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for parameter in self.parameters:
            by_shape[tuple(parameter.shape)].append(parameter)
        mine = [group[rank::world] for group in by_shape.values()]
        self.groups = [group for group in mine if group]
        self.memory = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    @torch.no_grad()
    def step(self, lr: float, weight_decay: float) -> None:
        """Update all parameters from their gradients."""
        update: dict[int, Tensor] = {}
        for group, memory in zip(self.groups, self.memory, strict=True):
            gradient = torch.stack([_gradient(p) for p in group])
            memory.mul_(self.momentum).add_(gradient)
            direction = orthogonal(gradient.add(memory, alpha=self.momentum))
            scale = 0.2 * max(direction.shape[1:]) ** 0.5
            for parameter, d in zip(group, direction, strict=True):
                update[id(parameter)] = d * scale
        pieces = [
            update[id(p)].flatten() if id(p) in update else torch.zeros(p.numel())
            for p in self.parameters
        ]
        flat = torch.cat(pieces)
        if self.world > 1:
            dist.all_reduce(flat)
        pieces = list(flat.split([p.numel() for p in self.parameters]))
        for parameter, d in zip(self.parameters, pieces, strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(d.view_as(parameter), alpha=-lr)


def orthogonal(x: Tensor) -> Tensor:
    """The nearest orthogonal matrices of a stack [n, rows, columns], to five steps' accuracy."""
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.transpose(1, 2) if tall else x


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
