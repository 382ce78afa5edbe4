"""The decoder of a checkpoint of `benchmarks.peers` as a GGUF file, for llama.cpp.

    PYTHON -m benchmarks.peers.to_gguf DENSE_FOLDER OUTPUT_FOLDER [Q4_0|Q8_0|F32]

Needs `gguf` and this project. Every matrix, the embedding too, takes the type that is named; norms
and biases stay float32. Q4_0 takes 4.5 bits a weight, as groups of 64 with scale and bias do.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import mlx_qwenvl  # noqa: F401 - first, as it brings OpenBLAS

# isort: split
import mlx.core as mx
import numpy as np

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's kinds of tokens


def write(source: Path, output: Path, kind: str) -> None:
    """Write `output/model.gguf`."""
    gguf: Any = importlib.import_module("gguf")
    raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
    output.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(output / "model.gguf"), "qwen2vl")
    writer.add_block_count(raw["num_hidden_layers"])
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(raw["hidden_size"])
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_head_count(raw["num_attention_heads"])
    writer.add_head_count_kv(raw["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    writer.add_rope_freq_base(raw["rope_theta"])
    writer.add_rope_dimension_sections([*raw["rope_scaling"]["mrope_section"], 0])
    _add_vocabulary(writer, source, raw["vocab_size"])
    kinds = gguf.GGMLQuantizationType
    for file in sorted(source.glob("*.safetensors")):
        opened = mx.load(str(file))
        assert isinstance(opened, dict)
        for name, array in opened.items():
            theirs = _name(name)
            if theirs is None:
                continue
            values = np.array(array.astype(mx.float32))
            chosen = kinds.F32 if values.ndim == 1 else kinds[kind]
            data = values if chosen == kinds.F32 else gguf.quants.quantize(values, chosen)
            writer.add_tensor(theirs, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str | None:
    """llama.cpp's name of a tensor; None for the vision tower's."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    if not name.startswith("model.layers."):
        return None
    number, rest = name.removeprefix("model.layers.").split(".", 1)
    module, part = rest.rsplit(".", 1)
    return f"blk.{number}.{NAMES[module]}.{part}"


def _add_vocabulary(writer: Any, source: Path, size: int) -> None:
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    special = {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
    tokens = [f"[unused{index}]" for index in range(size)]
    kinds = [UNUSED] * size
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], kinds[index] = token, NORMAL
    for token, index in special.items():
        tokens[index], kinds[index] = token, CONTROL
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_bos_token_id(special["<|endoftext|>"])
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "Q4_0")
