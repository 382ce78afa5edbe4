"""Learned rounding: the arithmetic against MLX's own, and what it brings on pictures not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from convert import Wishes, convert
from convert.learning.calibration import calibration_prompts
from convert.learning.gptq import Codes, Inputs, pack, quantize_matrix, weighted_error
from convert.learning.learn import learn
from convert.pictures import Drawn, builtin_pictures
from mlx_qwenvl import QwenVL
from mlx_qwenvl.errors import CheckpointError
from mlx_qwenvl.weights.bundle import Bundle, open_bundle
from mlx_qwenvl.weights.files import StoredTensor, read_bytes, read_header
from mlx_qwenvl.weights.load import load_model
from mlx_qwenvl.weights.plan import Plan, make_plan, vision_recipe
from mlx_qwenvl.weights.recipes import Format, read_recipe
from mlx_qwenvl.weights.resolve import DEMO_FOLDER

EXAMPLES = Path(__file__).parent.parent / "examples" / "images"
BITS = (2, 3, 4, 5, 6, 8)
PROMPTS = 36  # learned from
ANSWER_BEGINS = 3  # last tokens of a prompt: "assistant", a line's end, and the answer's first one


def correlated(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Inputs [rows, columns] in which few directions are strong, as in real activations."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(columns, columns)) * np.exp(-np.arange(columns) / 30)[:, None]
    return (rng.normal(size=(rows, columns)) @ mix).astype(np.float32)


def watched(inputs: np.ndarray, right: np.ndarray | None = None) -> Inputs:
    drift = np.zeros_like(inputs) if right is None else right - inputs
    return Inputs(inputs.T @ inputs, drift.T @ inputs, len(inputs))


def to_nearest(weight: np.ndarray, form: Format) -> np.ndarray:
    quantized = mx.quantize(mx.array(weight), group_size=form.group_size, bits=form.bits)
    return np.array(mx.dequantize(*quantized, group_size=form.group_size, bits=form.bits))


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", BITS)
def test_packed_codes_are_what_mlx_reads(bits: int, group_size: int) -> None:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (5, 256), dtype=np.uint8)
    scales, biases = rng.normal(size=(2, 5, 256 // group_size)).astype(np.float32)
    read = mx.dequantize(
        pack(codes, bits), mx.array(scales), mx.array(biases), group_size=group_size, bits=bits
    )
    np.testing.assert_array_equal(np.array(read), Codes(codes, scales, biases).weights())


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_that_of_mlx_quantize(bits: int) -> None:
    weight = mx.random.normal((4, 128), key=mx.random.key(bits))
    packed, scales, biases = mx.quantize(weight, group_size=64, bits=bits)
    stands_for = np.array(mx.dequantize(packed, scales, biases, group_size=64, bits=bits))
    steps = stands_for - np.repeat(np.array(biases), 64, axis=1)
    codes = np.rint(steps / np.repeat(np.array(scales), 64, axis=1)).astype(np.uint8)
    np.testing.assert_array_equal(np.array(pack(codes, bits)), np.array(packed))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_learned_codes_lose_far_less_than_the_nearest(bits: int, dtype: mx.Dtype) -> None:
    form = Format(bits, 64, "affine")
    weight = np.random.default_rng(1).normal(size=(48, 192)).astype(np.float32)
    inputs = watched(correlated(800, 192))
    learned = quantize_matrix(weight, inputs, form, dtype).weights()
    lost = weighted_error(weight, learned, inputs.hessian)
    assert lost < 0.4 * weighted_error(weight, to_nearest(weight, form), inputs.hessian)


def test_scales_are_of_the_stored_dtype() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    chosen = quantize_matrix(
        weight, watched(correlated(200, 64)), Format(3, 32, "affine"), mx.bfloat16
    )
    for part in (chosen.scales, chosen.biases):
        stored = mx.array(part).astype(mx.bfloat16).astype(mx.float32)
        np.testing.assert_array_equal(part, np.array(stored))


def test_drift_of_the_inputs_is_made_up_for() -> None:
    form = Format(6, 64, "affine")
    weight = np.random.default_rng(1).normal(size=(32, 128)).astype(np.float32)
    right = correlated(900, 128)
    given = right @ (np.eye(128) + 0.02 * correlated(128, 128, seed=2)).astype(np.float32)

    def missed(inputs: Inputs) -> float:
        learned = quantize_matrix(weight, inputs, form, mx.float32).weights()
        return float(np.square(right @ weight.T - given @ learned.T).sum())

    assert missed(watched(given, right)) < 0.6 * missed(watched(given))


def test_inputs_that_never_come_leave_a_column_nearly_as_it_was() -> None:
    inputs = correlated(500, 128)
    inputs[:, 7::16] = 0
    form = Format(8, 64, "affine")
    weight = np.random.default_rng(1).normal(size=(16, 128)).astype(np.float32)
    learned = quantize_matrix(weight, watched(inputs), form, mx.float32).weights()
    assert np.abs(learned - weight)[:, 7::16].max() < 0.05


@pytest.mark.parametrize("rows", [0, 3])
def test_few_inputs_or_none_are_enough(rows: int) -> None:
    form = Format(4, 64, "affine")
    weight = np.random.default_rng(1).normal(size=(16, 128)).astype(np.float32)
    learned = quantize_matrix(weight, watched(correlated(rows, 128)), form, mx.float32).weights()
    assert np.square(learned - weight).mean() < 0.05


def test_equal_weights_are_kept() -> None:
    weight = np.full((4, 64), 0.75, dtype=np.float32)
    form = Format(2, 64, "affine")
    learned = quantize_matrix(weight, watched(correlated(100, 64)), form, mx.bfloat16).weights()
    np.testing.assert_allclose(learned, weight, atol=1e-6)


def test_what_is_no_hessian_is_an_error() -> None:
    hessian = -np.eye(64, dtype=np.float32)
    inputs = Inputs(hessian, np.zeros_like(hessian), 64)
    weight = np.ones((4, 64), dtype=np.float32)
    with pytest.raises(np.linalg.LinAlgError):
        quantize_matrix(weight, inputs, Format(4, 64, "affine"), mx.float32)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    with open_bundle(DEMO_FOLDER) as opened:
        return opened


def planned(demo: QwenVL, recipe: str) -> Plan:
    """The decoder's layers alone, so that nothing else differs."""
    formats = make_plan(demo.config, read_recipe(recipe)).formats
    return Plan({path: form for path, form in formats.items() if ".layers." in path}, {})


