"""Memory: it does not grow with the number of pictures, and what does not fit is refused before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_qwenvl import MemoryExceeded, OptionError, QwenVL, load
from mlx_qwenvl.engine import fit, looking
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import encode_images
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.generate import main
from mlx_qwenvl.inputs.image import ImageGeometry, ImagePatches
from mlx_qwenvl.inputs.messages import ImagePart, Message, TextPart, user_message
from mlx_qwenvl.inputs.video import VideoPatches
from mlx_qwenvl.inputs.video_part import VideoPart
from mlx_qwenvl.weights.describe import Description
from mlx_qwenvl.weights.memory import GPU, memory_needed
from tests.golden.tiny import picture
from tests.test_attention import peak_of

SWITCH = "MLX_QWENVL_MEMORY_LIMIT"
GEOMETRY = ImageGeometry(patch_size=14, merge_size=2, temporal_patch_size=2)


def large(seed: int, side: int = 24) -> ImagePatches:
    patches = np.random.default_rng(seed).integers(0, 256, (side * side, 588), dtype=np.uint8)
    pixels = side * 14
    return ImagePatches(patches, (1, side, side), (pixels, pixels), (pixels, pixels), GEOMETRY)


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="computed for a CPU here")
def test_memory_of_the_tower_does_not_grow_with_the_number_of_pictures(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "VISION_BATCH", 24 * 24)
    features: dict[bytes, mx.array] = {}

    def peak(count: int) -> int:
        images = [large(seed) for seed in range(count)]

        def encode() -> mx.array:
            features.update(encode_images(tiny.model, images))
            return mx.zeros(1)

        held = peak_of(encode) - sum(array.nbytes for array in features.values())
        features.clear()
        return held

    one, many = peak(1), [peak(count) for count in (4, 16)]
    assert max(many) < 1.25 * one


@pytest.fixture
def free(tiny: QwenVL, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many bytes there are beyond what is held, nothing of earlier questions among it."""

    def allow(nbytes: int) -> None:
        tiny.stores.make_room(2**40)
        monkeypatch.setenv(SWITCH, str(mx.get_active_memory() + nbytes))

    return allow


def test_a_photo_that_does_not_fit_is_refused_with_pixels_that_would(
    tiny: QwenVL, free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = picture(3, 700, 700)
    free(20_000_000)

    def nothing(*_: Any) -> None:
        raise AssertionError("the tower was run")

    with monkeypatch.context() as patched:
        patched.setattr(type(tiny.model.visual), "begin", nothing)
        with pytest.raises(
            MemoryExceeded, match=r"needs about .* are there; lower max_pix"
        ) as told:
            tiny.stream("What?", images=[photo], cache=False)
    assert "\n" not in str(told.value)
    pixels = int(str(told.value).split("max_pixels to ")[1].split()[0])
    free(20_000_000)
    reply = tiny.generate("What?", images=[photo], max_pixels=pixels, cache=False, max_tokens=2)
    assert reply.usage.image_tokens <= pixels // 784
    with pytest.raises(MemoryExceeded):
        free(20_000_000)
        tiny.generate("What?", images=[photo], max_pixels=pixels + 40 * 784, cache=False)


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="computed for a CPU here")
def test_what_is_computed_bounds_what_an_answer_holds(demo: QwenVL) -> None:
    for side, count in ((224, 1), (448, 1), (448, 3)):
        noise = np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)
        read = {"cache": False, "max_tokens": 4, "temperature": 0}
        mx.clear_cache()
        before = mx.get_active_memory()
        reply = demo.generate("What?", images=list(noise), **read)  # type: ignore[arg-type]
        options = Options(max_tokens=4)
        prompt = demo.prompt([user_message("What?", list(noise))], options)
        question = fit._Question.of(demo.model, prompt, options, Stores.of(demo.model, 0, 0))
        computed = question.peak()
        ratio = (reply.peak_memory_bytes - before) / (computed - mx.get_active_memory())
        assert 0.5 < ratio < 1.2


def moving(seed: int, side: int) -> VideoPatches:
    """One temporal patch of noise."""
    patches = np.random.default_rng(seed).integers(0, 256, (side * side, 2 * 588), dtype=np.uint8)
    pixels = (side * 14, side * 14)
    return VideoPatches(patches, (1, side, side), (0.0, 0.5), 1.0, pixels, pixels, GEOMETRY)


def asked(vlm: QwenVL, *shown: ImagePatches | VideoPatches) -> fit._Question:
    parts = [VideoPart(one) if isinstance(one, VideoPatches) else ImagePart(one) for one in shown]
    options = Options(max_tokens=4)
    prompt = vlm.prompt([Message("user", (*parts, TextPart("What?")))], options)
    return fit._Question.of(vlm.model, prompt, options, Stores.of(vlm.model, 0, 0))


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="computed for a CPU here")
@pytest.mark.parametrize("side", [8, 16, 24])
def test_what_is_computed_holds_the_pixels_of_both_frames(tiny: QwenVL, side: int) -> None:
    video = moving(1, side)
    patches = mx.array(video.patches[None])
    mx.eval(patches)
    held = patches.nbytes + peak_of(lambda: tiny.model.visual.begin(patches, video.grid_thw).x)
    computed = asked(tiny, video).peak() - mx.get_active_memory()
    assert 0.5 < held / computed < 1


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="computed for a CPU here")
def test_what_is_computed_bounds_what_an_answer_about_a_video_holds(demo: QwenVL) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (6, 224, 224, 3), np.uint8)
    mx.clear_cache()
    before = mx.get_active_memory()
    reply = demo.generate("What?", videos=[frames], cache=False, max_tokens=4, temperature=0)
    computed = asked(demo, reply.videos[0]).peak()
    ratio = (reply.peak_memory_bytes - before) / (computed - mx.get_active_memory())
    assert 0.5 < ratio < 1.2


