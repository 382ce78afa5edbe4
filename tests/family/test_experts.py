"""Experts: routing by its definition, whatever the number of rows and however matrices are kept."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl import load
from mlx_qwenvl.models.experts import SORTED_ROWS, ExpertLinear, Router, SparseMLP, can_be_quantized
from mlx_qwenvl.models.experts_config import ExpertsConfig, ExpertsTextConfig
from mlx_qwenvl.models.families import build
from mlx_qwenvl.weights.describe import describe
from mlx_qwenvl.weights.files import list_tensors, read_rows
from mlx_qwenvl.weights.quantize import dequantized, quantized_module, quantized_tensors
from mlx_qwenvl.weights.recipes import Format
from tests.golden.younger import CHOSEN, DENSE_LAYERS, EXPERTS, write_younger, younger_weights

MEMBER = "qwen3_vl_moe"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExpertsConfig:
    found = ExpertsConfig.from_folder(write_younger(tmp_path_factory.mktemp("experts"), MEMBER))
    assert isinstance(found, ExpertsConfig)
    return found


def mlp(config: ExpertsConfig) -> SparseMLP:
    made = SparseMLP(config.text)
    rng = np.random.default_rng(3)
    for name, module in made.named_modules():
        if "weight" in module:
            spread = 2.0 if name == "gate" else 0.1
            module.weight = mx.array(rng.normal(0, spread, module.weight.shape).astype(np.float32))
    return made


def by_definition(layer: SparseMLP, x: np.ndarray, dense: dict[str, np.ndarray]) -> np.ndarray:
    """Every token by itself, in float64."""
    out = np.zeros_like(x, dtype=np.float64)
    for i, token in enumerate(x.astype(np.float64)):
        scores = np.exp(np.array(layer.gate.weight, dtype=np.float64) @ token)
        scores /= scores.sum()
        best = np.argsort(-scores)[:CHOSEN]
        for expert in best:
            gate, up = (dense[name][expert] @ token for name in ("gate_proj", "up_proj"))
            made = dense["down_proj"][expert] @ (gate / (1 + np.exp(-gate)) * up)
            out[i] += scores[expert] / scores[best].sum() * made
    return out


@pytest.mark.parametrize("rows", [1, 5, SORTED_ROWS // CHOSEN, 200])
@pytest.mark.parametrize("form", [None, Format(8, 32, "affine"), Format(4, 32, "mxfp4")], ids=str)
@pytest.mark.parametrize("merged", [True, False], ids=["merged", "apart"])
def test_each_token_gets_what_its_experts_make(
    config: ExpertsConfig, rows: int, form: Format | None, merged: bool
) -> None:
    layer, dense = mlp(config), {}
    for name in ("gate_proj", "up_proj", "down_proj"):
        module = layer.switch_mlp[name]
        weight = module.weight
        if form is not None:
            parts = quantized_tensors("m", weight, form)
            layer.switch_mlp[name] = quantized_module(module, form)
            layer.switch_mlp[name].update({n.removeprefix("m."): a for n, a in parts.items()})
            weight = dequantized({n.removeprefix("m."): a for n, a in parts.items()}, form)
        dense[name] = np.array(weight.astype(mx.float32), dtype=np.float64)
    if merged:
        layer.merge_projections()
        assert "gate_up_proj" in layer.switch_mlp and "up_proj" not in layer.switch_mlp
    x = (
        np.random.default_rng(rows)
        .normal(0, 0.5, (rows, config.text.hidden_size))
        .astype(np.float32)
    )
    np.testing.assert_allclose(
        np.array(layer(mx.array(x))), by_definition(layer, x, dense), rtol=0, atol=2e-4
    )


def test_the_hubs_tensors_are_parts_turned_the_other_way(tmp_path: Path) -> None:
    folder, weights = write_younger(tmp_path, MEMBER), younger_weights(MEMBER)
    found = list_tensors(folder)
    hub = weights["model.language_model.layers.0.mlp.experts.gate_up_proj"]
    half = hub.shape[2] // 2
    for name, columns in (("gate_proj", hub[:, :, :half]), ("up_proj", hub[:, :, half:])):
        tensor = found[f"model.layers.0.mlp.switch_mlp.{name}.weight"]
        assert tensor.shape == (EXPERTS, half, hub.shape[1])
        rows = np.array(read_rows(tensor, 1, 4))
        assert np.array_equal(rows, columns.transpose(0, 2, 1)[1:4])
    stored = sum(array.nbytes for array in weights.values())
    assert sum(tensor.nbytes for tensor in found.values()) == stored


def test_routers_stay_dense_and_layers_without_experts_are_plain(config: ExpertsConfig) -> None:
    model = build(config)
    routers = [path for path, module in model.named_modules() if isinstance(module, Router)]
    layers = set(range(config.text.num_hidden_layers)) - set(DENSE_LAYERS)
    assert routers and {int(path.split(".")[2]) for path in routers} == layers
    assert not any(can_be_quantized(m) for m in model.modules() if isinstance(m, Router))
    assert all(can_be_quantized(m) for m in model.modules() if isinstance(m, ExpertLinear))


def test_a_router_that_others_have_quantized_is_read(tmp_path: Path) -> None:
    folder = write_younger(tmp_path, MEMBER)
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    path = "model.language_model.layers.0.mlp.gate"
    tensors |= quantized_tensors(path, tensors[f"{path}.weight"], Format(8, 64, "affine"))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    vlm = load(folder, dtype="float32")
    assert vlm.model.layers[0].mlp.gate.bits == 8
    assert np.isfinite(vlm.logits("Why?")).all()


def test_experts_are_told_in_words(config: ExpertsConfig) -> None:
    assert config.text.mlp_words == "6 experts of 96, 2 a token"


def test_a_step_of_decoding_reads_the_experts_of_one_token(tmp_path: Path) -> None:
    folder = write_younger(tmp_path, MEMBER)
    config = ExpertsConfig.from_folder(folder)
    assert isinstance(config.text, ExpertsTextConfig)
    described = describe(config, list_tensors(folder))
    sizes = {part.name: part.loaded_bytes(4) for part in described.parts}
    assert config.text.active_experts == Fraction(CHOSEN, EXPERTS)
    expected = sizes["decoder"] + sizes["embeddings"] + sizes["experts"] * CHOSEN // EXPERTS
    assert described.read_bytes_per_token(4) == expected
