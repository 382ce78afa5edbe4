"""Model folders that are wrong in one way each, and pictures that promise too much."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"
A_TENSOR = "model.layers.0.self_attn.q_proj.weight"


def _without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def _cut_in_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


def _missing_shard(folder: Path) -> None:
    shards = {A_TENSOR: "model-00001-of-00002.safetensors"}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": shards}))


def _missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[A_TENSOR]
    save_file(tensors, folder / WEIGHTS)


def _extra_tensor(folder: Path) -> None:
    extra = {"model.layers.99.self_attn.q_proj.weight": np.zeros((2, 2), np.float32)}
    save_file(load_file(folder / WEIGHTS) | extra, folder / WEIGHTS)


def _wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[A_TENSOR] = np.ascontiguousarray(tensors[A_TENSOR][:-1])
    save_file(tensors, folder / WEIGHTS)


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _other_family(folder: Path) -> None:
    change_config(folder, model_type="llava")


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def _without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


# What is done to a sound folder of one weights file, and what the error has to name.
MODEL_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (_without_weights, "no weights"),
    "cut in half": (_cut, "cut short"),
    "cut in the header": (_cut_in_header, "cut short"),
    "missing shard": (_missing_shard, "lacks model-00001-of-00002.safetensors"),
    "missing tensor": (_missing_tensor, f"lacks {A_TENSOR}"),
    "extra tensor": (_extra_tensor, "unknown model.layers.99.self_attn.q_proj.weight"),
    "wrong shape": (_wrong_shape, f"{A_TENSOR} has shape"),
    "pickled": (_pickled, "pickled"),
    "other family": (_other_family, "llava"),
    "no config": (_without_config, "config.json is missing"),
    "broken config": (_broken_config, "not valid JSON"),
    "no tokenizer": (_without_tokenizer, "tokenizer.json is missing"),
    "broken tokenizer": (_broken_tokenizer, "not a tokenizer"),
}


def change_config(folder: Path, **values: object) -> None:
    """Change keys of a folder's `config.json`."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def make_endless(folder: Path, end_ids: list[int]) -> None:
    """Make a tied model of small random weights never end an answer at temperature 0.

    An end token's logit becomes 0, and the likeliest of a thousand random ones lies above that.
    """
    tensors = load_file(folder / WEIGHTS)
    embedding = tensors["model.embed_tokens.weight"].copy()
    embedding[end_ids] = 0
    save_file(tensors | {"model.embed_tokens.weight": embedding}, folder / WEIGHTS)
    change_config(folder, max_position_embeddings=10**6)


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