def test_where_blocks_hold_most_a_video_takes_the_bytes_of_its_second_frames_more(
    tiny: QwenVL,
) -> None:
    config = tiny.config
    wide = replace(config, vision=replace(config.vision, embed_dim=1280, mlp_dim=5120))
    needed = [
        memory_needed(
            Description(wide, ()), GPU, context=1, patches=576, prefill_step=1, frames=frames
        ).vision
        for frames in (1, 2)
    ]
    assert needed[1] - needed[0] == moving(1, 24).patches.nbytes // 2


def test_a_small_video_makes_a_large_picture_no_larger(tiny: QwenVL) -> None:
    picture, video = large(1, 24), moving(2, 2)
    alone, beside = asked(tiny, picture), asked(tiny, picture, video)
    assert set(alone._looks(alone.largest)) < set(beside._looks(beside.largest))


def test_a_long_prompt_is_told_to_pack_its_keys_and_values(tiny: QwenVL, free: Any) -> None:
    words = "word " * 900
    free(0)
    with pytest.raises(MemoryExceeded, match="shorten the prompt or take a smaller model"):
        tiny.generate(words, cache=False)
    low, high = 0, 200_000_000
    advised = set()
    for _ in range(24):
        middle = (low + high) // 2
        free(middle)
        try:
            tiny.stream(words, cache=False, max_tokens=1)
            high = middle
        except MemoryExceeded as error:
            advised.add(str(error).split("; ")[1].split(" (MLX")[0])
            low = middle
    assert "keep keys and values in 8 bits (kv_bits)" in advised
    free(low)
    tiny.stream(words, cache=False, max_tokens=1, kv_bits=8)


def test_weights_that_do_not_fit_are_not_read(
    tiny_folder: Path, free: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = (tiny_folder / "model.safetensors").stat().st_size
    free(stored // 2)
    monkeypatch.setattr(mx, "load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(MemoryExceeded, match="take a smaller or quantized one"):
        load(tiny_folder, dtype="float32")


def test_weights_quantized_at_load_are_counted_as_such(tiny_folder: Path, free: Any) -> None:
    free(1_500_000)
    with pytest.raises(MemoryExceeded):
        load(tiny_folder, dtype="float32")
    assert load(tiny_folder, dtype="float32", quantize="4bit").config


@pytest.mark.parametrize("quantize", ["4bit", "8bit", "mxfp4", None])
def test_padding_is_counted_where_it_is_in_force(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, quantize: str | None
) -> None:
    counted, held = [], []
    for switch in ("off", "on"):
        monkeypatch.setenv("MLX_QWENVL_PAD_MLP", switch)
        weights: list[int] = []
        monkeypatch.setattr("mlx_qwenvl.vlm.check_weights", weights.append)
        model = load(tiny_folder, dtype="float32", quantize=quantize).model
        held.append(sum(array.nbytes for _, array in tree_flatten(model.parameters())))
        counted += weights
    assert np.diff(counted) == np.diff(held)
    assert (held[1] > held[0]) is (quantize in ("4bit", "8bit"))
    # The patch embedding gets a bias.
    assert held[0] - counted[0] == 4 * model.config.vision.embed_dim


def test_the_limit_can_be_switched_off_or_is_refused(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    with pytest.raises(MemoryExceeded):
        tiny.generate("Hello", max_tokens=1)
    monkeypatch.setenv(SWITCH, "off")
    assert tiny.generate("Hello", max_tokens=1).usage.completion_tokens <= 1
    for wrong in ("", "many", "-1", "1e9", "²"):
        monkeypatch.setenv(SWITCH, wrong)
        with pytest.raises(OptionError, match=f"{SWITCH} is '{wrong}'"):
            tiny.generate("Hello", max_tokens=1)


def test_without_a_limit_of_its_own_the_machine_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device: dict[str, Any] = {"max_recommended_working_set_size": 123}
    monkeypatch.setattr(mx, "device_info", lambda: device)
    assert fit.memory_limit() == 123
    device.clear()
    device["free_memory"] = 456
    assert fit.memory_limit() == mx.get_active_memory() + mx.get_cache_memory() + 456
    device.clear()
    file = tmp_path / "meminfo"
    monkeypatch.setattr(fit, "MEMINFO", file)
    assert fit.memory_limit() is None
    file.write_text("MemTotal: 9 kB\nMemAvailable:    1000 kB\n")
    held = mx.get_active_memory() + mx.get_cache_memory()
    assert fit.memory_limit() == held + 1_024_000
    file.write_text("MemAvailable:\n")
    assert fit.memory_limit() is None


def test_the_command_line_refuses_in_one_line(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1000")
    assert main(["--model", str(tiny_folder), "--prompt", "Hello"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "of memory and 1.00 kB are there" in captured.err
