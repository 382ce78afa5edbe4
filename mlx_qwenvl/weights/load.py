"""A model folder becomes a model, strictly: every tensor is accounted for by name and shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_qwenvl.bars import bar
from mlx_qwenvl.errors import CheckpointError, OptionError
from mlx_qwenvl.inputs.processor import Normalization
from mlx_qwenvl.kernels.ops import choose_ops
from mlx_qwenvl.models.config import Config, VisionConfig
from mlx_qwenvl.models.families import build
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.text import MLP
from mlx_qwenvl.weights.files import StoredTensor, open_file
from mlx_qwenvl.weights.fold import fold_motion, fold_patch_embed
from mlx_qwenvl.weights.pad import on_metal, pad_mlp, pads_mlp
from mlx_qwenvl.weights.plan import PATCH_EMBED, Plan
from mlx_qwenvl.weights.quantize import quantized_module, quantized_tensors, stored_format
from mlx_qwenvl.weights.recipes import Format

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
NAMED_IN_ERRORS = 3  # tensors that an error lists before it only counts


def load_model(
    tensors: dict[str, StoredTensor],
    config: Config,
    normalization: Normalization,
    *,
    dtype: str | None = None,
    plan: Plan | None = None,
    progress: bool = False,
) -> Model:
    """Load stored weights, ready to run.

    They are read, cast and quantized layer by layer, so memory peaks at the finished model and
    one layer more.

    Args:
        tensors: The weights, by their names here.
        config: The shape that they must have.
        normalization: How pixels are to be normalized.
        dtype: "float32", "float16" or "bfloat16" for weights and activations; by default what
            suits the device (see `device_dtype`).
        plan: What to quantize; the weights must be dense then.
        progress: Show a bar, where it takes longer than a moment.

    Raises:
        CheckpointError: Weights are missing, broken, superfluous or of another shape.
        OptionError: An unknown dtype, or `$MLX_QWENVL_KERNELS` is neither "on" nor "off".
    """
    model = lazy_model(tensors, config, normalization, dtype=dtype, plan=plan)
    if pads_mlp(on_metal()):
        for layer in model.layers:
            if isinstance(layer.mlp, MLP):
                pad_mlp(layer.mlp)
    model.merge_projections()
    # One layer at a time, so that no more than one layer is held in two forms.
    parts: list[nn.Module] = [*model.visual.blocks, *model.layers, model]
    with bar("loading", "layers") if progress else nullcontext() as advance:
        for done, part in enumerate(parts, start=1):
            mx.eval(part.parameters())
            mx.clear_cache()
            if advance is not None:
                advance(done, len(parts))
    return model


def lazy_model(
    tensors: dict[str, StoredTensor],
    config: Config,
    normalization: Normalization,
    *,
    dtype: str | None = None,
    plan: Plan | None = None,
) -> Model:
    """The same with weights that are read, cast and quantized when they are first evaluated."""
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    stored = check_tensors(tensors, config)
    model = build(config, choose_ops())
    _replace(model, stored_formats(model, stored))
    if plan is not None and plan.formats:
        if any(name.endswith(".scales") for name in stored):
            raise CheckpointError("the model is quantized already; quantizing needs a dense one")
        _replace(model, plan.formats)
    target = DTYPES[dtype] if dtype is not None else device_dtype(stored.values())
    weights = _weights(stored, model.config, normalization)
    if plan is not None:
        weights = _quantized(weights, plan.formats)
    cast = [
        (name, array.astype(target) if _is_cast(name, array, target) else array)
        for name, array in weights
    ]
    model.load_weights(cast, strict=True)
    model.eval()
    return model


def check_tensors(tensors: dict[str, StoredTensor], config: Config) -> dict[str, StoredTensor]:
    """Hold stored tensors against the shape that a configuration promises.

    Returns:
        The tensors without the copy of a tied head that some exports store.

    Raises:
        CheckpointError: Weights are missing, superfluous or of another shape.
    """
    stored = tensors
    if config.text.tie_word_embeddings:
        stored = {n: t for n, t in tensors.items() if not n.startswith("lm_head.")}
    model = build(config)
    _replace(model, stored_formats(model, stored))
    expected = {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}
    # The folded embedding is three tensors, the stored one a single one of another shape, and a
    # bias in some members.
    del expected[f"{PATCH_EMBED}.motion"]
    if not config.vision.has_patch_bias:
        del expected[f"{PATCH_EMBED}.bias"]
    _refuse("lacks", [name for name in expected if name not in stored])
    _refuse("has unknown", [name for name in stored if name not in expected])
    for name, shape in expected.items():
        if name != f"{PATCH_EMBED}.weight" and stored[name].shape != shape:
            raise CheckpointError(
                f"{name} has shape {stored[name].shape}, expected {shape} ({stored[name].file})"
            )
    _check_patch_embed(stored[f"{PATCH_EMBED}.weight"], config.vision)
    return stored


def _check_patch_embed(tensor: StoredTensor, config: VisionConfig) -> None:
    """See that the patch embedding has one of the shapes that `fold` takes."""
    dim, channels = config.embed_dim, config.in_channels
    cube = (config.temporal_patch_size, config.patch_size, config.patch_size)
    if tensor.shape not in ((dim, channels, *cube), (dim, *cube, channels)):
        raise CheckpointError(
            f"{PATCH_EMBED}.weight has shape {tensor.shape}, expected {(dim, channels, *cube)} "
            f"({tensor.file})"
        )


def stored_formats(model: Model, stored: dict[str, StoredTensor]) -> dict[str, Format]:
    """Formats of the modules that a checkpoint has quantized, by their paths.

    Raises:
        CheckpointError: Shapes that no format explains.
    """
    formats = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) and path != PATCH_EMBED:
            form = stored_format(path, module.weight.shape[-1], stored)
            if form is not None:
                formats[path] = form
    return formats


def device_dtype(tensors: Iterable[StoredTensor]) -> mx.Dtype:
    """The dtype that suits the device: float32 on the CPU, 16 bits on a GPU.

    On a GPU the checkpoint's own 16-bit dtype is kept. MLX's CPU backend runs half precision ten
    to a hundred times slower than float32.
    """
    if mx.default_device() == mx.cpu:
        return mx.float32
    half = any(tensor.dtype == "F16" for tensor in tensors)
    return mx.float16 if half else mx.bfloat16


def _replace(model: Model, formats: dict[str, Format]) -> None:
    """Put empty quantized modules in the place of dense ones."""
    modules = dict(model.named_modules())
    if formats:
        empty = [(path, quantized_module(modules[path], form)) for path, form in formats.items()]
        model.update_modules(tree_unflatten(empty))


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
        array = tensor.of(opened[tensor.file][tensor.key])
        if name == f"{PATCH_EMBED}.weight":
            weight, bias = fold_patch_embed(array, normalization, config.vision)
            yield name, weight
            own = stored.get(f"{PATCH_EMBED}.bias")
            if own is not None:
                bias = bias + opened[own.file][own.key].astype(mx.float32)
            yield f"{PATCH_EMBED}.bias", bias
            yield f"{PATCH_EMBED}.motion", fold_motion(array, normalization, config.vision)
        elif name != f"{PATCH_EMBED}.bias":
            yield name, array


def _quantized(
    weights: Iterable[tuple[str, mx.array]], formats: dict[str, Format]
) -> Iterator[tuple[str, mx.array]]:
    """The same with the weights of some modules quantized, in the dtype they are stored in."""
    for name, array in weights:
        path = name.removesuffix(".weight")
        if path in formats and path != name:
            yield from quantized_tensors(path, array, formats[path]).items()
        else:
            yield name, array


def _is_cast(name: str, array: mx.array, target: mx.Dtype) -> bool:
    """Floats follow the device's dtype.

    But for the patch embedding (see `models/vision.py`), and the tower's matrices of 16 bits, which
    are not made float32 before they are used.
    """
    if not mx.issubdtype(array.dtype, mx.floating) or name.startswith(PATCH_EMBED):
        return False
    return not (stays_narrow(name, array.shape) and array.dtype.size < target.size)


def stays_narrow(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a matrix of the vision tower, which keeps 16 bits where it has them."""
    return name.startswith("visual.") and name.endswith(".weight") and len(shape) == 2
