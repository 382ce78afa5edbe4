"""The published checkpoints by their configuration: each is read and has the stated size.

`published/checkpoints.json` holds shapes and numbers of weights. The numbers do not come from here:
all but that of Qwen2.5-VL 72B are also stated in public code of others that loaded these
checkpoints or read their indexes, so that a shape which gives one to the last digit is the
published one. What was trained from another checkpoint is taken to have its shape, and proves
nothing of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlx.utils import tree_flatten

from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import MEMBERS, build
from mlx_qwenvl.weights.names import canonical, halves
from mlx_qwenvl.weights.plan import PATCH_EMBED, make_plan
from mlx_qwenvl.weights.recipes import read_recipe

PUBLISHED: dict[str, Any] = json.loads(
    Path(__file__).with_name("published").joinpath("checkpoints.json").read_text()
)
CHECKPOINTS = [(member, name) for member, m in PUBLISHED.items() for name in m["checkpoints"]]
SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
TOKENS = {"vision_start": 151652, "vision_end": 151653, "image": 151655, "video": 151656}


def checkpoint(member: str, name: str) -> dict[str, Any]:
    """What is known of a checkpoint; what is made from another has its shape."""
    stated: dict[str, Any] = PUBLISHED[member]["checkpoints"][name]
    return checkpoint(member, stated["like"]) if "like" in stated else stated


def config_of(member: str, name: str) -> dict[str, Any]:
    """Its `config.json`, as far as it is read."""
    stated, common = checkpoint(member, name), PUBLISHED[member]
    text = {**common["text"], **dict(zip(SHAPE, stated["shape"], strict=True))}
    text |= stated.get("decoder", {})
    width = "hidden_size" if member == "qwen2_vl" else "out_hidden_size"
    vision = {**common["vision"], **stated.get("tower", {}), width: stated["shape"][0]}
    ids = {f"{mark}_token_id": number for mark, number in TOKENS.items()}
    raw = {"model_type": member, **ids, "tie_word_embeddings": stated["tied"]}
    is_nested = MEMBERS[member].config_type.is_nested
    return {**raw, "vision_config": vision, **({"text_config": text} if is_nested else text)}


def weights(config: Config) -> dict[str, int]:
    """Numbers of weights by name, of the patch embedding as it is stored."""
    found = {name: array.size for name, array in tree_flatten(build(config).parameters())}
    found[f"{PATCH_EMBED}.weight"] += found.pop(f"{PATCH_EMBED}.motion")
    if not config.vision.has_patch_bias:
        del found[f"{PATCH_EMBED}.bias"]
    return found


@pytest.mark.parametrize(("member", "name"), CHECKPOINTS, ids=[name for _, name in CHECKPOINTS])
def test_a_published_checkpoint_has_the_stated_number_of_weights(member: str, name: str) -> None:
    config = Config.from_dict(config_of(member, name))
    assert sum(weights(config).values()) == checkpoint(member, name)["parameters"]
    assert type(config) is MEMBERS[member].config_type
    plan = make_plan(config, read_recipe("4bit"))
    assert not plan.ungrouped, "the decoder's rows make groups of 64"
    assert config.text.head_dim == 128


@pytest.mark.parametrize(
    ("member", "names"),
    [
        ("qwen2_vl", ("visual.merger.ln_q.weight", "model.layers.0.self_attn.q_proj.bias")),
        ("qwen2_5_vl", ("visual.blocks.31.mlp.down_proj.bias", "visual.blocks.0.norm1.weight")),
        (
            "qwen3_vl",
            (
                "model.visual.pos_embed.weight",
                "model.visual.patch_embed.proj.bias",
                "model.visual.deepstack_merger_list.2.linear_fc2.weight",
                "model.language_model.layers.0.self_attn.q_norm.weight",
            ),
        ),
        (
            "qwen3_vl_moe",
            (
                "model.language_model.layers.47.mlp.gate.weight",
                "model.language_model.layers.47.mlp.experts.gate_up_proj",
                "model.language_model.layers.47.mlp.experts.down_proj",
            ),
        ),
    ],
)
def test_the_hubs_names_lead_to_weights_of_the_model(member: str, names: tuple[str, ...]) -> None:
    first = next(iter(PUBLISHED[member]["checkpoints"]))
    known = weights(Config.from_dict(config_of(member, first)))
    for name in names:
        assert all(own in known for own in halves(canonical(name))), name


def test_a_copy_that_lacks_what_transformers_left_out_is_read_alike() -> None:
    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    raw = config_of("qwen2_5_vl", name)
    kept = ("hidden_size", "in_chans", "out_hidden_size", "tokens_per_second")
    copy = raw | {"vision_config": {key: raw["vision_config"][key] for key in kept}}
    assert Config.from_dict(copy) == Config.from_dict(raw)
