"""The JSON files of the tiny checkpoint, in the two forms that folders of Qwen2-VL have.

"hub" is the form of Qwen/Qwen2-VL-2B-Instruct: a flat config.json. "nested" is what transformers 5
writes when it saves a model and its processor; `record.py` asserts that it writes these again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tests.golden.vocabulary import SPECIAL_TOKENS

Layout = Literal["hub", "nested"]
DType = Literal["float32", "float16", "bfloat16"]
Json = dict[str, object]

TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")

LEARNED_TOKENS = 480
VOCAB_SIZE = 512  # 480 learned, 14 special, 18 unused rows: the hub's files have unused rows too
TOKEN_ID = {token: LEARNED_TOKENS + index for index, token in enumerate(SPECIAL_TOKENS)}

HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE = 128, 3, 4, 2, 192
HEAD_DIM = HIDDEN // HEADS
MROPE_SECTION = [4, 6, 6]  # frequency pairs of t, h, w: half of HEAD_DIM in all
# Not the 1e6 of the large ones: there the w axis turns by 1e-4 a column, and a mistake in it would
# be lost in rounding.
ROPE_THETA = 1000.0
MAX_POSITIONS = 2048
EMBED, BLOCKS, VISION_HEADS, MLP_RATIO = 64, 2, 2, 4
PATCH, TEMPORAL_PATCH, MERGE = 14, 2, 2

MIN_PIXELS, MAX_PIXELS = 56 * 56, 14 * 14 * 4 * 16384
IMAGE_MEAN = [0.48145466, 0.4578275, 0.40821073]
IMAGE_STD = [0.26862954, 0.26130258, 0.27577711]

# Qwen2-VL's conversation, said in our own words: a default system message unless the first message
# is one, pictures and videos as one pad token between their marks, texts as they are.
CHAT_TEMPLATE = (
    "{% set seen = namespace(images=0, videos=0) %}"
    "{% if messages and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "{% set seen.images = seen.images + 1 %}"
    "{% if add_vision_id %}{{ 'Picture ' ~ seen.images ~ ': ' }}{% endif %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' or 'video' in part %}"
    "{% set seen.videos = seen.videos + 1 %}"
    "{% if add_vision_id %}{{ 'Video ' ~ seen.videos ~ ': ' }}{% endif %}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif 'text' in part %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def config(layout: Layout, *, tied: bool, dtype: DType) -> Json:
    """The content of config.json."""
    return _hub_config(tied, dtype) if layout == "hub" else _nested_config(tied, dtype)


def generation_config(layout: Layout) -> Json:
    """The content of generation_config.json: sampling that is greedy in effect, as on the hub."""
    version = "4.37.0" if layout == "hub" else "5.23.0"
    return {
        "bos_token_id": TOKEN_ID["<|endoftext|>"],
        "pad_token_id": TOKEN_ID["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [TOKEN_ID["<|im_end|>"], TOKEN_ID["<|endoftext|>"]],
        "repetition_penalty": 1.0,
        "temperature": 0.01,
        "top_p": 0.001,
        "top_k": 1,
        "transformers_version": version,
    }


def tokenizer_config(layout: Layout) -> Json:
    """The content of tokenizer_config.json."""
    if layout == "nested":
        return {
            "add_prefix_space": False,
            "backend": "tokenizers",
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "extra_special_tokens": list(SPECIAL_TOKENS[1:]),
            "model_max_length": MAX_POSITIONS,
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "processor_class": "Qwen2VLProcessor",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(number): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token, number in TOKEN_ID.items()
        },
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": MAX_POSITIONS,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def preprocessor_config() -> Json:
    """The content of preprocessor_config.json, which only the hub's layout has."""
    return {
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "patch_size": PATCH,
        "temporal_patch_size": TEMPORAL_PATCH,
        "merge_size": MERGE,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }


def processor_config() -> Json:
    """The content of processor_config.json, where transformers 5 keeps the image processor."""
    return {
        "image_processor": {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": IMAGE_MEAN,
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_std": IMAGE_STD,
            "merge_size": MERGE,
            "patch_size": PATCH,
            "resample": 3,  # bicubic, as Pillow counts
            "rescale_factor": 1 / 255,
            "size": {"longest_edge": MAX_PIXELS, "shortest_edge": MIN_PIXELS},
            "temporal_patch_size": TEMPORAL_PATCH,
        },
        "processor_class": "Qwen2VLProcessor",
    }


def _token_ids() -> Json:
    return {
        "image_token_id": TOKEN_ID["<|image_pad|>"],
        "video_token_id": TOKEN_ID["<|video_pad|>"],
        "vision_end_token_id": TOKEN_ID["<|vision_end|>"],
        "vision_start_token_id": TOKEN_ID["<|vision_start|>"],
    }


def _text_sizes() -> Json:
    return {
        "attention_dropout": 0.0,
        "bos_token_id": TOKEN_ID["<|endoftext|>"],
        "eos_token_id": TOKEN_ID["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-06,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": VOCAB_SIZE,
    }


def _vision_sizes() -> Json:
    return {
        "depth": BLOCKS,
        "embed_dim": EMBED,
        "hidden_size": HIDDEN,
        "mlp_ratio": MLP_RATIO,
        "num_heads": VISION_HEADS,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL_PATCH,
    }


def _hub_config(tied: bool, dtype: DType) -> Json:
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **_text_sizes(),
        **_token_ids(),
        "vision_token_id": TOKEN_ID["<|vision_pad|>"],
        "rope_theta": ROPE_THETA,
        "rope_scaling": {"type": "mrope", "mrope_section": MROPE_SECTION},
        "sliding_window": MAX_POSITIONS,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "transformers_version": "4.41.2",
        "vision_config": {**_vision_sizes(), "in_chans": 3, "spatial_patch_size": PATCH},
    }


def _nested_config(tied: bool, dtype: DType) -> Json:
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "dtype": dtype,
        "model_type": "qwen2_vl",
        **_token_ids(),
        "text_config": {
            **_text_sizes(),
            "dtype": dtype,
            "layer_types": ["full_attention"] * LAYERS,
            "model_type": "qwen2_vl_text",
            "pad_token_id": None,
            "rope_parameters": {
                "mrope_section": MROPE_SECTION,
                "rope_theta": ROPE_THETA,
                "rope_type": "default",
            },
            "sliding_window": None,
        },
        "tie_word_embeddings": tied,
        "transformers_version": "5.23.0",
        "vision_config": {
            **_vision_sizes(),
            "dtype": dtype,
            "hidden_act": "quick_gelu",
            "in_channels": 3,
            "initializer_range": 0.02,
            "model_type": "qwen2_vl_vision",
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
        },
    }
