"""Topologies: what each key means, which rule decides, and what is refused in which line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwenvl import OptionError
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.plan import make_plan
from mlx_qwenvl.weights.recipes import Format, read_recipe
from mlx_qwenvl.weights.topology import MAX_BYTES, Topology
from tests.golden.tiny_files import BLOCKS, LAYERS
from tests.golden.tiny_files import config as tiny_config
from tests.test_config import hub_config

TEXT_MATRICES = [f"self_attn.{name}_proj" for name in "qkvo"]
TEXT_MATRICES += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
VISION_MATRICES = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
MERGER = ["visual.merger.mlp.0", "visual.merger.mlp.2"]
TEXT = [f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in TEXT_MATRICES]
VISION = [f"visual.blocks.{block}.{name}" for block in range(BLOCKS) for name in VISION_MATRICES]
PATCH_EMBED = "visual.patch_embed.proj"
PATHS = [*TEXT, "model.embed_tokens", "lm_head", *VISION, *MERGER, PATCH_EMBED]

UNTIED = Config.from_dict(tiny_config("hub", tied=False, dtype="float32"))
TIED = Config.from_dict(tiny_config("hub", tied=True, dtype="float32"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rules.yml"


def topology(file: Path, text: str, group_size: int | None = None) -> Topology:
    file.write_text(text, encoding="utf-8")
    return Topology.from_file(file, group_size)


def names(read: Topology) -> dict[str, str]:
    """Recipe of every matrix that a rule speaks of."""
    recipes = {path: read.recipe_of(path) for path in PATHS}
    return {path: recipe.name for path, recipe in recipes.items() if recipe is not None}


def layers(*numbers: int) -> list[str]:
    return [path for path in TEXT if int(path.split(".")[2]) in numbers]


def blocks(*numbers: int) -> list[str]:
    return [path for path in VISION if int(path.split(".")[2]) in numbers]


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        ("0-2", layers(0, 1)),
        ("1", layers(1)),
        ("  0 -  2 ", layers(0, 1)),
        ("text", TEXT),
        ("TEXT", TEXT),
        ("text 1-3", layers(1, 2)),
        ("Text  1 - 3", layers(1, 2)),
        ("text 2", layers(2)),
        ("vision", [*VISION, *MERGER]),
        ("vision 0-2", blocks(0, 1)),
        ("vision 1", blocks(1)),
        ("merger", MERGER),
        ("embeddings", ["model.embed_tokens"]),
        ("head", ["lm_head"]),
        ("default", [*TEXT, "model.embed_tokens", "lm_head"]),
        (r"/mlp\.down_proj/", [path for path in TEXT if path.endswith("mlp.down_proj")]),
        (r"/^model\.layers\.1\..*\.weight$/", layers(1)),
        (r"/visual\..*/", [*VISION, *MERGER, PATCH_EMBED]),
        (r"/^(?!visual)/", [*TEXT, "model.embed_tokens", "lm_head"]),
        (r"/MLP/", []),
        (r"/(?i)MLP\.GATE/", [path for path in TEXT if path.endswith("mlp.gate_proj")]),
    ],
)
def test_a_key_means_these_matrices_and_no_others(file: Path, key: str, paths: list[str]) -> None:
    assert names(topology(file, f"{json.dumps(key)}: 4bit\n")) == dict.fromkeys(paths, "4bit")


@pytest.mark.parametrize(
    "pattern",
    [
        r"model\.layers\.\d+\.mlp\.",
        r"model\.language_model\.layers\.\d+\.mlp\.",
        r"language_model\.model\.layers\.\d+\.mlp\.",
    ],
)
def test_a_regex_may_speak_any_dialect_of_names(file: Path, pattern: str) -> None:
    found = names(topology(file, f"'/{pattern}/': 4bit\n"))
    assert list(found) == [path for path in TEXT if ".mlp." in path]


@pytest.mark.parametrize("pattern", [r"^vision_tower\.merger", r"^model\.visual\.merger"])
def test_a_regex_may_speak_any_dialect_of_the_vision_tower(file: Path, pattern: str) -> None:
    assert list(names(topology(file, f"'/{pattern}/': 4bit\n"))) == MERGER


@pytest.mark.parametrize(
    ("text", "path", "recipe"),
    [
        # Two of one kind: ranges by their ends and then by order, regular expressions by order.
        ("0-2: 4bit\n0-3: 8bit", "model.layers.0.mlp.up_proj", "8bit"),
        ("0-3: 8bit\n0-2: 4bit", "model.layers.0.mlp.up_proj", "8bit"),
        ("0-3: 8bit\n1-3: 4bit", "model.layers.1.mlp.up_proj", "4bit"),
        ("1-3: 4bit\n0-3: 8bit", "model.layers.1.mlp.up_proj", "8bit"),
        ("1-3: 4bit\n0-3: 8bit", "model.layers.0.mlp.up_proj", "8bit"),
        ("1: 4bit\ntext 0-3: 8bit", "model.layers.1.mlp.up_proj", "8bit"),
        ("text 1: 4bit\n1: 8bit", "model.layers.1.mlp.up_proj", "8bit"),
        ("/mlp/: 4bit\n/up_proj/: 8bit", "model.layers.1.mlp.up_proj", "8bit"),
        ("/up_proj/: 4bit\n/mlp/: 8bit", "model.layers.1.mlp.up_proj", "8bit"),
        # The closer before the wider, in either order.
        ("/mlp/: 4bit\n0-3: 8bit", "model.layers.1.mlp.up_proj", "4bit"),
        ("0-3: 8bit\n/mlp/: 4bit", "model.layers.1.mlp.up_proj", "4bit"),
        ("0-3: 8bit\n/mlp/: 4bit", "model.layers.1.self_attn.q_proj", "8bit"),
        ("0-3: 4bit\ntext: 8bit", "model.layers.1.mlp.up_proj", "4bit"),
        ("text: 8bit\n0-3: 4bit", "model.layers.1.mlp.up_proj", "4bit"),
        ("text: 4bit\ndefault: 8bit", "model.layers.1.mlp.up_proj", "4bit"),
        ("default: 8bit\ntext: 4bit", "model.layers.1.mlp.up_proj", "4bit"),
        ("default: 8bit\ntext: 4bit", "lm_head", "8bit"),
        ("embeddings: 6bit\ndefault: 8bit", "model.embed_tokens", "6bit"),
        ("merger: 4bit\nvision: 8bit", "visual.merger.mlp.2", "4bit"),
        ("vision: 8bit\nmerger: 4bit", "visual.merger.mlp.2", "4bit"),
        ("vision: 8bit\nmerger: 4bit", "visual.blocks.0.attn.qkv", "8bit"),
        ("vision 0: 4bit\nvision: 8bit", "visual.blocks.0.attn.qkv", "4bit"),
        ("merger: 4bit\n/visual/: 8bit", "visual.merger.mlp.2", "8bit"),
    ],
)
def test_the_rule_that_goes_before_decides(file: Path, text: str, path: str, recipe: str) -> None:
    assert names(topology(file, text))[path] == recipe


RECIPES = ("none", "2bit", "3bit", "4bit", "5bit", "6bit", "8bit", "mixed_4_6", "mxfp4")
KEYS = st.one_of(
    st.sampled_from(["text", "vision", "merger", "embeddings", "head", "default"]),
    st.sampled_from(["/mlp/", "/attn/", r"/\.0\./", "/visual/", "/_proj/", "/embed|head/", "//"]),
    st.builds(
        lambda part, first, count: f"{part}{first}-{first + count}",
        st.sampled_from(["", "text ", "vision "]),
        st.integers(0, 2),
        st.integers(1, 3),
    ),
    st.builds(lambda part, n: f"{part}{n}", st.sampled_from(["", "vision "]), st.integers(0, 2)),
)


def naive_recipe(path: str, rules: list[tuple[str, str]]) -> str | None:
    """What the documented order of precedence gives, rule by rule."""
    regexes = [r for key, r in rules if key[0] == "/" and re.search(key[1:-1], f"{path}.weight")]
    if regexes:
        return regexes[-1]
    is_text, is_block = path.startswith("model.layers."), path.startswith("visual.blocks.")
    best_end, best = 0, None
    for key, recipe in rules:
        if not key[-1].isdigit() or key.startswith("vision ") != is_block:
            continue
        first, _, last = key.split()[-1].partition("-")
        end = int(last) if last else int(first) + 1
        is_meant = (is_text or is_block) and int(first) <= int(path.split(".")[2]) < end
        if is_meant and end >= best_end:
            best_end, best = end, recipe
    if best is not None:
        return best
    parts = dict(rules)
    if path.startswith("visual.merger."):
        return parts.get("merger", parts.get("vision"))
    if path.startswith("visual."):
        return parts.get("vision") if is_block else None
    part = "text" if is_text else "head" if path == "lm_head" else "embeddings"
    return parts.get(part, parts.get("default"))


@settings(deadline=None, max_examples=300)
@given(
    rules=st.lists(st.tuples(KEYS, st.sampled_from(RECIPES)), min_size=1, unique_by=lambda r: r[0])
)
def test_every_matrix_gets_what_a_naive_reading_of_the_precedence_gives(
    tmp_path_factory: pytest.TempPathFactory, rules: list[tuple[str, str]]
) -> None:
    file = tmp_path_factory.getbasetemp() / "precedence.yml"
    found = names(topology(file, "".join(f"{json.dumps(k)}: {r}\n" for k, r in rules)))
    expected = {path: naive_recipe(path, rules) for path in PATHS}
    assert found == {path: recipe for path, recipe in expected.items() if recipe is not None}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("4", Format(4, 64, "affine")),
        ("4bit", Format(4, 64, "affine")),
        ("'4bit-g32'", Format(4, 32, "affine")),
        ("Q4K", Format(4, 64, "affine")),
        ("mxfp4", Format(4, 32, "mxfp4")),
        ("none", None),
        ("{isq: Q8_0}", Format(8, 64, "affine")),
        ("{isq: 8}", Format(8, 64, "affine")),
        ("{quantize: 6bit}", Format(6, 64, "affine")),
        ("{Quantize: 6bit}", Format(6, 64, "affine")),
        ("{quantize: 6bit, group_size: 128}", Format(6, 128, "affine")),
        ("{isq: afq3, device: 'metal[0]'}", Format(3, 64, "affine")),
        ("{quantize: mxfp8, group_size: 32}", Format(8, 32, "mxfp8")),
    ],
)
def test_a_value_means_this_format(file: Path, value: str, expected: Format | None) -> None:
    recipe = topology(file, f"text: {value}").recipe_of("model.layers.0.mlp.up_proj")
    assert recipe is not None
    assert recipe.low == expected


def test_a_mixed_recipe_keeps_its_two_formats(file: Path) -> None:
    recipe = topology(file, "text: mixed_4_6").recipe_of("model.layers.0.mlp.up_proj")
    assert recipe == read_recipe("mixed_4_6")


def test_a_group_size_for_all_is_for_affine_rules_that_state_none(file: Path) -> None:
    text = "0: 4bit\n1: {quantize: 4bit, group_size: 32}\n2: mxfp4\nvision: none\nhead: 8bit-g64\n"
    read = topology(file, text, group_size=128)
    paths = [f"model.layers.{layer}.mlp.up_proj" for layer in range(3)]
    found = {path: recipe.low for path in [*paths, "lm_head"] if (recipe := read.recipe_of(path))}
    assert [form.group_size if form else None for form in found.values()] == [128, 32, 32, 64]
    assert names(read)["visual.merger.mlp.0"] == "none"


@pytest.mark.parametrize("device", ["cpu", "cuda[0]", "metal[12]"])
def test_a_rule_that_only_places_layers_is_none(file: Path, device: str) -> None:
    read = topology(file, f"0-2: 4bit\n1-3:\n  device: {device}\n")
    assert names(read) == dict.fromkeys(layers(0, 1), "4bit")
    assert len(read.notes) == 1 and "devices are ignored" in read.notes[0]


def test_every_note_is_given_once(file: Path) -> None:
    read = topology(
        file,
        "0: {isq: Q4K, device: cpu}\n1: {isq: Q4K, device: 'cuda[0]'}\n2: Q8_0\nvision: 4bit\n",
    )
    assert sorted(note.split()[0] for note in read.notes) == ["Q4K", "Q8_0", "the"]


def test_own_names_need_no_note(file: Path) -> None:
    assert topology(file, "text: mixed_4_6\n0: 8\n1: afq4\nvision: none\n").notes == ()


def test_a_byte_order_mark_and_windows_line_ends_are_no_obstacle(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf# rules\r\ntext: 4bit\r\nhead: 8bit\r\n")
    assert [rule.line for rule in Topology.from_file(file).rules] == [2, 3]


# As in mistral.rs's own examples: a gap between ranges, devices, regular expressions.
MISTRAL_RANGES = """
# the first layers
0-1:
  isq: Q3K
  device: cuda[0]
