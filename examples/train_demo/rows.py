"""From samples to packed rows: one shared picture prefix, then branches of question and answer.

Branches of a row see the prefix and themselves only, and their positions restart at the end of the
prefix, so a row equals that many separate single-turn conversations at a third of the cost. Some
rows are real conversations
instead: each turn sees the earlier ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.train_demo import labels
from examples.train_demo.asking import Question
from examples.train_demo.boxes import BOX_END, BOX_START, bins
from examples.train_demo.labels import CellLabels
from examples.train_demo.marks import GLYPHS, MARK, plain
from examples.train_demo.model import Guide
from examples.train_demo.questions import Sample, make_sample
from examples.train_demo.scenes import COLORS, SHAPES, Picture, fitted

SYSTEM: Final = "You are a helpful assistant."
KINDS: Final = {"shapes": 0.58, "text": 0.17, "pair": 0.19, "talk": 0.06}
# How often a question is kept; the others always are.
KEEP: Final = {
    "background": 0.2,
    "color": 0.7,
    "color_it": 0.3,
    "shape_it": 0.3,
    "where_it": 0.3,
    "caption": 0.8,
    "count_all": 0.7,
    "shape": 0.4,
    "where": 0.8,
    "box": 0.8,
    "box_all": 0.6,
    "box_of_none": 1.0,
    "at": 0.8,
    "exist": 0.5,
    "caption_text": 0.6,
    "describe_text": 0.7,
    "text_color": 0.5,
    "count_images": 0.3,
    "ith": 0.7,
}
COLOR_NAMES: Final = tuple(COLORS)
# "Yes" and "No" come first in an answer and are the hardest token of it.
VERDICT_WEIGHT: Final = 3.0
# Half of what stands in a box is brackets and commas, which cost nothing.
DIGIT_WEIGHT: Final = 2.0
POINTED: Final = 8  # columns of Row.pointed


@dataclass(frozen=True)
class Media:
    """One picture for the vision tower: pixels [patches, 1176] uint8, patch grid, cell labels."""

    pixels: np.ndarray
    grid: tuple[int, int]
    labels: CellLabels


@dataclass(frozen=True)
class Answer:
    """One answer of a row: its family, its number of target tokens and the plain sentences."""

    family: str
    tokens: int
    question: str
    answer: str


@dataclass(frozen=True)
class Row:
    """Token ids [L], positions [3, L], branch per token [L] (0: prefix), targets and marks."""

    ids: list[int]
    positions: np.ndarray
    branch: list[int]
    predict_at: list[int]
    targets: list[int]
    weights: list[float]
    in_words: list[bool]
    answers: list[Answer]
    media: list[Media]
    cells_at: list[int]
    guide: Guide | None
    pointed: (
        np.ndarray
    )  # [K, 8] shape, colour, row, column, edges of a lone thing meant at guide.at, else 0


@dataclass(frozen=True)
class Batch:
    """Packed rows. `order` brings cells from size groups (vision) into row order (text)."""

    ids: Tensor
    positions: Tensor
    masks: list[Tensor]
    wanted: list[Tensor]  # per row: the positions that predict an answer token
    targets: Tensor
    weights: Tensor  # [T] of the targets in the loss
    in_words: Tensor  # [T] bool: the target is no part of a written box
    answers: list[list[Answer]]
    pixels: Tensor | None
    patch_positions: Tensor
    groups: list[tuple[int, int]]
    order: Tensor
    cells_at: Tensor
    cell_labels: Tensor  # [M, N_COLUMNS] in the order of the vision tower
    guides: list[Guide | None]
    pointed: Tensor


class RowMaker:
    """Builds rows and batches with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}
        self.im_end = self.encode("<|im_end|>")
        self.head = self.encode(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
        self.turn = self.encode("<|im_end|>\n<|im_start|>assistant\n")
        self.next_user = self.encode("\n<|im_start|>user\n")
        self.vision_start = self.encode("<|vision_start|>")
        self.vision_end = self.encode("<|vision_end|>")
        self.image_pad = self.encode("<|image_pad|>")[0]
        self.box_start = self.encode(BOX_START)[0]
        self.box_end = self.encode(BOX_END)[0]
        self.digits = frozenset(self.encode(str(digit))[0] for digit in range(10))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, remembered."""
        found = self._cache.get(text)
        if found is None:
            found = self._cache[text] = self.tokenizer.encode(text).ids
        return found

    def encode_marked(
        self, marked: str
    ) -> tuple[list[int], list[tuple[int, int, str, tuple[int, ...]]]]:
        """Token ids and marks (first token, last token, kind, ids) of a marked sentence."""
        spans, clean, position = [], "", 0
        for match in MARK.finditer(marked):
            clean += marked[position : match.start()]
            ids = tuple(int(i) for i in match[2].split(",") if i)
            spans.append((len(clean), len(clean) + len(match[3]), match[1], ids))
            clean += match[3]
            position = match.end()
        clean += marked[position:]
        if not spans:
            return self.encode(clean), []
        encoding = self.tokenizer.encode(clean)
        marks = []
        for start, end, kind, ids in spans:
            tokens = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > start]
            tokens = tokens or [i for i, (_, b) in enumerate(encoding.offsets) if b == start]
            marks.append((tokens[0], tokens[-1], kind, ids))
        return encoding.ids, marks

    def _in_words(self, target: Sequence[int]) -> list[bool]:
        inside, out = False, []
        for token in target:
            inside = inside and token != self.box_end
            out.append(not inside)
            inside = inside or token == self.box_start
        return out

    def media(self, pictures: Sequence[Picture]) -> list[Media]:
        """Resize, cut and label the pictures of a row."""
        out = []
        for number, picture in enumerate(pictures):
            pixels = fitted(picture.image)
            flat, grid = labels.patchify(pixels)
            out.append(
                Media(
                    flat,
                    grid,
                    labels.label_cells(picture, pixels.shape[0], pixels.shape[1], number),
                )
            )
        return out

    def row(self, sample: Sample, questions: Sequence[Question], *, chat: bool = False) -> Row:
        """Lay out one row; `chat` makes the questions turns of one conversation."""
        media = self.media(sample.pictures)
        ids = list(self.head)
        positions = [np.tile(np.arange(len(ids)), (3, 1))]
        current = len(ids)
        cells_at: list[int] = []
        first_cell: list[int] = []
        for item in media:
            height, width = item.grid[0] // 2, item.grid[1] // 2
            first_cell.append(len(ids) + 1)
            cells_at += range(len(ids) + 1, len(ids) + 1 + height * width)
            ids += self.vision_start + [self.image_pad] * (height * width) + self.vision_end
            grid = np.indices((1, height, width)).reshape(3, -1) + current + 1
            last = current + 1 + max(height, width)
            positions += [np.full((3, 1), current), grid, np.full((3, 1), last)]
            current = last + 1
        branch = [0] * len(ids)
        base, sink = current, (first_cell[0] - 1 if media else 0)
        predict_at: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        in_words: list[bool] = []
        answers: list[Answer] = []
        wanted: dict[int, tuple[int, ...]] = {}  # position to things that it means
        twins: dict[int, int] = {}  # position of a word to that of the word it agrees with
        for number, question in enumerate(questions):
            asked, asked_marks = self.encode_marked(question.question)
            said, said_marks = self.encode_marked(question.answer)
            opening = self.next_user if chat and number else []
            before = len(ids) + len(opening)
            anchor = sink
            for _, last, kind, things in asked_marks:
                if kind == "@":
                    anchor = before + last
                else:
                    wanted[before + last] = things
            start = before + len(asked) + len(self.turn)
            for first, last, kind, things in said_marks:
                if kind == "@":
                    anchor = start + last
                elif kind in ("=", "!"):
                    twins[start + last] = anchor if kind == "=" else sink
                else:
                    produced = range(start + first - 1, start + last)
                    for at in produced if kind == ">" else (start + last,):
                        wanted[at] = things
            target = said + self.im_end
            piece = opening + asked + self.turn + target
            predict_at += range(start - 1, start - 1 + len(target))
            targets += target
            verdict = plain(question.answer).startswith(("Yes,", "No,"))
            words = self._in_words(target)
            in_words += words
            weights += [VERDICT_WEIGHT if verdict else 1.0]
            weights += [
                DIGIT_WEIGHT if token in self.digits and not word else 1.0
                for token, word in zip(target[1:], words[1:], strict=True)
            ]
            answers.append(
                Answer(
                    question.family, len(target), plain(question.question), plain(question.answer)
                )
            )
            current = current if chat else base
            positions.append(np.tile(np.arange(current, current + len(piece)), (3, 1)))
            ids += piece
            branch += [0 if chat else number + 1] * len(piece)
            current += len(piece)
        guide, pointed = _guide(wanted, twins, media, sample.pictures, first_cell, sink, len(ids))
        return Row(
            ids,
            np.concatenate(positions, 1),
            branch,
            predict_at,
            targets,
            weights,
            in_words,
            answers,
            media,
            cells_at,
            guide,
            pointed,
        )

    def training_row(
        self, rng: random.Random, *, easy: float = 0.0, kinds: dict[str, float] = KINDS
    ) -> Row:
        """A random row: a few questions about one sample, 13 % of them as a conversation."""
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        sample = make_sample(rng, kind, easy=rng.random() < easy)
        questions = [q for q in sample.questions if rng.random() < _keep(q.family)] or list(
            sample.questions[:2]
        )
        rng.shuffle(questions)
        if kind != "talk" and len(questions) > 1 and rng.random() < 0.13:
            return self.row(sample, questions[:4], chat=True)
        return self.row(sample, questions[:9])


def collate(rows: Sequence[Row]) -> Batch:
    """Pack rows end to end and group their pictures by size for the vision tower."""
    masks, guides, offset = [], [], 0
    cells_at: list[int] = []
    for row in rows:
        length = len(row.ids)
        branch = torch.tensor(row.branch)
        seen = ((branch[None] == 0) | (branch[None] == branch[:, None])).tril()
        masks.append(torch.zeros(length, length).masked_fill_(~seen, float("-inf")))
        guides.append(row.guide)
        cells_at += [offset + i for i in row.cells_at]
        offset += length
    media = [item for row in rows for item in row.media]
    starts = np.cumsum([0] + [item.grid[0] * item.grid[1] // 4 for item in media])
    by_size = sorted(range(len(media)), key=lambda i: media[i].grid)
    groups: list[tuple[int, int]] = []
    for i in by_size:
        patches = media[i].grid[0] * media[i].grid[1]
        if groups and groups[-1][1] == patches:
            groups[-1] = (groups[-1][0] + 1, patches)
        else:
            groups.append((1, patches))
    order = np.concatenate(
        [np.arange(starts[i], starts[i + 1]) for i in by_size] or [np.zeros(0, np.int64)]
    )
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    empty = np.zeros((0, labels.N_COLUMNS), np.int64)
    return Batch(
        ids=torch.tensor([i for row in rows for i in row.ids]),
        positions=torch.from_numpy(np.concatenate([row.positions for row in rows], 1)),
        masks=masks,
        wanted=[torch.tensor(row.predict_at) for row in rows],
        targets=torch.tensor([t for row in rows for t in row.targets]),
        weights=torch.tensor([w for row in rows for w in row.weights]),
        in_words=torch.tensor([w for row in rows for w in row.in_words], dtype=torch.bool),
        answers=[row.answers for row in rows],
        pixels=torch.from_numpy(np.concatenate([media[i].pixels for i in by_size]))
        if media
        else None,
        patch_positions=torch.from_numpy(
            np.concatenate(
                [labels.patch_positions(*media[i].grid) for i in by_size] or [np.zeros((0, 2))]
            )
        ),
        groups=groups,
        order=torch.from_numpy(inverse),
        cells_at=torch.tensor(cells_at, dtype=torch.long),
        cell_labels=torch.from_numpy(
            np.concatenate([media[i].labels.table for i in by_size] or [empty])
        ),
        guides=guides,
        pointed=torch.from_numpy(np.concatenate([row.pointed for row in rows])),
    )


def _guide(
    wanted: dict[int, tuple[int, ...]],
    twins: dict[int, int],
    media: Sequence[Media],
    pictures: Sequence[Picture],
    first_cell: Sequence[int],
    sink: int,
    length: int,
) -> tuple[Guide | None, np.ndarray]:
    if not media or not wanted:
        return None, np.zeros((0, POINTED), np.int64)
    wanted = wanted | dict.fromkeys(twins, ())
    at = sorted(wanted)
    counts, looks = np.zeros((len(at), length), np.float32), np.zeros((len(at), length), np.float32)
    pointed = np.zeros((len(at), POINTED), np.int64)
    for k, position in enumerate(at):
        if position in twins:
            counts[k, twins[position]] = looks[k, twins[position]] = 1.0
            continue
        things = wanted[position]
        counts[k, sink] = 1.0
        for thing in things:
            number, index = (0, thing - GLYPHS) if thing >= GLYPHS else divmod(thing, 10)
            item = media[number].labels
            counts[k, first_cell[number] + item.centre_of[index]] += 1.0
            for cell in item.cells_of[index]:
                looks[k, first_cell[number] + cell] = 1.0
        if not things:
            looks[k, sink] = 1.0
        if len(things) == 1 and things[0] < GLYPHS:
            number, index = divmod(things[0], 10)
            t = pictures[number].things[index]
            pointed[k] = (
                SHAPES.index(t.shape) + 1,
                COLOR_NAMES.index(t.color) + 1,
                t.row + 1,
                t.column + 1,
                *(edge + 1 for edge in bins(pictures[number].box(index))),
            )
    if len(pictures) == 2 and all(len(picture.things) == 1 for picture in pictures):
        more = _comparison(pictures, media, first_cell, sink, length)
        at += more[0]
        counts, looks = np.concatenate([counts, more[1]]), np.concatenate([looks, more[2]])
        pointed = np.concatenate([pointed, np.zeros((len(more[0]), POINTED), np.int64)])
    counts /= counts.sum(1, keepdims=True)
    return Guide(torch.tensor(at), torch.from_numpy(counts), torch.from_numpy(looks)), pointed


def _comparison(
    pictures: Sequence[Picture],
    media: Sequence[Media],
    first_cell: Sequence[int],
    sink: int,
    length: int,
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Guides at the cells of the second of two lone things.

    The counting head looks back at the first thing if the colours agree, the looking head if the
    shapes agree; otherwise they look at the sink.
    """
    (a,), (b,) = pictures[0].things, pictures[1].things
    first, second = media[0].labels, media[1].labels
    at = [first_cell[1] + cell for cell in second.cells_of[0]]
    counts = np.zeros((len(at), length), np.float32)
    looks = np.zeros((len(at), length), np.float32)
    counts[:, first_cell[0] + first.centre_of[0] if a.color == b.color else sink] = 1.0
    seen = [first_cell[0] + cell for cell in first.cells_of[0]] if a.shape == b.shape else [sink]
    looks[:, seen] = 1.0
    return at, counts, looks


def _keep(family: str) -> float:
    for name in (family, family.rsplit("_", 1)[0]):
        if name in KEEP:
            return KEEP[name]
    return 1.0
