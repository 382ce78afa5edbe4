"""What has to be equal on all ranks before they compute together."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import mlx.core as mx

from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.files import StoredTensor
from mlx_qwenvl.weights.identity import sampled
from mlx_qwenvl.weights.recipes import Format


def facts_of(
    folder: Path,
    config: Config,
    tensors: dict[str, StoredTensor],
    formats: dict[str, Format],
    dtype: mx.Dtype,
    end_ids: frozenset[int],
) -> dict[str, str]:
    """A model about to be loaded, in facts that people understand, the most telling first.

    Args:
        folder: The model's.
        config: Its shape.
        tensors: All its stored weights, by name.
        formats: What will be quantized at load.
        dtype: Of its activations.
        end_ids: Tokens that end an answer.
    """
    from mlx_qwenvl import __version__

    files = sorted({tensor.file for tensor in tensors.values()})
    weights = [
        [(name, t.begin, t.dtype, t.shape) for name, t in sorted(tensors.items())],
        [sampled(file) for file in files],
    ]
    return {
        "version of mlx-qwenvl": __version__,
        "version of MLX": importlib.metadata.version("mlx"),
        "shape of the model": _digest(repr(config)),
        "checkpoint": _digest(json.dumps(weights)),
        "vocabulary": _digest((folder / "tokenizer.json").read_bytes()),
        "set of tokens that end an answer": str(sorted(end_ids)),
        "quantization at load": _digest(repr(sorted(formats.items()))),
        "dtype": str(dtype).removeprefix("mlx.core."),
    }


def _digest(told: str | bytes) -> str:
    raw = told.encode() if isinstance(told, str) else told
    return hashlib.sha256(raw).hexdigest()[:12]
