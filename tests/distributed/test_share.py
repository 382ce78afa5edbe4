"""A decoder in parts: what ranks compute together is what one computes alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.processor import Processor
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import build
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.models.share import Share, keep_columns, keep_rows
from mlx_qwenvl.weights import parts
from mlx_qwenvl.weights.bundle import open_bundle
from mlx_qwenvl.weights.load import lazy_model, load_model, parts_of
from mlx_qwenvl.weights.memory import weight_bytes
from mlx_qwenvl.weights.parts import Part
from mlx_qwenvl.weights.plan import make_plan
from mlx_qwenvl.weights.recipes import read_recipe
from tests.distributed.checkpoints import with_more_heads
from tests.distributed.threads import in_threads
from tests.golden.younger import MEMBERS, write_younger

IDS = np.arange(5, 25, dtype=np.int32)


@pytest.fixture(scope="module")
def four_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose key-value heads four ranks can share."""
    return with_more_heads(tmp_path_factory.mktemp("four"), 2)


def loaded(folder: Path, recipe: str = "none", share: Share | None = None) -> Model:
    """A model, or one rank's part of it."""
    with open_bundle(folder) as bundle:
        config = Config.from_folder(bundle.folder)
        normalization = Processor.from_folder(bundle.folder).normalization
        plan, tensors = make_plan(config, read_recipe(recipe)), bundle.tensors
        if share is not None:
            tensors = parts_of(tensors, config, plan, share)
        return load_model(tensors, config, normalization, dtype="float32", plan=plan, share=share)


def logits(model: Model) -> np.ndarray:
    """Of a prompt, and of a token behind it from the cache."""
    cache = model.make_cache()
    first = model(mx.array(IDS[None, :-1]), cache)
    second = model(mx.array(IDS[None, -1:]), cache)
    return np.array(mx.concatenate([first, second], axis=1))


@pytest.mark.parametrize(
    ("recipe", "size", "pads"),
    [
        ("none", 2, "off"),
        ("none", 4, "off"),
        ("4bit-g32", 2, "off"),
        ("4bit-g32", 2, "on"),
        ("mxfp4", 2, "off"),
        ("mixed_3_6-g32", 2, "off"),
    ],
)
def test_ranks_compute_together_what_one_computes(
    four_heads: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, size: int, pads: str
) -> None:
    monkeypatch.setenv("MLX_QWENVL_PAD_MLP", pads)
    alone = logits(loaded(four_heads, recipe))
    together = in_threads(size, lambda share: logits(loaded(four_heads, recipe, share)))
    for other in together[1:]:
        np.testing.assert_array_equal(other, together[0])
    np.testing.assert_allclose(together[0], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("recipe", ["none", "nvfp4"])  # of groups that all widths have in pairs
@pytest.mark.parametrize("member", MEMBERS)
def test_ranks_of_a_younger_sibling_compute_what_one_does(
    tmp_path: Path, member: str, recipe: str
) -> None:
    folder = write_younger(tmp_path / member, member)
    ours = in_threads(2, lambda share: logits(loaded(folder, recipe, share)))
    np.testing.assert_allclose(ours[0], logits(loaded(folder, recipe)), atol=2e-5, rtol=0)


def test_a_loaded_model_is_cut_as_its_files_are(four_heads: Path) -> None:
    def both(share: Share) -> tuple[np.ndarray, np.ndarray]:
        config = Config.from_folder(four_heads)
        with open_bundle(four_heads) as bundle:
            normalization = Processor.from_folder(bundle.folder).normalization
            whole = lazy_model(bundle.tensors, config, normalization, dtype="float32")
        whole.shard(share)
        whole.merge_projections()
        return logits(whole), logits(loaded(four_heads, share=share))

    for cut_after, cut_before in in_threads(2, both):
        np.testing.assert_array_equal(cut_after, cut_before)


def test_a_rank_reads_its_part_and_no_more(
    four_heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is cut, the bytes that come from the files are the parts', each once."""
    read: list[int] = []
    fill = parts._fill

    def counted(descriptor: int, view: memoryview, begin: int) -> None:
        read.append(len(view))
        fill(descriptor, view, begin)

    monkeypatch.setattr(parts, "_fill", counted)
    config = Config.from_folder(four_heads)
    share = Share(1, 4, lambda array: array)
    with open_bundle(four_heads) as bundle:
        whole = bundle.tensors
        ours = parts_of(whole, config, make_plan(config, read_recipe("none")), share)
    model = loaded(four_heads, share=share)
    cut = {name: tensor for name, tensor in ours.items() if isinstance(tensor, Part)}
    # Query, key and value with their biases, output, gate, up and down of three layers.
    assert len(cut) == 3 * 10
    assert sum(read) == sum(tensor.nbytes for tensor in cut.values())
    assert sum(read) == sum(whole[name].nbytes for name in cut) // 4
    held = sum(array.nbytes for _, array in nn.utils.tree_flatten(model.parameters()))
    # And the bias of the patch embedding, which folding makes.
    made = 4 * config.vision.embed_dim
    assert held == sum(tensor.nbytes for tensor in ours.values()) + made
    assert weight_bytes(ours, config.text, 4, {}) < 0.65 * weight_bytes(whole, config.text, 4, {})


@pytest.mark.parametrize(
    ("size", "recipe", "told"),
    [
        (3, "none", "3 ranks cannot share 4 key-value heads evenly; this model runs on 2, 4"),
        (8, "none", "8 ranks cannot share 4 key-value heads evenly; this model runs on 2, 4"),
        (
            4,
            "4bit-g32",
            "4 ranks cannot share model.layers.[0-2].mlp.down_proj evenly: its rows of 192 make 6 "
            "groups of 32",
        ),
    ],
)
def test_a_count_that_leaves_something_over_is_refused(
    four_heads: Path, size: int, recipe: str, told: str
) -> None:
    with pytest.raises(OptionError, match=f"^{told}$"):
        loaded(four_heads, recipe, Share(0, size, lambda array: array))


def test_an_mlp_that_leaves_something_over_is_refused(four_heads: Path) -> None:
    config = Config.from_folder(four_heads)
    config = replace(config, text=replace(config.text, intermediate_size=190))
    with pytest.raises(OptionError, match="4 ranks cannot share 190 rows or columns evenly"):
        build(config).shard(Share(0, 4, lambda array: array))


@pytest.mark.parametrize("form", [None, (4, 32), (8, 64)])
def test_a_bias_behind_cut_columns_is_added_once(form: tuple[int, int] | None) -> None:
    mx.random.seed(3)
    x, weight = mx.random.normal((3, 128)), mx.random.normal((64, 128))
    bias = mx.random.normal((64,))

    def layer() -> nn.Module:
        made = nn.Linear(128, 64)
        made.weight, made.bias = weight, bias
        if form is None:
            return made
        return nn.QuantizedLinear.from_linear(made, group_size=form[1], bits=form[0])

    parts = []
    for rank in range(2):
        share = Share(rank, 2, lambda array: array)
        ours = layer()
        keep_columns(ours, share)
        parts.append(ours(x[:, share.part(128)]))
    np.testing.assert_allclose(np.array(sum(parts)), np.array(layer()(x)), atol=1e-4)
    rows = []
    for rank in range(2):
        ours = layer()
        keep_rows(ours, Share(rank, 2, lambda array: array))
        rows.append(ours(x))
    together = np.concatenate([np.array(part) for part in rows], axis=-1)
    np.testing.assert_allclose(together, np.array(layer()(x)), atol=1e-4)
