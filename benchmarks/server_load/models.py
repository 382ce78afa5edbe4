"""Checkpoints that answers of a given length can be asked of, whoever serves them.

    demo    the embedded model, with pictures of up to a megapixel
    0.1b    a random one of 0.13 billion parameters, not quantized
    0.1b-4bit    the same with its decoder in 4 bits

A server's API has no word for "go on after the end", so the copies name an end token that the model
never draws, and call the family's own by other names; then every answer has as many tokens as were
asked for. Weights are in float32, which
ours computes in on a CPU anyway and mlx-vlm does best with: both read the same files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx_qwenvl  # noqa: F401 - first, as it brings OpenBLAS

# isort: split
import mlx.core as mx

from benchmarks.peers.checkpoints import make

MODELS = ("demo", "0.1b", "0.1b-4bit")
NEVER = "<|quad_end|>", 908  # a special token that no answer of these models has
RENAMED = {"<|im_end|>": "<|im_over|>", "<|endoftext|>": "<|text_over|>"}
MAX_PIXELS = 1280 * 28 * 28  # pixels, as published configurations advise


def endless(name: str, place: Path) -> Path:
    """Write the copy of a model into `place`, unless it is there already."""
    folder = place / f"endless-{name}"
    if folder.exists():
        return folder
    folders = make(name.removesuffix("-4bit"), place)
    source = folders.packed if name.endswith("-4bit") else folders.dense
    draft = place / f"endless-{name}.part"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(source, draft)
    for file in draft.glob("*.safetensors"):
        arrays: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]
        wide = {n: a.astype(mx.float32) if a.dtype == mx.bfloat16 else a for n, a in arrays.items()}
        mx.eval(wide)
        mx.save_safetensors(str(file), wide, metadata={"format": "pt"})
    for file in draft.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        for former, new in RENAMED.items():
            text = text.replace(former, new)
        file.write_text(text, encoding="utf-8")
    text, number = NEVER
    _change(draft / "generation_config.json", {"eos_token_id": [number]})
    _change(draft / "config.json", {"eos_token_id": number, "torch_dtype": "float32"})
    _change(draft / "tokenizer_config.json", {"eos_token": text})
    size = {"shortest_edge": 3136, "longest_edge": MAX_PIXELS}
    _change(draft / "preprocessor_config.json", {"max_pixels": MAX_PIXELS, "size": size})
    draft.rename(folder)
    return folder


def _change(file: Path, fields: dict[str, Any]) -> None:
    raw = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(raw | fields), encoding="utf-8")
