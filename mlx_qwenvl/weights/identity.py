"""What computed arrays depend on beside a prompt: one digest of a loaded model.

Two models of equal digest compute the same. Weights are told apart by their files' lengths, times
and samples, because reading all of a large model would take longer than what it saves.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_qwenvl.inputs.processor import Normalization
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.weights.files import StoredTensor

SAMPLE = 2**16  # bytes read at each sampled place of a file
SAMPLES = 16  # places


def model_identity(
    version: str,
    model: Model,
    tensors: dict[str, StoredTensor],
    normalization: Normalization,
    plan: str,
) -> str:
    """A digest of everything that keys, values and vision features depend on.

    Args:
        version: This package's.
        model: The loaded model, for its shape, dtypes and fused steps.
        tensors: The stored weights that it was made of.
        normalization: Of pixels; it is folded into the weights.
        plan: What was quantized at load, in words.
    """
    files = sorted({tensor.file for tensor in tensors.values()})
    number = {file: index for index, file in enumerate(files)}
    told = {
        "version": version,
        "mlx": importlib.metadata.version("mlx"),
        "device": [str(mx.default_device()), str(mx.device_info().get("device_name"))],
        "fused steps": model.ops.name,
        "config": repr(model.config),
        "normalization": asdict(normalization),
        "plan": plan,
        "parameters": [
            (name, str(array.dtype), array.shape)
            for name, array in sorted(tree_flatten(model.parameters()))
        ],
        "tensors": [
            (name, number[t.file], t.begin, t.dtype, t.shape) for name, t in sorted(tensors.items())
        ],
        "files": [(file.stat().st_mtime_ns, *sampled(file)) for file in files],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def sampled(file: Path) -> tuple[int, str]:
    """Length of a file, and a digest of its beginning, its end and places between."""
    size, sha = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as opened:
        last = max(0, size - SAMPLE)
        for place in range(SAMPLES):
            opened.seek(last * place // (SAMPLES - 1))
            sha.update(opened.read(SAMPLE))
    return size, sha.hexdigest()
