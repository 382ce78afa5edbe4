"""Prompts with their answers, made ready for the decoder: token vectors with pictures in them.

The vision tower is in memory only while it encodes, and of the embedding only the rows that occur
are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_qwenvl.engine.prefill import encode_images
from mlx_qwenvl.inputs.messages import user_message
from mlx_qwenvl.inputs.processor import Processor
from mlx_qwenvl.inputs.prompt import ChatTemplate, Prompt, build_prompt
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.kernels.rotate_qkv import Rotation
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import build
from mlx_qwenvl.models.rope import Slot
from mlx_qwenvl.weights import quantize
from mlx_qwenvl.weights.bundle import Bundle
from mlx_qwenvl.weights.files import read_rows
from mlx_qwenvl.weights.load import lazy_model
from mlx_qwenvl.weights.plan import Plan
from mlx_qwenvl.weights.recipes import Format

from ..pictures import Drawn
from .calibration import answers_of

ANSWERS_FILE = "answers.json"
LEARNED_FROM = "learned_from"  # key of a digest in the files that a later run may take
EMBEDDING = "model.embed_tokens"


@dataclass
class Text:
    """One prompt with its answer, on its way through the decoder.

    Attributes:
        rotation: Of its positions.
        full: [1, L, D], its hidden states in the full-precision model.
        ours: [1, L, D], the same in the quantized layers.
        additions: For each picture, the index of its first slot, and what it adds behind the first
            layers, [n, D] each, in the full-precision model and in the quantized one.
    """

    rotation: Rotation
    full: mx.array
    ours: mx.array
    additions: list[tuple[int, list[mx.array], list[mx.array]]]

    def add_behind(self, layer: int) -> None:
        """Add to both what pictures add behind a layer."""
        for start, full, ours in self.additions:
            if layer < len(full):
                slots = slice(start, start + full[layer].shape[0])
                self.full[:, slots] = self.full[:, slots] + full[layer].astype(mx.float32)
                self.ours[:, slots] = self.ours[:, slots] + ours[layer].astype(mx.float32)


def answered(
    bundle: Bundle, config: Config, prompts: Sequence[Drawn], folder: Path, limit: int
) -> list[Prompt]:
    """Prompts with their answers behind them.

    Args:
        bundle: The dense source.
        config: Its shape.
        prompts: What is asked.
        folder: Keeps the answers for a run that is resumed.
        limit: Most tokens of an answer; with 0 nothing is answered.

    Raises:
        MediaError: A picture cannot be read.
    """
    processor = Processor.from_folder(bundle.folder)
    tokenizer = Tokenizer.from_folder(bundle.folder)
    template = ChatTemplate.from_folder(bundle.folder)
    built = [
        build_prompt([user_message(p.question, p.images)], template, tokenizer, processor.open)
        for p in prompts
    ]
    if limit == 0:
        return built
    file, source = folder / ANSWERS_FILE, digest_of(built, [str(limit)])
    kept = read_json(file) if file.exists() else {}
    if kept.get(LEARNED_FROM) != source:
        answers = answers_of(bundle, config, prompts, limit)
        kept = {LEARNED_FROM: source, "answers": answers}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(kept), encoding="utf-8")
        os.replace(partial, file)
    return [
        Prompt(np.concatenate([prompt.token_ids, np.array(answer, dtype=np.int32)]), prompt.slots)
        for prompt, answer in zip(built, kept["answers"], strict=True)
    ]


def embedded(
    bundle: Bundle,
    config: Config,
    plan: Plan,
    sequences: Sequence[Prompt],
    dtype: mx.Dtype | None,
) -> list[Text]:
    """Token vectors of all prompts, of the full-precision model and with the plan's formats.

    Args:
        bundle: The dense source.
        config: Its shape.
        plan: Formats of the embedding and the vision tower.
        sequences: The prompts.
        dtype: Of scales and biases, or None for the embedding's.
    """
    visual = {path: form for path, form in plan.formats.items() if path.startswith("visual.")}
    features = _features(bundle, config, sequences, None)
    our_features = _features(bundle, config, sequences, Plan(visual, {})) if visual else features
    stored = bundle.tensors[f"{EMBEDDING}.weight"]
    token_ids, places = np.unique(
        np.concatenate([prompt.token_ids for prompt in sequences]), return_inverse=True
    )
    # A vocabulary is as large as several layers; only the rows that occur are read.
    rows = mx.concatenate([read_rows(stored, i, i + 1) for i in token_ids.tolist()])
    our_rows = _as_quantized(rows, plan.formats.get(EMBEDDING), dtype or rows.dtype)
    model = build(config)  # for its rules of positions; nothing of it is evaluated
    texts, begin = [], 0
    for prompt in sequences:
        length = prompt.token_ids.size
        taken = mx.array(places[begin : begin + length])
        begin += length
        slots = [Slot(slot.start, slot.image.grid_thw) for slot in prompt.slots]
        positions, _ = model.prompt_positions(length, slots)
        additions = []
        vectors = rows.astype(mx.float32)[taken], our_rows[taken]
        for slot in prompt.slots:
            shares = [model.shares(f[slot.image.digest]) for f in (features, our_features)]
            for side, (share, *_) in zip(vectors, shares, strict=True):
                side[slot.start : slot.start + slot.image.n_tokens] = share.astype(mx.float32)
            additions.append((slot.start, shares[0][1:], shares[1][1:]))
        full, ours = (side[None] for side in vectors)
        texts.append(Text(model.model.rotation(positions), full, ours, additions))
        mx.eval(full, ours)
    return texts


def digest_of(prompts: Iterable[Prompt], more: Iterable[str]) -> str:
    """Tells whether two runs learn from the same."""
    digest = hashlib.sha256("\n".join(more).encode())
    for prompt in prompts:
        digest.update(prompt.token_ids.tobytes())
        for slot in prompt.slots:
            digest.update(slot.image.digest)
    return digest.hexdigest()


def dequantized(path: str, tensors: dict[str, mx.array], form: Format) -> mx.array:
    """A quantized module's weight [R, K] float32, as its tensors will give it."""
    parts = {name.rpartition(".")[2]: tensors[name] for name in names_of(path) if name in tensors}
    if form.mode == "affine":  # others' scales are bytes
        parts |= {name: parts[name].astype(mx.float32) for name in ("scales", "biases")}
    weight = quantize.dequantized(parts, form).astype(mx.float32)
    mx.eval(weight)
    return weight


def names_of(path: str) -> tuple[str, str, str]:
    """Names of the tensors of an affine module."""
    return f"{path}.weight", f"{path}.scales", f"{path}.biases"


def _features(
    bundle: Bundle, config: Config, sequences: Iterable[Prompt], plan: Plan | None
) -> dict[bytes, mx.array]:
    """Features of all pictures by their digests; the tower is in memory for so long only."""
    normalization = Processor.from_folder(bundle.folder).normalization
    model = lazy_model(bundle.tensors, config, normalization, plan=plan)
    return encode_images(model, [slot.image for prompt in sequences for slot in prompt.slots])


def _as_quantized(rows: mx.array, form: Format | None, dtype: mx.Dtype) -> mx.array:
    if form is None:
        return rows.astype(mx.float32)
    return dequantized(
        EMBEDDING, quantize.quantized_tensors(EMBEDDING, rows.astype(dtype), form), form
    )
