"""Recipes: what every name means, and the plan that recipes make of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_qwenvl import OptionError
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.plan import PATCH_EMBED, make_plan, vision_recipe
from mlx_qwenvl.weights.recipes import GROUP_SIZES, RECIPES, Format, read_recipe
from mlx_qwenvl.weights.topology import Topology
from tests.golden.tiny_files import LAYERS
from tests.golden.tiny_files import config as tiny_config
from tests.test_config import hub_config

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("mixed_recipes.json").read_text())

TIED = Config.from_dict(tiny_config("hub", tied=True, dtype="float32"))
UNTIED = Config.from_dict(tiny_config("hub", tied=False, dtype="float32"))

AFFINE = [f"{bits}bit" for bits in (2, 3, 4, 5, 6, 8)]

# What mistral.rs accepts: the name here, and whether it is another format.
MISTRAL_RS = {
    **{str(bits): (f"{bits}bit", False) for bits in (2, 3, 4, 5, 6, 8)},
    **{f"AFQ{bits}": (f"{bits}bit", False) for bits in (2, 3, 4, 6, 8)},
    **{f"Q{bits}K": (f"{bits}bit", True) for bits in (2, 3, 4, 5, 6, 8)},
    **{f"Q{bits}_{kind}": (f"{bits}bit", True) for bits in (4, 5, 8) for kind in (0, 1)},
    **{f"HQQ{bits}": (f"{bits}bit", True) for bits in (4, 8)},
    "FP8": ("mxfp8", True),
    "F8Q8": ("mxfp8", True),
    "MXFP4": ("mxfp4", False),
}
LLAMA_CPP = {
    "Q2_K": "2bit",
    "Q3_K_S": "3bit",
    "Q3_K_M": "mixed_3_6",
    "Q3_K_L": "mixed_3_6",
    "Q4_K_S": "4bit",
    "Q4_K_M": "mixed_4_6",
    "Q5_K_S": "5bit",
    "Q5_K_M": "5bit",
    "Q6_K": "6bit",
    "Q8_0": "8bit",
    "IQ4_XS": "4bit",
    "IQ4_NL": "4bit",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_known_by_its_own_name_and_has_no_note(name: str) -> None:
    recipe = read_recipe(name)
    assert (recipe.name, recipe.note) == (name, "")
    assert (recipe.low, recipe.high) == RECIPES[name]


@pytest.mark.parametrize("case", [str.upper, str.lower, "  {} \n".format])
@pytest.mark.parametrize("alias", MISTRAL_RS)
def test_every_name_of_mistral_rs_means_the_nearest_format(alias: str, case: Any) -> None:
    name, is_other = MISTRAL_RS[alias]
    recipe = read_recipe(case(alias))
    assert recipe.name == name
    told = f"{case(alias).strip()} is no format of MLX; {name} is taken, the nearest one"
    assert recipe.note == (told if is_other else "")


@pytest.mark.parametrize("alias", LLAMA_CPP)
def test_names_of_llama_cpp_mean_the_nearest_recipe_and_say_so(alias: str) -> None:
    recipe = read_recipe(alias)
    assert recipe.name == LLAMA_CPP[alias]
    assert recipe.note.startswith(f"{alias} is no format of MLX")


@pytest.mark.parametrize("alias", ["none", "None", "f16", "BF16", "fp16", "f32", "dense"])
def test_names_of_float_types_leave_weights_dense(alias: str) -> None:
    recipe = read_recipe(alias)
    assert (recipe.name, recipe.low, recipe.note) == ("none", None, "")
    assert recipe.format_of("model.layers.0.mlp.down_proj", 28) is None


@pytest.mark.parametrize("name", ["", "q9", "7", "7bit", "4bit-g", "mixed_4_8", "4bit-g64-g32"])
def test_an_unknown_name_is_told_with_those_there_are(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_recipe(name)
    told = str(caught.value)
    assert repr(name) in told or "4bit-g64" in told
    assert "\n" not in told and ("mixed_2_6" in told or "cannot have" in told)


def test_a_number_without_end_is_told_like_any_other() -> None:
    with pytest.raises(OptionError, match="unknown quantization"):
        read_recipe("4bit-g" + "9" * 5000)


@pytest.mark.parametrize("size", GROUP_SIZES)
@pytest.mark.parametrize("name", AFFINE)
def test_affine_formats_have_any_of_the_group_sizes(name: str, size: int) -> None:
    expected = Format(int(name[0]), size, "affine")
    suffixed, stated = read_recipe(f"{name}-g{size}"), read_recipe(name, size)
    assert suffixed == stated
    assert suffixed.low == suffixed.high == expected
    assert suffixed.name == str(expected) == (name if size == 64 else f"{name}-g{size}")
    assert read_recipe(suffixed.name) == suffixed, "its name can be read again"


def test_a_group_size_in_the_name_goes_before_the_stated_one() -> None:
    assert read_recipe("4bit-g32", 128) == read_recipe("4bit", 32)


def test_a_mixed_recipe_has_one_group_size() -> None:
    recipe = read_recipe("mixed_3_4", 128)
    assert (recipe.low, recipe.high) == (Format(3, 128, "affine"), Format(4, 128, "affine"))
    assert recipe.name == "mixed_3_4-g128"
    assert read_recipe(recipe.name) == recipe


@pytest.mark.parametrize("size", [0, 1, 16, 48, 63, 256])
def test_other_group_sizes_are_refused(size: int) -> None:
    message = f"4bit cannot have groups of {size}; expected 32 or 64 or 128"
    with pytest.raises(OptionError, match=message):
        read_recipe("Q4K", size)
    with pytest.raises(OptionError, match=message):
        read_recipe(f"4bit-g{size}")


@pytest.mark.parametrize(("name", "size"), [("mxfp4", 32), ("mxfp8", 32), ("nvfp4", 16)])
def test_formats_of_small_floats_have_their_own_group_size_only(name: str, size: int) -> None:
    # A size given beside the name is for affine formats, one in the name is for this one.
    assert read_recipe(name, 64) == read_recipe(name) == read_recipe(f"{name}-g{size}")
    with pytest.raises(OptionError, match=f"{name} cannot have groups of 64; expected {size}"):
        read_recipe(f"{name}-g64")


@pytest.mark.parametrize("depth", ["6", "28", "80"])
@pytest.mark.parametrize("name", ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"])
def test_mixed_recipes_give_the_bits_that_mlx_lm_gives(name: str, depth: str) -> None:
    recipe, recorded = read_recipe(name), GOLDEN["recipes"][name][depth]
    assert len(recorded) == 9, "seven matrices of a layer, the embedding and the head"
    for module, digits in recorded.items():
        paths = [module]
        if module not in ("lm_head", "model.embed_tokens"):
            paths = [f"model.layers.{layer}.{module}" for layer in range(int(depth))]
        formats = [recipe.format_of(path, int(depth)) for path in paths]
        assert formats == [Format(int(digit), 64, "affine") for digit in digits], module


def test_a_recording_of_every_mixed_recipe_is_there() -> None:
    assert list(GOLDEN["recipes"]) == [name for name in RECIPES if name.startswith("mixed")]


def test_a_plan_is_about_the_decoder_and_leaves_the_vision_tower_dense() -> None:
    plan = make_plan(TIED, read_recipe("4bit"))
    assert len(plan.formats) == 7 * LAYERS + 1
    assert set(plan.formats.values()) == {Format(4, 64, "affine")}
    assert not [path for path in plan.formats if path.startswith("visual.")]
    assert not plan.ungrouped


def test_only_an_untied_head_is_planned() -> None:
    head = {"lm_head": Format(4, 64, "affine")}
    tied, untied = (make_plan(config, read_recipe("4bit")).formats for config in (TIED, UNTIED))
    assert untied == tied | head


@pytest.mark.parametrize("size", ["2B", "7B", "72B"])
def test_every_matrix_of_the_published_decoders_makes_groups(size: str) -> None:
    config = Config.from_dict(hub_config(size))
    plan = make_plan(config, read_recipe("4bit", 128))
    heads = 1 if config.text.tie_word_embeddings else 2
    assert len(plan.formats) == 7 * config.text.num_hidden_layers + heads
    assert not plan.ungrouped


def test_bits_for_the_vision_tower_reach_its_blocks_and_merger_and_nothing_else() -> None:
    plan = make_plan(TIED, read_recipe("none"), vision=vision_recipe(8))
    assert set(plan.formats.values()) == {Format(8, 64, "affine")}
    assert len(plan.formats) == 4 * TIED.vision.depth + 2
    assert all(path.startswith(("visual.blocks.", "visual.merger.")) for path in plan.formats)


@pytest.mark.parametrize("bits", [None, 16])
def test_16_bits_leave_the_vision_tower_dense(bits: int | None) -> None:
    assert vision_recipe(bits) is None


@pytest.mark.parametrize("bits", [0, 1, 7, 32])
def test_other_bits_for_the_vision_tower_are_refused(bits: int) -> None:
    with pytest.raises(OptionError, match=f"unknown quantization '{bits}bit'"):
        vision_recipe(bits)


def test_the_patch_embedding_is_never_quantized(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text("/patch_embed/: 8bit-g32\n")  # 588 and 1176 make no groups of 32 either
    by_bits = make_plan(TIED, read_recipe("none"), vision=vision_recipe(8))
    by_rule = make_plan(TIED, read_recipe("4bit"), topology=Topology.from_file(file))
    for plan, size in ((by_bits, 64), (by_rule, 32)):
        assert PATCH_EMBED not in plan.formats
        assert plan.ungrouped == {PATCH_EMBED: f"its rows of 1176 make no groups of {size}"}


def test_rows_that_make_no_groups_stay_dense_and_are_told() -> None:
    plan = make_plan(TIED, read_recipe("4bit-g128"))  # the tiny MLP is 192 wide
    narrow = {f"model.layers.{layer}.mlp.down_proj" for layer in range(LAYERS)}
    assert plan.ungrouped == dict.fromkeys(narrow, "its rows of 192 make no groups of 128")
    assert len(plan.formats) == 6 * LAYERS + 1 and not narrow & set(plan.formats)


def test_nothing_to_quantize_is_no_statement() -> None:
    assert make_plan(TIED, read_recipe("none")).statement() is None


def test_a_statement_of_one_format_is_that_format() -> None:
    assert make_plan(TIED, read_recipe("mxfp4")).statement() == {
        "group_size": 32,
        "bits": 4,
        "mode": "mxfp4",
    }


def test_a_statement_names_what_differs_from_the_commonest_as_mlx_folders_do() -> None:
    recipe, vision = read_recipe("mixed_4_6"), vision_recipe(8)
    plan = make_plan(UNTIED, recipe, vision=vision)
    statement = plan.statement()
    assert statement is not None
    # Of three layers, the last is sensitive, as the last eighth and as every third.
    high = {"group_size": 64, "bits": 6, "mode": "affine"}
    tower = {"group_size": 64, "bits": 8, "mode": "affine"}
    blocks = [f"vision_tower.blocks.{block}" for block in range(TIED.vision.depth)]
    modules = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert statement == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "language_model.model.layers.2.self_attn.v_proj": high,
        "language_model.model.layers.2.mlp.down_proj": high,
        "language_model.lm_head": high,
        **{f"{block}.{module}": tower for block in blocks for module in modules},
        "vision_tower.merger.mlp.0": tower,
        "vision_tower.merger.mlp.2": tower,
        "vision_tower.patch_embed.proj": False,
    }


def test_the_commonest_format_stands_at_the_top_whatever_the_recipe_is(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text("text: 8bit\n")
    statement = make_plan(TIED, read_recipe("4bit"), topology=Topology.from_file(file)).statement()
    assert statement == {
        "group_size": 64,
        "bits": 8,
        "mode": "affine",
        "language_model.model.embed_tokens": {"group_size": 64, "bits": 4, "mode": "affine"},
    }


def test_topology_and_recipe_of_the_same_meaning_make_the_same_plan(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text("default: mixed_3_6\nvision: 8bit\n")
    by_rules = make_plan(UNTIED, read_recipe("none"), topology=Topology.from_file(file))
    by_name = make_plan(UNTIED, read_recipe("mixed_3_6"), vision=vision_recipe(8))
    assert by_rules.formats == by_name.formats
    assert by_rules.ungrouped == {} and list(by_name.ungrouped) == [PATCH_EMBED]


def test_a_topology_for_another_model_makes_no_plan(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(f"{LAYERS}: 4bit\n")
    with pytest.raises(OptionError, match=f"line 1: '{LAYERS}' came; the model has {LAYERS} text"):
        make_plan(TIED, read_recipe("4bit"), topology=Topology.from_file(file))
