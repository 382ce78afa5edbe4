"""Exact match on held-out pictures: `python -m examples.train_demo.evaluate FOLDER`.

Per family: trained phrasings, phrasings never trained, and (for text) fonts never trained; then the
loss under simulated 8-bit and 4-bit weights. An answer counts when every token of it, and the end
token, is the most likely one after the right prefix, which is the same as greedy decoding giving
exactly that answer; the coordinates of boxes are left out (see `evaluate_boxes`). `--generate` asks
transformers itself instead: its processor, its model, its generate().
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from examples.train_demo.boxes import without_numbers
from examples.train_demo.marks import plain
from examples.train_demo.model import DemoModel, make_config
from examples.train_demo.questions import FAMILIES, held_out_samples
from examples.train_demo.rows import RowMaker, collate
from examples.train_demo.scenes import TRAINED_FONTS, UNSEEN_FONTS

GROUP: Final = 64  # weights per scale, as MLX's affine quantization has by default
BATCH: Final = 16  # rows


@dataclass(frozen=True)
class Score:
    """right of total; loss summed over answer tokens; misses are (question, expected answer)."""

    right: int
    total: int
    loss: float
    tokens: int
    misses: tuple[tuple[str, str], ...]


def load(folder: Path, bits: int = 16) -> tuple[DemoModel, RowMaker]:
    """The packed model of a folder; `bits` below 16 simulates affine quantization."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = DemoModel(make_config(tokenizer.get_vocab()), bfloat16=False)
    model.hf = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    if bits < 16:
        with torch.no_grad():
            for parameter in model.hf.parameters():
                if parameter.ndim == 2 and parameter.shape[1] % GROUP == 0:
                    parameter.copy_(rounded(parameter, bits))
    return model.eval(), RowMaker(tokenizer)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Affine quantization and back, in groups of 64 along the input."""
    groups = weight.reshape(-1, GROUP)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low).clamp(min=1e-8) / (2**bits - 1)
    return (((groups - low) / scale).round() * scale + low).reshape(weight.shape)


@torch.no_grad()
def score(
    model: DemoModel,
    maker: RowMaker,
    family: str,
    count: int,
    *,
    new_phrasing: bool = False,
    fonts: Sequence[str] = TRAINED_FONTS,
    seed: int = 0,
) -> Score:
    """Score `count` held-out questions of one family."""
    right = total = tokens = 0
    loss = 0.0
    misses: list[tuple[str, str]] = []
    found = held_out_samples(family, seed, count, new_phrasing=new_phrasing, fonts=fonts)
    for start in range(0, len(found), BATCH):
        batch = collate(
            [maker.row(sample, [question]) for sample, question in found[start : start + BATCH]]
        )
        cells = None
        if batch.pixels is not None:
            cells = model.vision(batch.pixels, batch.patch_positions, batch.groups)[0][batch.order]
        out = model.text(
            batch.ids, batch.positions, batch.masks, cells, batch.cells_at, wanted=batch.wanted
        )
        logits = model.logits(out.hidden)
        hits = (logits.argmax(-1) == batch.targets) | ~batch.in_words
        loss += F.cross_entropy(logits, batch.targets, reduction="sum").item()
        tokens += len(batch.targets)
        at = 0
        for answers in batch.answers:
            for answer in answers:
                good = bool(hits[at : at + answer.tokens].all())
                at += answer.tokens
                right += good
                total += 1
                if not good:
                    misses.append((answer.question, answer.answer))
    return Score(right, total, loss, tokens, tuple(misses))


class Generator:
    """Transformers' own path: PIL image processor, model and greedy generate()."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    @torch.no_grad()
    def ask(self, images: Sequence[Image.Image], question: str, max_new_tokens: int = 120) -> str:
        """The answer to one question about pictures."""
        content: list[dict[str, Any]] = [{"type": "image"} for _ in images]
        content.append({"type": "text", "text": question})
        return self.chat(images, [{"role": "user", "content": content}], max_new_tokens)

    @torch.no_grad()
    def chat(
        self,
        images: Sequence[Image.Image],
        messages: list[dict[str, Any]],
        max_new_tokens: int = 120,
    ) -> str:
        """The reply to a conversation whose image parts stand for `images`, in order."""
        prompt = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        inputs: dict[str, Any] = {}
        if images:
            inputs = dict(self.processor(images=list(images), return_tensors="pt"))
            head, *rest = prompt.split("<|image_pad|>")
            for (t, h, w), tail in zip(inputs["image_grid_thw"].tolist(), rest, strict=True):
                head += "<|image_pad|>" * (t * h * w // 4) + tail
            prompt = head
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            **inputs,
        )
        # The tokens around a box are special ones too: only the end is taken away.
        answer: str = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=False)
        return answer.removesuffix("<|im_end|>")


