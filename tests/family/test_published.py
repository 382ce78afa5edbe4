"""The published checkpoints by their configuration: each is read and has the stated size.

`published/checkpoints.json` holds shapes and numbers of weights. The numbers do not come from here:
all but that of Qwen2.5-VL 72B are also stated in public code of others that loaded these
checkpoints or read their indexes, so that a shape which gives one to the last digit is the
published one. What was trained from another checkpoint is taken to have its shape, and proves
nothing of its own.
"""

from __future__ import annotations

from math import prod

import pytest

from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import MEMBERS
from mlx_qwenvl.weights.names import canonical, halves
from mlx_qwenvl.weights.plan import make_plan
from mlx_qwenvl.weights.recipes import read_recipe
from tests.family.checkpoints import (
    CHECKPOINTS,
    PUBLISHED,
    checkpoint,
    config_of,
    stored_shapes,
)


@pytest.mark.parametrize(("member", "name"), CHECKPOINTS, ids=[name for _, name in CHECKPOINTS])
def test_a_published_checkpoint_has_the_stated_number_of_weights(member: str, name: str) -> None:
    config = Config.from_dict(config_of(member, name))
    assert sum(map(prod, stored_shapes(config).values())) == checkpoint(member, name)["parameters"]
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
    known = stored_shapes(Config.from_dict(config_of(member, first)))
    for name in names:
        assert all(own in known for own in halves(canonical(name))), name


def test_a_copy_that_lacks_what_transformers_left_out_is_read_alike() -> None:
    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    raw = config_of("qwen2_5_vl", name)
    kept = ("hidden_size", "in_chans", "out_hidden_size", "tokens_per_second")
    copy = raw | {"vision_config": {key: raw["vision_config"][key] for key in kept}}
    assert Config.from_dict(copy) == Config.from_dict(raw)
