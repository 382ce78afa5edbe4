"""The whole model with its kernels emulated in place, and which of the two it is loaded with."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.kernels import ops
from mlx_qwenvl.kernels.ops import CPU, METAL, TWINS
from mlx_qwenvl.weights import load as loading
from tests.golden.tiny import picture
from tests.metal_emulator import Launch, emulator_options

SHAPES = Path(__file__).parents[2] / "examples" / "images" / "shapes.png"
TOKENS = 5


@pytest.fixture
def metal_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a Mac would choose."""
    monkeypatch.setattr(loading, "choose_ops", lambda: METAL)


@pytest.mark.usefixtures("metal_here")
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_whole_model_with_kernels_emulated_gives_the_same_tokens(
    temperature: float, tiny: QwenVL, tiny_folder: Path, emulated: list[Launch]
) -> None:
    question: dict[str, Any] = {
        "prompt": "What is shown?",
        "images": [picture(1, 84, 56), picture(2, 56, 84)],
        "temperature": temperature,
        "top_p": 0.9,
        "seed": 3,
        "max_tokens": TOKENS,
    }
    want = tiny.generate(**question)
    assert not emulated
    vlm = load(tiny_folder, dtype="float32")
    assert (vlm.model.ops, tiny.model.ops) == (METAL, CPU)
    got = vlm.generate(**question)
    assert got.token_ids == want.token_ids
    assert len(got.token_ids) == TOKENS

    counted = Counter(launch.name for launch in emulated)
    layers, blocks = len(vlm.model.layers), len(vlm.model.visual.blocks)
    steps = counted["rotate_qkv"] // layers
    assert steps >= TOKENS  # prefill gives the first token; one step may run ahead of the last
    sampled = {"sample": steps} if temperature else {}  # the likeliest token needs no kernel
    assert counted == sampled | {
        "rotate_vision": blocks * 2,
        "rotate_qkv": layers * steps,
        "add_rms_norm": 2 * layers * steps,  # the first layer's first has nothing to add
    }
    assert not any(launch.copied for launch in emulated)


@pytest.mark.usefixtures("metal_here")
def test_embedded_model_with_kernels_emulated_gives_the_same_tokens(
    demo: QwenVL, emulated: list[Launch]
) -> None:
    question: dict[str, Any] = {
        "prompt": "Describe this image.",
        "images": [SHAPES],
        "temperature": 0,
        "max_tokens": TOKENS,
    }
    want = demo.generate(**question)
    assert not emulated
    with emulator_options(orders=("random",)):
        got = load("demo", dtype="float32").generate(**question)
    assert got.token_ids == want.token_ids
    assert {launch.name for launch in emulated} == {"rotate_vision", "rotate_qkv", "add_rms_norm"}
    assert not any(launch.copied for launch in emulated)


@pytest.mark.usefixtures("metal_here")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_whole_model_in_16_bits_stays_near_its_twin(
    tiny_folder: Path, dtype: str, emulated: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    question: dict[str, Any] = {"prompt": "What?", "images": [picture(1, 56, 56)]}
    with emulator_options(orders=("forward",)):
        got = load(tiny_folder, dtype=dtype).logits(**question)
    launched = len(emulated)
    assert launched
    monkeypatch.setattr(loading, "choose_ops", lambda: TWINS)
    want = load(tiny_folder, dtype=dtype).logits(**question)
    assert len(emulated) == launched
    # Activations are rounded some forty times on their way; logits reach 9.
    assert abs(got - want).max() < (0.1 if dtype == "float16" else 0.8)
    assert abs(got - want).mean() < (0.01 if dtype == "float16" else 0.08)


def test_without_metal_the_twins_are_chosen_once(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []

    def counting() -> ops.Ops:
        asked.append(None)
        return ops.choose_ops()

    monkeypatch.setattr(loading, "choose_ops", counting)
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    vlm = load(tiny_folder)
    vlm.generate("What?", max_tokens=3)
    assert vlm.model.ops is CPU
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("asked", "available", "device", "chosen"),
    [
        (None, True, mx.gpu, METAL),
        ("on", True, mx.gpu, METAL),
        ("off", True, mx.gpu, TWINS),
        (None, True, mx.cpu, CPU),  # a Mac that is told to compute on its CPU
        ("on", False, mx.gpu, TWINS),  # MLX on CUDA
        ("on", False, mx.cpu, CPU),
        ("off", False, mx.cpu, CPU),
    ],
)
def test_kernels_are_chosen_where_metal_computes_and_nobody_says_off(
    asked: str | None,
    available: bool,
    device: mx.DeviceType,
    chosen: ops.Ops,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if asked is not None:
        monkeypatch.setenv(ops.VARIABLE, asked)
    monkeypatch.setattr(mx.metal, "is_available", lambda: available)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device, 0))
    assert ops.choose_ops() is chosen


@pytest.mark.parametrize("value", ["", "1", "OFF", "metal"])
def test_any_other_value_of_the_switch_is_refused(
    value: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ops.VARIABLE, value)
    message = f"{ops.VARIABLE} is {value!r}; expected on or off"
    with pytest.raises(OptionError, match=re.escape(message)):
        load(tiny_folder)