def with_weights(demo: QwenVL, tensors: dict[str, StoredTensor], plan: Plan | None) -> QwenVL:
    """The demo model with other weights."""
    normalization = demo.processor.normalization
    network = load_model(tensors, demo.config, normalization, dtype="float32", plan=plan)
    return QwenVL("", network, demo.tokenizer, demo.template, demo.processor, {}, 0.0)


def learned_weights(bundle: Bundle, folder: Path) -> dict[str, StoredTensor]:
    """A bundle's tensors with the learned ones in their places."""
    files = sorted(folder.glob("*.safetensors"))
    return bundle.tensors | {tensor.key: tensor for file in files for tensor in read_header(file)}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def three_bits(bundle: Bundle, demo: QwenVL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    learn(bundle, demo.config, planned(demo, "3bit"), builtin_pictures(0, PROMPTS), folder)
    return folder


def divergence(demo: QwenVL, other: QwenVL, prompts: Sequence[Drawn]) -> float:
    """Mean KL over all text tokens of the prompts."""
    total, count = 0.0, 0
    for prompt in prompts:
        rows = [vlm.logits(prompt.question, images=prompt.images) for vlm in (demo, other)]
        p, q = (r - np.logaddexp.reduce(r, axis=1, keepdims=True) for r in rows)
        total += float(np.sum(np.exp(p) * (p - q), axis=1)[-ANSWER_BEGINS:].sum())
        count += ANSWER_BEGINS
    return total / count


def test_three_learned_bits_are_nearer_to_the_model_than_the_nearest(
    bundle: Bundle, demo: QwenVL, three_bits: Path
) -> None:
    plain = with_weights(demo, bundle.tensors, planned(demo, "3bit"))
    learned = with_weights(demo, learned_weights(bundle, three_bits), None)
    held_out = builtin_pictures(99, 48)
    assert divergence(demo, learned, held_out) < 0.6 * divergence(demo, plain, held_out)


def test_every_file_holds_one_layer_in_the_stored_dtype(three_bits: Path, demo: QwenVL) -> None:
    files = sorted(three_bits.glob("*.safetensors"))
    assert [file.name for file in files] == [f"layer-{n:03}.safetensors" for n in range(6)]
    formats = planned(demo, "3bit").formats
    for index, file in enumerate(files):
        tensors = {tensor.key: tensor for tensor in read_header(file)}
        modules = [path for path in formats if path.startswith(f"model.layers.{index}.")]
        parts = ("weight", "scales", "biases")
        assert set(tensors) == {f"{path}.{part}" for path in modules for part in parts}
        assert {t.dtype for name, t in tensors.items() if name.endswith("weight")} == {"U32"}
        assert {t.dtype for name, t in tensors.items() if not name.endswith("weight")} == {"BF16"}


def test_a_resumed_run_gives_the_same_files(
    bundle: Bundle, demo: QwenVL, three_bits: Path, tmp_path: Path
) -> None:
    whole = contents(three_bits)
    for name in ("answers.json", "layer-000.safetensors", "layer-001.safetensors"):
        (tmp_path / name).write_bytes(whole[name])
    (tmp_path / "layer-002.partial.safetensors").write_bytes(b"broken off")
    made_before = (tmp_path / "layer-001.safetensors").stat().st_mtime_ns
    steps: list[tuple[int, int]] = []
    learn(
        *(bundle, demo.config, planned(demo, "3bit"), builtin_pictures(0, PROMPTS), tmp_path),
        on_layer=lambda done, total: steps.append((done, total)),
    )
    assert contents(tmp_path) == whole
    assert (tmp_path / "layer-001.safetensors").stat().st_mtime_ns == made_before
    assert steps == [(n, 6) for n in range(1, 7)]


def first_layer(
    bundle: Bundle, demo: QwenVL, plan: Plan, prompts: Sequence[Drawn], folder: Path, **more: Any
) -> bytes:
    """The first layer's file, learned from the questions alone."""

    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        learn(bundle, demo.config, plan, prompts, folder, answer_tokens=0, on_layer=stop, **more)
    return (folder / "layer-000.safetensors").read_bytes()


def test_another_picture_under_the_same_question_is_another_rounding(
    bundle: Bundle, demo: QwenVL, tmp_path: Path
) -> None:
    red, blue = (Image.new("RGB", (84, 84), color) for color in ("red", "blue"))
    plan = planned(demo, "3bit")
    learned = [
        first_layer(bundle, demo, plan, [Drawn("What is this?", (image,))], tmp_path / str(number))
        for number, image in enumerate((red, blue, red))
    ]
    assert learned[0] == learned[2]
    assert learned[0] != learned[1]


def test_files_learned_from_something_else_are_not_taken(
    bundle: Bundle, demo: QwenVL, tmp_path: Path
) -> None:
    plan, prompts = planned(demo, "3bit"), builtin_pictures(0, 2)
    old = first_layer(bundle, demo, plan, builtin_pictures(1, 2), tmp_path)
    new = first_layer(bundle, demo, plan, prompts, tmp_path)
    assert old != new == first_layer(bundle, demo, plan, prompts, tmp_path / "fresh")


def test_only_affine_modules_are_written(bundle: Bundle, demo: QwenVL, tmp_path: Path) -> None:
    formats = dict(planned(demo, "4bit").formats)
    block = "model.layers.0.self_attn"
    formats[f"{block}.q_proj"] = Format(4, 32, "mxfp4")
    formats[f"{block}.k_proj"] = Format(6, 32, "affine")
    del formats[f"{block}.v_proj"]
    first_layer(bundle, demo, Plan(formats, {}), builtin_pictures(0, 2), tmp_path)
    tensors = {t.key: t.shape for t in read_header(tmp_path / "layer-000.safetensors")}
    assert not any(key.startswith((f"{block}.q_proj", f"{block}.v_proj")) for key in tensors)
    assert tensors[f"{block}.k_proj.weight"] == (64, 192 * 6 // 32)
    assert tensors[f"{block}.k_proj.scales"] == (64, 192 // 32)
    assert tensors["model.layers.0.mlp.up_proj.weight"] == (384, 192 * 4 // 32)


def test_a_dtype_for_the_scales_can_be_asked_for(
    bundle: Bundle, demo: QwenVL, tmp_path: Path
) -> None:
    prompts = builtin_pictures(0, 2)
    first_layer(bundle, demo, planned(demo, "4bit"), prompts, tmp_path, dtype=mx.float16)
    tensors = read_header(tmp_path / "layer-000.safetensors")
    assert {t.dtype for t in tensors if not t.key.endswith("weight")} == {"F16"}


@pytest.mark.parametrize("vision", [None, 4])
def test_it_learns_from_a_folder_of_pictures_under_a_whole_plan(
    bundle: Bundle, demo: QwenVL, tmp_path: Path, vision: int | None
) -> None:
    prompts = calibration_prompts(EXAMPLES, seed=0, count=3)
    plan = make_plan(demo.config, read_recipe("4bit"), vision=vision_recipe(vision))
    first_layer(bundle, demo, plan, prompts, tmp_path)
    # The files end behind the first layer; the others stay as they are.
    one = with_weights(demo, learned_weights(bundle, tmp_path), None)
    assert divergence(demo, one, builtin_pictures(99, 8)) < 0.1


@pytest.mark.parametrize("name", ["self_attn.o_proj.weight", "input_layernorm.weight"])
def test_numbers_that_are_not_finite_are_named(
    bundle: Bundle, demo: QwenVL, tmp_path: Path, name: str
) -> None:
    key = f"model.layers.1.{name}"
    damaged = tmp_path / "damaged.safetensors"
    mx.save_safetensors(str(damaged), {key: mx.full(bundle.tensors[key].shape, float("nan"))})
    [stored] = read_header(damaged)
    broken = replace(bundle, tensors=bundle.tensors | {key: stored})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\..* not finite"):
        learn(
            *(broken, demo.config, planned(demo, "4bit"), builtin_pictures(0, 2), tmp_path / "out"),
            answer_tokens=0,
        )


def test_a_quantized_source_is_refused(
    bundle: Bundle, demo: QwenVL, three_bits: Path, tmp_path: Path
) -> None:
    quantized = replace(bundle, tensors=learned_weights(bundle, three_bits))
    with pytest.raises(CheckpointError, match="quantized already"):
        learn(quantized, demo.config, planned(demo, "4bit"), builtin_pictures(0, 1), tmp_path)


def test_every_variant_has_the_weights_that_it_learned_itself(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two recipes may give a module one format, and yet other codes fit beside other layers."""
    monkeypatch.setattr(import_module("convert.convert"), "CALIBRATION_PROMPTS", 6)
    names = ("mixed_2_6", "2bit")
    wishes = Wishes(recipes=names, calibrate=str(EXAMPLES))
    convert(tiny_folder, tmp_path / "both", wishes)
    for name in names:
        convert(tiny_folder, tmp_path / name, replace(wishes, recipes=(name,)))
        with open_bundle(tmp_path / "both", name) as both, open_bundle(tmp_path / name) as alone:
            assert both.tensors.keys() == alone.tensors.keys()
            for path, tensor in alone.tensors.items():
                assert read_bytes(both.tensors[path]) == read_bytes(tensor), path