# 1 is skipped
2-3:
  isq: Q8_0
  device: cpu
"""
MISTRAL_REGEXES = r"""
'/model\.language_model\.layers\.(\d+)\.self_attn\..*$/':
  isq: afq6
'/model\.language_model\.layers\.(\d+)\.mlp\..*$/':
  isq: AFQ2
/visual\..*/:
  isq: q8_0
"""


def test_ranges_of_mistral_rs_are_about_decoder_layers_and_leave_gaps(file: Path) -> None:
    read = topology(file, MISTRAL_RANGES)
    read.check(TIED)
    expected = dict.fromkeys(layers(0), "3bit") | dict.fromkeys(layers(2), "8bit")
    assert names(read) == expected


def test_regexes_of_mistral_rs_reach_what_they_name(file: Path) -> None:
    read = topology(file, MISTRAL_REGEXES)
    read.check(TIED)
    found = names(read)
    assert {found[path] for path in TEXT if "self_attn" in path} == {"6bit"}
    assert {found[path] for path in TEXT if ".mlp." in path} == {"2bit"}
    assert {found[path] for path in [*VISION, *MERGER]} == {"8bit"}
    assert not {"model.embed_tokens", "lm_head"} & set(found)


def test_the_example_of_the_documentation_means_what_it_says(file: Path) -> None:
    page = Path(__file__).parent.parent.joinpath("docs", "topology.md").read_text("utf-8")
    example = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)[0]
    config = Config.from_dict(hub_config("2B"))
    plan = make_plan(config, read_recipe("none"), topology=topology(file, example))
    bits = {path: form.bits for path, form in plan.formats.items()}
    layer = "model.layers.{}.mlp.{}_proj".format
    assert [bits[layer(n, "up")] for n in (0, 1, 2, 25, 26, 27)] == [8, 8, 4, 4, 4, 4]
    assert [bits[layer(n, "down")] for n in (1, 2, 25, 26, 27)] == [8, 4, 4, 6, 6]
    assert {bits[f"model.layers.{n}.self_attn.v_proj"] for n in range(28)} == {8}
    assert plan.formats["model.embed_tokens"] == Format(6, 32, "affine")
    assert {bits[path] for path in bits if path.startswith("visual.")} == {8}
    assert not [path for path in bits if path.startswith("visual.merger.")]
    assert not plan.ungrouped


def test_a_plan_follows_the_topology_and_then_the_recipe(file: Path) -> None:
    read = topology(file, "0: none\nvision 1: 8bit\nembeddings: 6bit\n")
    formats = make_plan(UNTIED, read_recipe("4bit"), topology=read).formats
    assert {path: form.bits for path, form in formats.items()} == (
        dict.fromkeys([*layers(1, 2), "lm_head"], 4)
        | dict.fromkeys(blocks(1), 8)
        | {"model.embed_tokens": 6}
    )


@pytest.mark.parametrize(
    "key", ["2", "0-3", "text 2-3", "vision 0-2", "vision 1", "head", r"/lm_head/", "/visual/"]
)
def test_rules_about_what_the_model_has_pass(file: Path, key: str) -> None:
    topology(file, f"{key}: 4bit").check(UNTIED)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("3", "'3' came; the model has 3 text layers, 0 to 2"),
        ("text 28-32", "'text 28-32' came; the model has 3 text layers, 0 to 2"),
        ("vision 2", "'vision 2' came; the model has 2 vision layers, 0 to 1"),
        ("head", "'head' came; this model's head is its embedding; say embeddings instead"),
        ("/lm_head/", "'/lm_head/' came; no matrix of the model has such a name; one is model.l"),
        (r"/language_model\.x/", "one is model.language_model.layers.0.mlp.down_proj.weight"),
    ],
)
def test_rules_about_what_the_model_lacks_are_refused(file: Path, key: str, message: str) -> None:
    read = topology(file, f"default: 4bit\n\n{json.dumps(key)}: 8bit\n")
    with pytest.raises(OptionError, match=re.escape(f"{file} line 3: ")) as caught:
        read.check(TIED)
    assert message in str(caught.value)


def test_a_range_that_ends_beyond_the_model_holds_as_far_as_there_are_layers(file: Path) -> None:
    read = topology(file, "default: 4bit\n1-32: 8bit\n")
    note = f"{file} line 2: '1-32': the model has 3 text layers, 0 to 2"
    assert read.check(TIED) == [note]
    plan = make_plan(TIED, read_recipe("none"), topology=read)
    assert plan.notes == (note,)
    bits = {path: form.bits for path, form in plan.formats.items()}
    assert bits == dict.fromkeys([*layers(0), "model.embed_tokens"], 4) | dict.fromkeys(
        layers(1, 2), 8
    )


def test_the_first_of_several_refused_rules_is_told(file: Path) -> None:
    with pytest.raises(OptionError, match="line 2: 'vision 7'"):
        topology(file, "0: 4bit\nvision 7: 4bit\n/nothing/: 4bit\n9: 4bit\n").check(TIED)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("4bit: [", 1, "expected YAML"),
        ("0: 4bit\n1: 4bit\n\ttext: 8bit", 3, "expected YAML"),
        ("0: 4bit\n1: 'x", 2, "expected YAML"),
        ("0: 4bit\n1: \x01", 2, "an unprintable character; expected YAML"),
        ("0: 4bit\n---\n1: 4bit", 2, "a second document came; expected one"),
        ("\n4bit\n", 2, "'4bit' came; expected parts and their recipes"),
        ("- 0: 4bit", 1, "a list came; expected parts and their recipes"),
        ("0: 4bit\n1: 4bit\n0: 8bit", 3, "'0' stands in line 1 too"),
        ("0-2: 4bit\n0 - 2: 8bit", 2, "'0 - 2' stands in line 1 too"),
        ("text: 4bit\nTEXT: 8bit", 2, "'TEXT' stands in line 1 too"),
        ("/a/: 4bit\n/A/: 4bit\n/a/: 8bit", 3, "'/a/' stands in line 1 too"),
        ("0:\n  isq: 4\n  isq: 5", 3, "'isq' stands in line 2 too"),
        ("0: 4bit\n8-8: 4bit", 2, "'8-8' holds no layer, because the end is exclusive"),
        ("8-4: 4bit", 1, "'8-4' holds no layer, because the end is exclusive; expected an end a"),
        ("vision 2-0: 4bit", 1, "the end is exclusive"),
        ("0: 4bit\n-1: 4bit", 2, "'-1' is negative"),
        ("0--1: 4bit", 1, "'0--1' is negative"),
        ("vision -2: 4bit", 1, "'vision -2' is negative"),
        ("0: 4bit\nvison: 4bit", 2, "unknown part 'vison'; expected layers such as 0-8, a /regex/"),
        ("tower: 4", 1, "one of text, vision, merger, embeddings, head, default"),
        ("0-: 4bit", 1, "unknown part '0-'"),
        ("0-1-2: 4bit", 1, "unknown part '0-1-2'"),
        ("1 2: 4bit", 1, "unknown part '1 2'"),
        ("0.5: 4bit", 1, "unknown part '0.5'"),
        ("/: 4bit", 1, "unknown part '/'"),
        ("'': 4bit", 1, "unknown part ''"),
        ("? 'a\n\n  b'\n: 4bit", 1, r"unknown part 'a\nb'"),
        (f"{'x' * 99}: 4bit", 1, "xxx...'"),
        (f"{'9' * 99}: 4bit", 1, "unknown part '999"),
        ("merger 0: 4bit", 1, "'merger 0' came, but merger has no layers; expected merger"),
        ("0: 4bit\n/(/: 4bit", 2, "'(' came; expected a regular expression of Python: missing )"),
        ("/[[:digit:]]/: 4bit", 1, "expected a regular expression of Python"),
        ("/a{99999999999999}/: 4bit", 1, "expected a regular expression of Python"),
        ("0: 4bit\n1: q9", 2, "unknown quantization 'q9'; expected one of none, 2bit"),
        ("0:\n  device: cpu\n  isq: q9", 3, "unknown quantization 'q9'"),
        ("0: ~", 1, "unknown quantization '~'"),
        ("0: 4bit\n1:", 2, "'' came; expected a recipe such as 4bit"),
        ("0: 4.0", 1, "unknown quantization '4.0'"),
        ("0: true", 1, "unknown quantization 'true'"),
        ("0: [4bit]", 1, "a list came; expected a recipe such as 4bit"),
        ("0:\n  quantize: {bits: 4}", 2, "a mapping came as quantize; expected one word"),
        (f"0: {'x' * 99}", 1, "expected a recipe such as 4bit"),
        ("? [1, 2]\n: 4bit", 1, "a list came as a key"),
        ("0:\n  quantise: 4bit", 2, "unknown key 'quantise'; expected quantize, isq, group_size"),
        ("0:\n  bits: 4", 2, "unknown key 'bits'"),
        ("0: {}", 1, "neither quantize nor isq came"),
        ("0: {group_size: 64}", 1, "neither quantize nor isq came"),
        ("0: {isq: 4, quantize: 4}", 1, "both quantize and isq came"),
        ("0:\n  isq: 4\n  group_size: 48", 3, "4bit cannot have groups of 48; expected 32 or 64"),
        ("0:\n  isq: 4\n  group_size: small", 3, "group_size is 'small'; expected a whole number"),
        ("0:\n  isq: 4\n  group_size: -32", 3, "group_size is '-32'"),
        ("0:\n  isq: mxfp4\n  group_size: 64", 3, "group_size is 64, but mxfp4 came"),
        ("0:\n  isq: 4bit-g32\n  group_size: 64", 3, "group_size is 64, but 4bit-g32 came"),
        ("0:\n  isq: 4\n  device: cuda", 3, "device is 'cuda'; expected cpu, cuda[N] or metal[N]"),
        ("9-3:\n  device: cpu", 1, "the end is exclusive"),
        ("0: &a 4bit\n1: *a", 2, "the alias *a came"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]", 2, "the alias *a came"),
        ("0: *a", 1, "the alias *a came"),
        ("0: &a {isq: *a}", 1, "the alias *a came"),
        ("0: " + "[" * 50, 1, "deeper nesting"),
    ],
)
def test_a_mistake_is_told_with_its_line(file: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        topology(file, text)
    told = str(caught.value)
    assert told.startswith(f"{file} line {line}: ") and message in told
    assert "\n" not in told and len(told) < len(str(file)) + 300


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\n\n"])
def test_an_empty_file_is_told(file: Path, text: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(str(file))}.*expected") as caught:
        topology(file, text)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf_8_is_told_with_its_line(file: Path) -> None:
    file.write_bytes(b"0: 4bit\n# caf\xe9\n")
    with pytest.raises(OptionError, match="line 2: not UTF-8; expected YAML"):
        Topology.from_file(file)


def test_a_missing_file_is_told(file: Path) -> None:
    with pytest.raises(OptionError, match=r"rules\.yml is missing; expected a topology"):
        Topology.from_file(file)


@pytest.mark.parametrize("name", ["", "rules.yml/more", "nul\0"])
def test_a_path_that_is_no_file_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "rules.yml").write_text("0: 4bit")
    with pytest.raises(OptionError, match="cannot be read: "):
        Topology.from_file(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_told(file: Path) -> None:
    file.write_text("0: 4bit")
    file.chmod(0)
    with pytest.raises(OptionError, match="cannot be read: Permission denied"):
        Topology.from_file(file)


@pytest.mark.parametrize("text", ["[" * 200_000, "{a: " * 50_000, "- " * 100_000])
def test_endless_nesting_is_refused_at_once(file: Path, text: str) -> None:
    with pytest.raises(OptionError, match="line 1: deeper nesting"):
        topology(file, text)


def test_a_huge_file_is_refused_unread(file: Path) -> None:
    with file.open("wb") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(OptionError, match=f"more than the {MAX_BYTES} bytes of a topology"):
        Topology.from_file(file)


YAMLISH = st.text(
    st.sampled_from("0129-: \n\t'\"/()[]{}*&!?%@|>~#.,abtextvision4bitisq"), max_size=60
)


@settings(deadline=None, max_examples=300)
@given(content=st.one_of(st.binary(max_size=60), YAMLISH.map(str.encode)))
def test_whatever_a_file_holds_is_rules_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "anything.yml"
    file.write_bytes(content)
    try:
        Topology.from_file(file)
    except OptionError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
