"""Record which bits mlx-lm's mixed recipes give: `python -m tests.golden.record_mixed`.

Writes `mixed_recipes.json` beside this file; needs mlx-lm. A recipe's bits are kept as one digit
for every layer, module by module, for decoders of several depths: 28 and 80 layers are published,
6 are too few for an eighth.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import mlx.nn as nn
from mlx_lm.convert import QUANT_RECIPES, mixed_quant_predicate_builder
from mlx_lm.models.qwen2_vl import Model, ModelArgs

RECORDING = Path(__file__).with_name("mixed_recipes.json")
DEPTHS = (6, 28, 80)
PREFIX = "language_model."


def build_model(depth: int) -> nn.Module:
    """An untied Qwen2-VL decoder of some depth; widths play no part in the recipes."""
    config = {
        "model_type": "qwen2_vl",
        "hidden_size": 32,
        "num_hidden_layers": depth,
        "intermediate_size": 32,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "vocab_size": 32,
        "tie_word_embeddings": False,
    }
    return Model(ModelArgs.from_dict(config))


def bits_by_module(recipe: str, depth: int) -> dict[str, str]:
    """Bits of every module that mlx-lm quantizes, those of a layer's module as a digit each."""
    model = build_model(depth)
    predicate = mixed_quant_predicate_builder(recipe, model)
    digits: dict[str, dict[int, str]] = {}
    for path, module in model.named_modules():
        if not hasattr(module, "to_quantized"):
            continue
        form = predicate(path, module)
        assert isinstance(form, dict) and (form["group_size"], form["mode"]) == (64, "affine")
        name, layer = path.removeprefix(PREFIX), 0
        if name.startswith("model.layers."):
            _, _, number, name = name.split(".", 3)
            layer = int(number)
        digits.setdefault(name, {})[layer] = str(form["bits"])
    return {
        name: "".join(layers[layer] for layer in sorted(layers))
        for name, layers in sorted(digits.items())
    }


def main() -> None:
    """Record every recipe at every depth and write the file."""
    recorded = {
        recipe: {str(depth): bits_by_module(recipe, depth) for depth in DEPTHS}
        for recipe in QUANT_RECIPES
    }
    content = {"about": {"mlx-lm": version("mlx-lm")}, "recipes": recorded}
    RECORDING.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{RECORDING.name}: {len(recorded)} recipes at {len(DEPTHS)} depths")


if __name__ == "__main__":
    main()