def generated(folder: Path, count: int, seed: int) -> Iterator[tuple[str, str, str, str]]:
    """(family, question, expected, answer) of `count` questions per family, by transformers.

    Coordinates are left out of both answers; `evaluate_boxes` measures them.
    """
    generator = Generator(folder)
    for family in FAMILIES:
        for i, (sample, question) in enumerate(
            held_out_samples(family, seed, count)
            + held_out_samples(family, seed + 1, count, new_phrasing=True)
        ):
            images = [picture.image for picture in sample.pictures]
            asked = plain(question.question)
            yield (
                family + ("*" if i >= count else ""),
                asked,
                without_numbers(plain(question.answer)),
                without_numbers(generator.ask(images, asked)),
            )


def table(folder: Path, count: int) -> str:
    """A Markdown table of all families, and the loss under fewer bits."""
    model, maker = load(folder)
    lines = ["| family | trained phrasings | new phrasings | unseen fonts |", "|---|---|---|---|"]
    macro: list[list[float]] = [[], []]
    sums = np.zeros(2)
    failures: list[str] = []
    for family in FAMILIES:
        plain_score = score(model, maker, family, count)
        new_score = score(model, maker, family, count, new_phrasing=True, seed=1)
        fonts = (
            score(model, maker, family, count // 2, fonts=UNSEEN_FONTS, seed=2)
            if FAMILIES[family] == "text"
            else None
        )
        for values, s in zip(macro, (plain_score, new_score), strict=True):
            values.append(s.right / s.total)
        sums += plain_score.loss, plain_score.tokens
        shown = f"{fonts.right}/{fonts.total}" if fonts else ""
        lines.append(
            f"| {family} | {plain_score.right}/{plain_score.total} "
            f"| {new_score.right}/{new_score.total} | {shown} |"
        )
        failures += [f"{family}: {q} -> {a}" for q, a in plain_score.misses[:2]]
        print(lines[-1], flush=True)
    lines.append(f"| mean | {np.mean(macro[0]):.3f} | {np.mean(macro[1]):.3f} | |")
    lines.append("")
    lines.append(f"Loss per answer token, bfloat16 weights: {sums[0] / sums[1]:.4f}")
    for bits in (8, 4):
        small, _ = load(folder, bits)
        scores = [score(small, maker, family, max(8, count // 4)) for family in FAMILIES]
        loss = sum(s.loss for s in scores) / sum(s.tokens for s in scores)
        right = np.mean([s.right / s.total for s in scores])
        lines.append(
            f"{bits}-bit weights (groups of 64, simulated; a quarter of the questions): "
            f"{loss:.4f}, mean {right:.3f}"
        )
    return "\n".join([*lines, "", "Some misses (question -> expected):", *failures]) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="examples.train_demo.evaluate", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100, help="questions per family")
    parser.add_argument(
        "--generate", action="store_true", help="ask transformers' generate() instead"
    )
    parser.add_argument("--report", type=Path, help="also write the result to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.generate:
        rows = list(generated(given.folder, given.count, seed=random.Random(7).randrange(2**30)))
        right = sum(expected == answer for _, _, expected, answer in rows)
        wrong = [
            {"family": f, "question": q, "expected": e, "answer": a}
            for f, q, e, a in rows
            if e != a
        ]
        text = json.dumps({"right": right, "total": len(rows), "wrong": wrong}, indent=1)
    else:
        text = table(given.folder, given.count)
    print(text)
    if given.report:
        given.report.write_text(text)


if __name__ == "__main__":
    main()
