"""A model folder becomes a model, strictly: every tensor is accounted for by name and shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_qwenvl.errors import CheckpointError, OptionError
from mlx_qwenvl.inputs.processor import Normalization
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.qwen2_vl import Qwen2VL
from mlx_qwenvl.weights.files import StoredTensor, list_tensors, open_file
from mlx_qwenvl.weights.fold import fold_patch_embed
from mlx_qwenvl.weights.quantize import (
    Format,
    quantizable,
    quantized_module,
    quantized_tensors,
    recipe,
    stored_format,
)

PATCH_EMBED = "visual.patch_embed.proj"
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
NAMED_IN_ERRORS = 3  # tensors that an error lists before it only counts


def load_model(
    folder: Path,
    config: Config,
    normalization: Normalization,
    *,
    dtype: str | None = None,
    quantize: str | None = None,
) -> Qwen2VL:
    """Load a model folder, ready to run.

    Args:
        folder: Holds the weights.
        config: The folder's configuration.
        normalization: How pixels are to be normalized.
        dtype: "float32", "float16" or "bfloat16" for weights and activations; by default what
            suits the device (see `device_dtype`).
        quantize: A recipe of `weights/quantize.py` to quantize the decoder with.

    Raises:
        CheckpointError: Weights are missing, broken, superfluous or of another shape.
        OptionError: An unknown dtype or recipe.
    """
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    form = recipe(quantize) if quantize is not None else None
    stored = list_tensors(folder)
    if config.text.tie_word_embeddings:
        # Some exports store the tied head a second time.
        stored = {n: t for n, t in stored.items() if not n.startswith("lm_head.")}
    model = Qwen2VL(config)
    _match_formats(model, stored)
    _check(model, stored)
    wanted: set[str] = set()
    if form is not None:
        if any(name.startswith("model.") and name.endswith(".scales") for name in stored):
            raise CheckpointError(
                f"{folder} is quantized already; {quantize!r} needs a dense model"
            )
        wanted = quantizable(model, form)
        _replace(model, [(path, form) for path in wanted])
    target = DTYPES[dtype] if dtype is not None else device_dtype(stored.values())
    weights = _weights(stored, model.config, normalization)
    if form is not None:
        weights = _quantized(weights, wanted, form)
    _fill(model, weights, target)
    model.merge_projections()
    mx.eval(model.parameters())
    model.eval()
    return model


def device_dtype(tensors: Iterable[StoredTensor]) -> mx.Dtype:
    """The dtype that suits the device: float32 on the CPU, 16 bits on a GPU.

    On a GPU the checkpoint's own 16-bit dtype is kept. MLX's CPU backend runs half precision ten
    to a hundred times slower than float32.
    """
    if mx.default_device() == mx.cpu:
        return mx.float32
    half = any(tensor.dtype == "F16" for tensor in tensors)
    return mx.float16 if half else mx.bfloat16


def _match_formats(model: Qwen2VL, stored: dict[str, StoredTensor]) -> None:
    """Put quantized modules where the checkpoint has quantized weights."""
    formats = []
    for path, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Embedding)) or path == PATCH_EMBED:
            continue
        form = stored_format(path, module.weight.shape[-1], stored)
        if form is not None:
            formats.append((path, form))
    _replace(model, formats)


def _replace(model: Qwen2VL, formats: Sequence[tuple[str, Format]]) -> None:
    """Put quantized modules in the place of dense ones."""
    modules = dict(model.named_modules())
    if formats:
        empty = [(path, quantized_module(modules[path], form)) for path, form in formats]
        model.update_modules(tree_unflatten(empty))


def _check(model: Qwen2VL, stored: dict[str, StoredTensor]) -> None:
    expected = {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}
    # The folded embedding has one frame's columns and a bias; the stored one is checked in `fold`.
    del expected[f"{PATCH_EMBED}.bias"]
    _refuse("lacks", [name for name in expected if name not in stored])
    _refuse("has unknown", [name for name in stored if name not in expected])
    for name, shape in expected.items():
        if name != f"{PATCH_EMBED}.weight" and stored[name].shape != shape:
            raise CheckpointError(
                f"{name} has shape {stored[name].shape}, expected {shape} ({stored[name].file})"
            )


def _refuse(problem: str, names: list[str]) -> None:
    if not names:
        return
    listed = ", ".join(sorted(names)[:NAMED_IN_ERRORS])
    more = len(names) - NAMED_IN_ERRORS
    raise CheckpointError(
        f"the checkpoint {problem} {listed}" + (f" and {more} more tensors" if more > 0 else "")
    )


def _weights(
    stored: dict[str, StoredTensor], config: Config, normalization: Normalization
) -> Iterator[tuple[str, mx.array]]:
    """All tensors by their names here, still unread, the patch embedding folded."""
    opened = {file: open_file(file) for file in {tensor.file for tensor in stored.values()}}
    for name, tensor in stored.items():
        array = opened[tensor.file].pop(tensor.key)
        if name == f"{PATCH_EMBED}.weight":
            weight, bias = fold_patch_embed(array, normalization, config.vision)
            yield name, weight
            yield f"{PATCH_EMBED}.bias", bias
        else:
            yield name, array


def _quantized(
    weights: Iterable[tuple[str, mx.array]], paths: set[str], form: Format
) -> Iterator[tuple[str, mx.array]]:
    """The same with the weights of some modules quantized, in the dtype they are stored in."""
    for name, array in weights:
        path = name.removesuffix(".weight")
        if path in paths:
            yield from quantized_tensors(path, array, form).items()
        else:
            yield name, array


def _fill(model: Qwen2VL, weights: Iterable[tuple[str, mx.array]], dtype: mx.Dtype) -> None:
    cast = [
        (name, array.astype(dtype) if _is_cast(name, array) else array) for name, array in weights
    ]
    model.load_weights(cast, strict=True)
    del cast
    # One layer at a time, so that casts do not hold two copies of the whole model.
    parts: list[nn.Module] = [*model.visual.blocks, *model.layers, model]
    for part in parts:
        mx.eval(part.parameters())


def _is_cast(name: str, array: mx.array) -> bool:
    """Floats follow the device's dtype, but for the patch embedding (see `models/vision.py`)."""
    return mx.issubdtype(array.dtype, mx.floating) and not name.startswith(PATCH_EMBED)
