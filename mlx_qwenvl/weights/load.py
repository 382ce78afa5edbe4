"""A model folder becomes a model, strictly: every tensor is accounted for by name and shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_qwenvl.bars import bar
from mlx_qwenvl.errors import CheckpointError, OptionError
from mlx_qwenvl.inputs.processor import Normalization
from mlx_qwenvl.kernels.ops import TWINS, Ops, choose_ops
from mlx_qwenvl.models.config import Config, VisionConfig
from mlx_qwenvl.models.families import build
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.share import Share
from mlx_qwenvl.models.text import MLP, DecoderLayer
from mlx_qwenvl.weights.files import StoredTensor, open_file
from mlx_qwenvl.weights.fold import fold_motion, fold_patch_embed
from mlx_qwenvl.weights.pad import on_metal, pad_mlp, pads_mlp
from mlx_qwenvl.weights.parts import Part, cut, read_part
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
    share: Share | None = None,
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
        share: Which part of the decoder to hold; `tensors` are those of `parts_of` then.

    Raises:
        CheckpointError: Weights are missing, broken, superfluous or of another shape.
        OptionError: An unknown dtype, or `$MLX_QWENVL_KERNELS` is neither "on" nor "off".
    """
    model, stored, prepare = _prepared(tensors, config, normalization, dtype, plan, share)
    pads = pads_mlp(on_metal())
    # One layer at a time, so that no more than one layer is held in two forms.
    by_layer = _by_layer(model, stored)
    with bar("loading", "layers") if progress else nullcontext() as advance:
        for done, (part, names) in enumerate(by_layer, start=1):
            model.load_weights(prepare(names), strict=False)
            if isinstance(part, DecoderLayer):
                if pads and isinstance(part.mlp, MLP):
                    pad_mlp(part.mlp)
                part.merge_projections()
            mx.eval(part.parameters())
            mx.clear_cache()
            if advance is not None:
                advance(done, len(by_layer))
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
    model, stored, prepare = _prepared(tensors, config, normalization, dtype, plan, None)
    model.load_weights(prepare(stored), strict=True)
    return model


def _prepared(
    tensors: dict[str, StoredTensor],
    config: Config,
    normalization: Normalization,
    dtype: str | None,
    plan: Plan | None,
    share: Share | None,
) -> tuple[Model, dict[str, StoredTensor], _Prepare]:
    """An empty model, what it is filled with, and what makes arrays for it of some of that."""
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    stored = check_tensors(tensors, config, share)
    model = _empty(config, share, choose_ops())
    _replace(model, stored_formats(model, stored))
    formats = {} if plan is None else plan.formats
    if formats:
        if any(name.endswith(".scales") for name in stored):
            raise CheckpointError("the model is quantized already; quantizing needs a dense one")
        _replace(model, formats)
    model.eval()
    target = DTYPES[dtype] if dtype is not None else device_dtype(stored.values())
    opened: dict[Path, dict[str, mx.array]] = {}

    def prepare(names: Iterable[str]) -> list[tuple[str, mx.array]]:
        some = {name: stored[name] for name in names}
        prepared = [
            (name, array.astype(target) if _is_cast(name, array, target) else array)
            for name, array in _quantized(_weights(some, opened, config, normalization), formats)
        ]
        for tensor in some.values():  # or what was read for them would be held as well
            opened.get(tensor.file, {}).pop(tensor.key, None)
        return prepared

    return model, stored, prepare


_Prepare = Callable[[Iterable[str]], list[tuple[str, mx.array]]]


def _empty(config: Config, share: Share | None, ops: Ops = TWINS) -> Model:
    """A model without weights: all of it, or one rank's part."""
    model = build(config, ops)
    if share is not None:
        model.shard(share)
    return model


def _by_layer(model: Model, names: Iterable[str]) -> list[tuple[nn.Module, list[str]]]:
    """Names of tensors by the block or layer that holds them; what is left is the model's own."""
    parts: dict[str, nn.Module] = {
        f"{where}.{index}": part
        for where, held in (("visual.blocks", model.visual.blocks), ("model.layers", model.layers))
        for index, part in enumerate(held)
    }
    of_part: dict[str, list[str]] = {path: [] for path in parts}
    rest: list[str] = []
    for name in names:
        of_part.get(".".join(name.split(".")[:3]), rest).append(name)
    return [*((part, of_part[path]) for path, part in parts.items()), (model, rest)]


def parts_of(
    tensors: dict[str, StoredTensor], config: Config, plan: Plan, share: Share
) -> dict[str, StoredTensor]:
    """What one rank reads of a checkpoint.

    Args:
        tensors: All of it, by name.
        config: The shape of the whole model.
        plan: What will be quantized at load.
        share: The rank's.

    Raises:
        CheckpointError: Weights are missing, superfluous or of another shape.
        OptionError: So many ranks cannot share this model evenly.
    """
    whole = build(config)
    stored = check_tensors(tensors, config)
    formats = stored_formats(whole, stored) | plan.formats
    return cut(stored, _shapes(whole), _shapes(_empty(config, share)), formats, share)


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}


def check_tensors(
    tensors: dict[str, StoredTensor], config: Config, share: Share | None = None
) -> dict[str, StoredTensor]:
    """Hold stored tensors against the shape that a configuration promises.

    Args:
        tensors: The weights, by their names here.
        config: The shape of the whole model.
        share: Whose part of it the tensors are; None for all of it.

    Returns:
        The tensors without the copy of a tied head that some exports store.

    Raises:
        CheckpointError: Weights are missing, superfluous or of another shape.
    """
    stored = tensors
    if config.text.tie_word_embeddings:
        stored = {n: t for n, t in tensors.items() if not n.startswith("lm_head.")}
    model = _empty(config, share)
    _replace(model, stored_formats(model, stored))
    expected = _shapes(model)
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
    stored: Mapping[str, StoredTensor],
    opened: dict[Path, dict[str, mx.array]],
    config: Config,
    normalization: Normalization,
) -> Iterator[tuple[str, mx.array]]:
    """Tensors by their names here, the patch embedding folded; only parts are read already.

    Args:
        stored: The tensors.
        opened: The files that hold them, as far as they are open; others are opened.
        config: The model's shape.
        normalization: How pixels are to be normalized.
    """
    for name, tensor in stored.items():
        if isinstance(tensor, Part):
            yield name, read_part(tensor)
            continue
        array = tensor.of(_opened(tensor, opened)[tensor.key])
        if name == f"{PATCH_EMBED}.weight":
            weight, bias = fold_patch_embed(array, normalization, config.vision)
            yield name, weight
            own = stored.get(f"{PATCH_EMBED}.bias")
            if own is not None:
                bias = bias + _opened(own, opened)[own.key].astype(mx.float32)
            yield f"{PATCH_EMBED}.bias", bias
            yield f"{PATCH_EMBED}.motion", fold_motion(array, normalization, config.vision)
        elif name != f"{PATCH_EMBED}.bias":
            yield name, array


def _opened(tensor: StoredTensor, opened: dict[Path, dict[str, mx.array]]) -> dict[str, mx.array]:
    """The file of a tensor, which is opened where it is not yet."""
    if tensor.file not in opened:
        opened[tensor.file] = open_file(tensor.file)
    return opened[tensor.file]


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
