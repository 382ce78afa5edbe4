"""Losses beside the next token: what cells show, what it is called, what a word points at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from examples.train_demo import labels as L
from examples.train_demo.boxes import BINS
from examples.train_demo.model import (
    BOX_CLASSES,
    CELL_CLASSES,
    DIGITS,
    N_EDGE,
    PATCH_CLASSES,
    POINTER_CLASSES,
    TOKEN_CLASSES,
)
from examples.train_demo.scenes import COLORS, SHAPES

TOKEN_COLUMNS: Final = (
    L.SHAPE,
    L.COLOR,
    L.ROW,
    L.COLUMN,
    L.CELL_ROW,
    L.CELL_COLUMN,
    L.CENTRES,
    L.PICTURE,
    L.CHAR_1,
    L.CHAR_INDEX,
)
ONLY_WHERE_SET: Final = (L.ROW, L.COLUMN)
BOX_BLUR: Final = 1.0  # bins: a near miss of an edge is nearly right


def cell_loss(scores: Tensor, order_scores: Tensor, table: Tensor) -> Tensor:
    """Shape, colour, centres, characters and thirds of every cell, read off the merger's output."""
    parts = scores.split(CELL_CLASSES, -1)
    plain = sum(
        (F.cross_entropy(part, table[:, i]) for i, part in enumerate(parts[:6])), scores.sum() * 0
    )
    thirds = _where_set(parts[6], table[:, L.ROW]) + _where_set(parts[7], table[:, L.COLUMN])
    return (plain + 1.5 * thirds) / 3 + 0.5 * _where_set(order_scores, table[:, L.CHAR_INDEX])


def patch_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Character, shape and colour of every labelled patch, read off the tower before the merger."""
    labelled = labels[:, 0] >= 0
    if not labelled.any():
        return scores.sum() * 0
    parts = scores[labelled].split(PATCH_CLASSES, -1)
    return sum(
        (F.cross_entropy(part, labels[labelled, i]) for i, part in enumerate(parts)),
        scores.sum() * 0,
    )


def token_loss(scores: Tensor, table: Tensor) -> Tensor:
    """The same facts, read off the image tokens after two layers of the language model."""
    total = scores.sum() * 0
    for part, column in zip(scores.split(TOKEN_CLASSES, -1), TOKEN_COLUMNS, strict=True):
        target = table[:, column]
        total = total + (
            _where_set(part, target) if column in ONLY_WHERE_SET else F.cross_entropy(part, target)
        )
    return total


def pointer_loss(scores: Tensor, pointed: Tensor) -> Tensor:
    """Shape, colour, row and column of the one thing that a word means, read off that word."""
    parts = scores.split(POINTER_CLASSES, -1)
    return sum((_where_set(part, pointed[:, i]) for i, part in enumerate(parts)), scores.sum() * 0)


def box_loss(scores: Tensor, bins: Tensor) -> Tensor:
    """The four edges of a thing and the digits that write them, where `bins` [K, 4] are above 0."""
    used = bins[:, 0] > 0
    if not used.any():
        return scores.sum() * 0
    parts, target = scores[used].split(BOX_CLASSES, -1), bins[used] - 1
    total = scores.sum() * 0
    for edge in range(4):
        soft = blurred(target[:, edge], BINS)
        tens = soft.view(-1, BINS // DIGITS, DIGITS)
        total = total + F.cross_entropy(parts[edge], soft)
        total = total + 0.5 * F.cross_entropy(parts[4 + 2 * edge], tens.sum(2))
        total = total + 0.5 * F.cross_entropy(parts[5 + 2 * edge], tens.sum(1))
    return total / 4


def edge_loss(scores: Tensor, steps: Tensor) -> Tensor:
    """The four edges of a thing as seen from the centre of a cell of it."""
    used = steps[:, 0] > 0
    if not used.any():
        return scores.sum() * 0
    parts, target = scores[used].split(N_EDGE, -1), steps[used] - 1
    total = scores.sum() * 0
    for edge, part in enumerate(parts):
        total = total + F.cross_entropy(part, blurred(target[:, edge], N_EDGE))
    return total / 4


def blurred(target: Tensor, classes: int) -> Tensor:
    """Bell-shaped distributions [K, classes] around ordered classes [K]."""
    distance = torch.arange(classes) - target[:, None]
    weight = torch.exp(-((distance / BOX_BLUR) ** 2) / 2)
    return weight / weight.sum(1, keepdim=True)


def boxes_of(scores: Tensor) -> Tensor:
    """[K, 4] the most likely edges, in fractions of the picture, of scores as `box_loss` takes."""
    chosen = [part.argmax(-1) for part in scores.split(BOX_CLASSES, -1)[:4]]
    return torch.stack(chosen, 1) / BINS


class Alignment:
    """Cells should point at the word embeddings of what they show.

    Target words of a cell: its shape, colour and thirds ("top", "left", "center"), its characters
    and their colour; of an empty cell, with a quarter of the weight: the background colour.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        def one(word: str) -> int:
            ids: list[int] = tokenizer.encode(word).ids
            if len(ids) != 1:
                raise ValueError(
                    f"the tokenizer splits {word!r} into {len(ids)} tokens; alignment needs one"
                )
            return ids[0]

        def table(words: Sequence[str | None]) -> Tensor:
            return torch.tensor([-1] + [one(word) if word else -1 for word in words])

        colors = table([" " + color for color in COLORS])
        characters = table(list(L.CHARACTERS))
        self.things = (
            (L.SHAPE, table([" " + shape for shape in SHAPES])),
            (L.COLOR, colors),
            (L.ROW, table([" top", None, " bottom"])),
            (L.COLUMN, table([" left", None, " right"])),
            (L.CHAR_1, characters),
            (L.CHAR_2, characters),
            (L.CHAR_3, characters),
            (L.TEXT_COLOR, colors),
        )
        self.colors = colors
        self.center = one(" center")

    def __call__(self, cells: Tensor, embedding: Tensor, table: Tensor) -> Tensor:
        """Cross-entropy of cells [M, C] against the frozen embedding [V, C]."""
        target = torch.zeros(len(table), len(embedding))
        for column, ids in self.things:
            wanted = ids[table[:, column]]
            self._put(target, wanted >= 0, wanted)
        is_thing = table[:, L.SHAPE] > 0
        middle = is_thing & (table[:, L.ROW] == 2) & (table[:, L.COLUMN] == 2)
        target[middle, self.center] += 1
        is_text = table[:, L.CHAR_1] > 0
        empty = ~is_thing & ~is_text & (table[:, L.BACKGROUND] > 0)
        self._put(target, empty, self.colors[table[:, L.BACKGROUND]])
        total = target.sum(-1)
        used = total > 0
        if not used.any():
            return cells.sum() * 0
        logp = F.log_softmax((cells[used] @ embedding.detach().T).float(), -1)
        weight = torch.where((is_thing | is_text)[used], 1.0, 0.25)
        return -((target[used] / total[used, None] * logp).sum(-1) * weight).sum() / weight.sum()

    @staticmethod
    def _put(target: Tensor, where: Tensor, ids: Tensor) -> None:
        rows = where.nonzero()[:, 0]
        target[rows, ids[rows]] += 1


def _where_set(scores: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the entries with a class above 0; 0 when there are none."""
    used = target > 0
    return F.cross_entropy(scores[used], target[used]) if used.any() else scores.sum() * 0
