"""A checkpoint becomes an MLX folder, one shard of tensors in memory at a time.

The result has the names and the `quantization` statement of mlx-community folders. It is written
beside its destination and renamed at the end, so no half-made folder is ever left in its place.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from mlx_qwenvl.errors import CheckpointError, QwenVLError
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.qwen2_vl import Qwen2VL
from mlx_qwenvl.weights.files import FLOATS, INDEX_FILE, StoredTensor, list_tensors, open_file
from mlx_qwenvl.weights.quantize import Format, quantizable, quantized_tensors, recipe

SHARD_BYTES = 2 * 1024**3  # most bytes of one output file, and so of what is held in memory
COPIED = ("*.json", "*.jinja")
NOT_COPIED = ("config.json", INDEX_FILE)
PATCH_EMBED = "visual.patch_embed.proj.weight"


def convert(source: Path, output: Path, quantize: str | None = None) -> None:
    """Write a copy of a model folder for MLX.

    Args:
        source: A folder with full-precision weights.
        output: A folder that does not exist yet.
        quantize: A recipe such as "4bit" for the decoder, or None to keep full precision.

    Raises:
        CheckpointError: The source is no such folder.
        OptionError: An unknown recipe.
        QwenVLError: The output exists, lies inside the source, or cannot be written.
    """
    form = None if quantize is None else recipe(quantize)
    output = output.expanduser().absolute()
    if output.exists():
        raise QwenVLError(f"{output} exists already; choose another output")
    if source.resolve() in output.resolve().parents:
        raise QwenVLError(f"{output} lies inside the source {source}")
    config = Config.from_folder(source)
    stored = list_tensors(source)
    if any(name.endswith(".scales") for name in stored):
        raise CheckpointError(f"{source} is quantized already; convert the original instead")
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        _write(draft, source, config, stored, form)
        draft.chmod(0o755)
        draft.rename(output)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write(
    folder: Path,
    source: Path,
    config: Config,
    stored: dict[str, StoredTensor],
    form: Format | None,
) -> None:
    weight_map: dict[str, str] = {}
    shards = list(_shards(stored))
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = _converted(config, {name: stored[name] for name in names}, form)
        mx.save_safetensors(str(folder / file), tensors, metadata={"format": "mlx"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")
    settings = read_json(source / "config.json")
    if form is not None:
        statement = {"group_size": form.group_size, "bits": form.bits, "mode": form.mode}
        settings |= {"quantization": statement, "quantization_config": statement}
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    for pattern in COPIED:
        for file_path in source.glob(pattern):
            if file_path.name not in NOT_COPIED:
                shutil.copyfile(file_path, folder / file_path.name)


def _shards(stored: dict[str, StoredTensor]) -> Iterator[list[str]]:
    """Names in groups whose full-precision tensors fit `SHARD_BYTES`."""
    group: list[str] = []
    size = 0
    for name, tensor in stored.items():
        nbytes = math.prod(tensor.shape) * (4 if tensor.dtype == "F32" else 2)
        if group and size + nbytes > SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += nbytes
    yield group


def _converted(
    config: Config, stored: dict[str, StoredTensor], form: Format | None
) -> dict[str, mx.array]:
    opened = {file: open_file(file) for file in {tensor.file for tensor in stored.values()}}
    wanted = set() if form is None else quantizable(Qwen2VL(config), form)
    tensors: dict[str, mx.array] = {}
    for name, tensor in stored.items():
        array = opened[tensor.file].pop(tensor.key)
        if name == PATCH_EMBED and array.ndim == 5 and array.shape[1] == config.vision.in_channels:
            array = array.transpose(0, 2, 3, 4, 1)  # MLX's order of a convolution's weights
        path = name.removesuffix(".weight")
        if form is not None and path in wanted:
            if tensor.dtype not in FLOATS:
                raise CheckpointError(f"{name} has dtype {tensor.dtype}, expected floats")
            for part, quantized in quantized_tensors(path, array, form).items():
                tensors[_theirs(part)] = quantized
        else:
            tensors[_theirs(name)] = array
    mx.eval(tensors)
    return tensors


def _theirs(name: str) -> str:
    """Name of a tensor in mlx-community folders."""
    if name.startswith("visual."):
        return "vision_tower." + name.removeprefix("visual.")
    return "language_model." + name
