"""Write a checkpoint as a model folder: `python -m examples.train_demo.export LAST_PT FOLDER`.

The folder has the hub's layout of Qwen2-VL: a flat config.json with `rope_scaling` {type: mrope,
mrope_section}, bfloat16 safetensors under the hub's key names, tokenizer, chat template and
processor configuration.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen2VLConfig

from examples.train_demo.model import PIXEL_MEAN, PIXEL_STD, DemoModel, make_config
from examples.train_demo.scenes import MAX_PIXELS, MIN_PIXELS
from examples.train_demo.tokenizer import SPECIAL

CONTEXT: Final = 2048  # tokens; training rows have at most a few hundred
CHAT_TEMPLATE: Final = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def export(checkpoint: Path, tokenizer_json: Path, folder: Path) -> None:
    """Write the model folder; files are replaced one by one, each at once."""
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    config = make_config(tokenizer.get_vocab())
    model = DemoModel(config)
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state.get("model", state))
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, value in model.hf.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied to the embedding
        hub = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        weights[hub] = value.to(torch.bfloat16).contiguous()
    temporary = folder / "model.safetensors.tmp"
    save_file(weights, str(temporary), metadata={"format": "pt"})
    temporary.replace(folder / "model.safetensors")
    ids = tokenizer.get_vocab()
    _write(folder / "config.json", flat_config(config))
    _write(
        folder / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "do_sample": False,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
        },
    )
    _write(folder / "tokenizer_config.json", _tokenizer_config(ids))
    _write(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    _write(folder / "preprocessor_config.json", _preprocessor_config())
    if tokenizer_json.resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer_json, folder / "tokenizer.json")


def flat_config(config: Qwen2VLConfig) -> dict[str, Any]:
    """config.json as the hub's Qwen2-VL checkpoints have it."""
    text, vision = config.text_config, config.vision_config
    rope = text.rope_parameters
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "torch_dtype": "bfloat16",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "hidden_act": "silu",
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": list(rope["mrope_section"])},
        "max_position_embeddings": CONTEXT,
        "max_window_layers": text.num_hidden_layers,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "tie_word_embeddings": True,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "pad_token_id": text.pad_token_id,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": vision.depth,
            "embed_dim": vision.embed_dim,
            "hidden_size": vision.hidden_size,
            "hidden_act": "quick_gelu",
            "mlp_ratio": vision.mlp_ratio,
            "num_heads": vision.num_heads,
            "in_chans": 3,
            "patch_size": vision.patch_size,
            "spatial_patch_size": vision.patch_size,
            "spatial_merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        },
    }


def _tokenizer_config(ids: dict[str, int]) -> dict[str, Any]:
    added = {
        str(ids[token]): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL
    }
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": dict(sorted(added.items(), key=lambda item: int(item[0]))),
        "additional_special_tokens": list(SPECIAL[1:]),
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }


def _preprocessor_config() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(PIXEL_MEAN),
        "image_std": list(PIXEL_STD),
        "do_convert_rgb": True,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="examples.train_demo.export", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json; that of the folder if omitted"
    )
    given = parser.parse_args()
    export(given.checkpoint, given.tokenizer or given.folder / "tokenizer.json", given.folder)


if __name__ == "__main__":
    main()
