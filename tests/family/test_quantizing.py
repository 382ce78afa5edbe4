"""Every member converts, quantizes at load and comes back, as Qwen2-VL does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from convert.convert import Wishes, convert
from convert.dequantize import dequantize
from convert.learning.learn import learn
from convert.pictures import builtin_pictures
from mlx_qwenvl import load
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.weights.bundle import open_bundle
from mlx_qwenvl.weights.describe import describe
from mlx_qwenvl.weights.files import list_tensors
from mlx_qwenvl.weights.topology import Topology
from tests.conversions import (
    answer,
    assert_same_weights,
    plan_for,
    quantized_at_load,
    tensors_in,
    weights_of,
)
from tests.golden.younger import younger_weights


@pytest.mark.parametrize(
    ("recipe", "group_size", "vision_bits"),
    [("4bit", 32, 8), ("mixed_2_6", 64, None), ("mxfp4", None, None)],
)
def test_converting_and_quantizing_at_load_give_the_same_model(
    folder: Path, tmp_path: Path, recipe: str, group_size: int | None, vision_bits: int | None
) -> None:
    wishes = Wishes((recipe,), group_size=group_size, vision_bits=vision_bits)
    convert(folder, tmp_path / "out", wishes)
    at_load = quantized_at_load(folder, recipe, group_size=group_size, vision_bits=vision_bits)
    found = load(tmp_path / "out")
    assert_same_weights(found.model, at_load)
    assert np.isfinite(answer(found)).all()


def test_a_topology_reaches_every_part(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "topology.yml"
    file.write_text("text: 4bit-g32\nvision: 8bit-g32\nembeddings: none\ntext 0: none\n")
    rules = Topology.from_file(file)
    vlm = load(folder, dtype="float32", topology=file)
    modules = dict(vlm.model.named_modules())
    first, last = vlm.model.layers[0], vlm.model.layers[-1]
    assert not any(hasattr(m, "bits") for m in first.modules())
    bits = {m.bits for m in last.modules() if hasattr(m, "bits")}
    assert bits == {4}
    assert modules["visual.blocks.0.attn.qkv"].bits == 8
    assert rules.check(vlm.config) == []


def test_a_dense_copy_of_a_quantized_one_has_the_hubs_names(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "quantized", Wishes(("8bit",), group_size=32))
    dequantize(tmp_path / "quantized", tmp_path / "dense")
    assert list_tensors(tmp_path / "dense").keys() == list_tensors(folder).keys()
    assert tensors_in(tmp_path / "dense").keys() == tensors_in(folder).keys()
    raw = [json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "dense")]
    assert raw[0] == raw[1]
    source, back = load(folder, dtype="float32"), load(tmp_path / "dense", dtype="float32")
    error = np.abs(answer(source) - answer(back))
    if hasattr(source.config.text, "num_experts"):
        # Of most numbers: where rounding makes a router choose otherwise, a token is another.
        assert 0 < np.median(error) < 0.05
    else:
        assert 0 < error.max() < 0.5


def test_a_dense_copy_answers_the_same(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "copy", "none")
    assert np.array_equal(answer(load(tmp_path / "copy")), answer(load(folder)))


def test_the_same_wishes_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        convert(folder, tmp_path / name, Wishes(("4bit",), group_size=32))
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "other")


def test_rounding_can_be_learned(folder: Path, tmp_path: Path) -> None:
    config = Config.from_folder(folder)
    plan = plan_for(folder, "3bit", group_size=32)
    with open_bundle(folder) as bundle:
        learn(bundle, config, plan, builtin_pictures(0, 2), tmp_path / "learned", answer_tokens=0)
    names = {name for name in tensors_in(tmp_path / "learned") if name.endswith(".weight")}
    in_layers = {
        path
        for path in plan.formats
        if path.startswith("model.layers.") and ".switch_mlp." not in path  # which are rounded
    }
    assert names == {f"{path}.weight" for path in in_layers}


def test_every_weight_is_counted_in_its_part(folder: Path, member: str) -> None:
    described = describe(Config.from_folder(folder), list_tensors(folder))
    weights = younger_weights(member)
    assert described.parameters == sum(array.size for array in weights.values())
    assert load(folder).loaded.parameters == described.parameters
    tower = sum(a.size for n, a in weights.items() if "visual." in n and "merger" not in n)
    assert next(p for p in described.parts if p.name == "vision tower").parameters == tower
