"""Learns the rounding of the decoder, layer by layer, from prompts with pictures.

Pictures go through the vision tower first, so that a layer is fitted to what it really reads. Two
streams run through the decoder side by side: what the full-precision model computes, and what the
layers quantized so far make of it. The projections of a layer are quantized in the order of the
computation, each watched on the inputs that those before it give now (see `gptq.py`).

At any time the vision tower, or one decoder layer in two forms, is in memory in full precision,
with one projection's statistics and both streams [tokens, D]. A finished layer is a file; files of
an earlier run that learned from the same are taken as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.inputs.processor import Processor
from mlx_qwenvl.kernels.ops import TWINS
from mlx_qwenvl.kernels.rotate_qkv import Rotation
from mlx_qwenvl.models.cache import KVCache
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.text import DecoderLayer
from mlx_qwenvl.weights.bundle import Bundle
from mlx_qwenvl.weights.files import DTYPES, open_file, read_metadata
from mlx_qwenvl.weights.load import lazy_model
from mlx_qwenvl.weights.plan import Plan
from mlx_qwenvl.weights.quantize import quantized_tensors
from mlx_qwenvl.weights.recipes import Format

from ..pictures import Drawn
from .gptq import Inputs, pack, quantize_matrix
from .texts import LEARNED_FROM, Text, answered, dequantized, digest_of, embedded, names_of

ANSWER_TOKENS = 32  # of the answer to each prompt that are learned from as well
PARTIAL = ".partial.safetensors"  # ends the name of a file that is being written

# The decoder layer's blocks with their projections, in the order of the computation; those in one
# line read the same input.
STAGES = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)


def learn(
    bundle: Bundle,
    config: Config,
    plan: Plan,
    prompts: Sequence[Drawn],
    folder: Path,
    *,
    dtype: mx.Dtype | None = None,
    answer_tokens: int = ANSWER_TOKENS,
    on_layer: Callable[[int, int], None] | None = None,
) -> None:
    """Write `layer-000.safetensors` and so on, with every affine module of a layer quantized.

    Args:
        bundle: The dense source.
        config: Its shape.
        plan: What becomes of every module. Those of other formats are rounded to the nearest
            here as everywhere, and not written.
        prompts: What to learn from.
        folder: Where the files go; it may hold those of an earlier run.
        dtype: Of scales and biases; by default what each weight is stored in.
        answer_tokens: Most tokens of an answer that are learned from; with 0 nothing is answered.
        on_layer: Called with layers done and layers in all.

    Raises:
        CheckpointError: The source is quantized, or computes numbers that are not finite.
        MediaError: A picture cannot be read.
    """
    if any(name.endswith(".scales") for name in bundle.tensors):
        raise CheckpointError("the model is quantized already; learning needs a dense one")
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"*{PARTIAL}"):
        left.unlink()
    sequences = answered(bundle, config, prompts, folder, answer_tokens)
    source = digest_of(
        sequences, [str(dtype), *(f"{p} {f}" for p, f in sorted(plan.formats.items()))]
    )
    texts = embedded(bundle, config, plan, sequences, dtype)
    normalization = Processor.from_folder(bundle.folder).normalization
    layers = lazy_model(bundle.tensors, config, normalization, dtype="float32").layers
    total = len(layers)
    for index in range(total):
        full: DecoderLayer = layers.pop(0)
        mx.eval(full.parameters())
        ours = type(full)(config.text, TWINS)
        ours.update(full.parameters())
        prefix = f"model.layers.{index}."
        learner = _Learner(prefix, full, ours, texts, plan, bundle, dtype)
        learner.run(folder / f"layer-{index:03}.safetensors", source)
        for text in texts:
            text.add_behind(index)
        mx.clear_cache()
        if on_layer is not None:
            on_layer(index + 1, total)


class _Learner:
    """One decoder layer at work.

    Args:
        prefix: Of its modules' names.
        full: The layer as it is.
        ours: A copy, whose weights become those that the quantized model will have.
        texts: What goes through both.
        plan: What becomes of every module.
        bundle: Knows what the weights are stored in.
        dtype: Of scales and biases, or None for that.
    """

    def __init__(
        self,
        prefix: str,
        full: DecoderLayer,
        ours: DecoderLayer,
        texts: Sequence[Text],
        plan: Plan,
        bundle: Bundle,
        dtype: mx.Dtype | None,
    ) -> None:
        self.prefix = prefix
        self.full = full
        self.ours = ours
        self.texts = texts
        self.plan = plan
        self.bundle = bundle
        self.dtype = dtype

    def run(self, file: Path, source: str) -> None:
        """Write the layer's file unless it is there, and move the texts behind the layer."""
        is_done = file.exists() and read_metadata(file).get(LEARNED_FROM) == source
        tensors = open_file(file) if is_done else {}
        self._round_the_rest()
        for number, (block, names) in enumerate(STAGES):
            tensors |= self._quantize(block, names, tensors)
            if number + 1 == len(STAGES) or STAGES[number + 1][0] != block:
                self._advance(block)
        if not is_done:
            partial = file.with_name(file.stem + PARTIAL)
            mx.save_safetensors(str(partial), tensors, {"format": "mlx", LEARNED_FROM: source})
            os.replace(partial, file)

    def _round_the_rest(self) -> None:
        """Round what is quantized and not learned, experts, as the quantized model will have it."""
        learned = {f"{self.prefix}{block}.{name}" for block, names in STAGES for name in names}
        for name, module in self.ours.named_modules():
            path = self.prefix + name
            form = self.plan.formats.get(path)
            if form is not None and path not in learned:
                dtype = self.dtype or DTYPES[self.bundle.tensors[f"{path}.weight"].dtype]
                tensors = quantized_tensors(path, module.weight.astype(dtype), form)
                module.weight = dequantized(path, tensors, form)

    def _quantize(
        self, block: str, names: Sequence[str], known: dict[str, mx.array]
    ) -> dict[str, mx.array]:
        """Quantize projections of one input, and give the tensors that are to be written."""
        written: dict[str, mx.array] = {}
        inputs: Inputs | None = None
        for name in names:
            path = f"{self.prefix}{block}.{name}"
            form = self.plan.formats.get(path)
            if form is None:
                continue
            weight = self.full[block][name].weight
            dtype = self.dtype or DTYPES[self.bundle.tensors[f"{path}.weight"].dtype]
            if form.mode != "affine":
                tensors = quantized_tensors(path, weight.astype(dtype), form)
            elif f"{path}.weight" in known:
                tensors = {n: known[n] for n in names_of(path)}
            else:
                inputs = inputs or self._watch(block, name)
                tensors = self._rounded(path, weight, inputs, form, dtype)
                written |= tensors
            self.ours[block][name].weight = dequantized(path, tensors, form)
        return written

    def _rounded(
        self, path: str, weight: mx.array, inputs: Inputs, form: Format, dtype: mx.Dtype
    ) -> dict[str, mx.array]:
        matrix = np.array(weight)
        if not (np.isfinite(matrix).all() and inputs.is_finite):
            raise CheckpointError(
                f"{path}.weight or what it is multiplied with holds numbers that are not finite"
            )
        try:
            chosen = quantize_matrix(matrix, inputs, form, dtype)
        except np.linalg.LinAlgError:
            raise CheckpointError(f"the inputs of {path} are too large to learn from") from None
        scales, biases = (mx.array(part).astype(dtype) for part in (chosen.scales, chosen.biases))
        parts = (pack(chosen.codes, form.bits), scales, biases)
        return dict(zip(names_of(path), parts, strict=True))

    def _watch(self, block: str, name: str) -> Inputs:
        """Sum up what a projection is fed in both streams."""
        taps = [Tap(layer[block][name]) for layer in (self.full, self.ours)]
        for layer, tap in zip((self.full, self.ours), taps, strict=True):
            layer[block][name] = tap
        hessian, drift, tokens = mx.array(0.0), mx.array(0.0), 0
        for text in self.texts:
            # What comes behind the tap is never evaluated.
            _run(self.full, block, text.full, text.rotation)
            _run(self.ours, block, text.ours, text.rotation)
            right, given = (tap.seen.reshape(-1, tap.seen.shape[-1]) for tap in taps)
            hessian = hessian + given.T @ given
            drift = drift + (right - given).T @ given
            tokens += given.shape[0]
            mx.eval(hessian, drift)
        for layer, tap in zip((self.full, self.ours), taps, strict=True):
            layer[block][name] = tap.module
        return Inputs(np.array(hessian), np.array(drift), tokens)

    def _advance(self, block: str) -> None:
        """Move both streams behind a block."""
        for text in self.texts:
            text.full = text.full + _run(self.full, block, text.full, text.rotation)
            text.ours = text.ours + _run(self.ours, block, text.ours, text.rotation)
            mx.eval(text.full, text.ours)


class Tap:
    """Stands before a module and keeps what it was last fed."""

    def __init__(self, module: Callable[[mx.array], mx.array]) -> None:
        self.module = module
        self.seen = mx.array(0.0)

    def __call__(self, x: mx.array) -> mx.array:
        """Pass x on."""
        self.seen = x
        return self.module(x)


def _run(layer: DecoderLayer, block: str, hidden: mx.array, rotation: Rotation) -> mx.array:
    """What a block adds to hidden states [1, L, D]."""
    added: mx.array
    if block == "mlp":
        added = layer.mlp(layer.post_attention_layernorm(hidden))
    else:
        added = layer.self_attn(layer.input_layernorm(hidden), rotation, "causal", KVCache())
    return added
