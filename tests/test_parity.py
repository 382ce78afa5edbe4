"""The model against recordings of Transformers, in float32 (see golden/README.md)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import mlx.core as mx
import numpy as np
import PIL
import pytest

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.decode import decode
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import encode_images, prefill
from mlx_qwenvl.engine.sampling import Sampler
from mlx_qwenvl.inputs.messages import parse_messages
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models.rope import prompt_positions
from tests.golden.cases import CASES, GoldenCase, load_case
from tests.golden.tiny import write_checkpoint

TOLERANCE = 1e-4  # largest absolute difference of features and logits, which reach about 8


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, QwenVL]:
    """The recorded model with its tied and its untied head."""
    folder = tmp_path_factory.mktemp("parity")
    return {
        tied: load(write_checkpoint(folder / str(tied), tied=tied), dtype="float32")
        for tied in (True, False)
    }


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> GoldenCase:
    loaded = load_case(request.param)
    resized = any(width % 28 or height % 28 for _, width, height in loaded.pictures)
    if resized and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("recorded with Pillow 13, whose bicubic differs from earlier ones")
    return loaded


def prompt_of(vlm: QwenVL, case: GoldenCase) -> Prompt:
    """The case's prompt as the runtime makes it of OpenAI-style messages and pictures."""
    images = case.images()
    messages = [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [
                {"type": "image"} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in case.messages
    ]
    built = vlm.prompt(parse_messages(messages, images), Options(max_pixels=12_845_056))
    assert len(built.slots) == len(images)
    return built


def test_prompt_ids_and_grids_equal_the_recording(
    models: dict[bool, QwenVL], case: GoldenCase
) -> None:
    prompt = prompt_of(models[case.tied], case)
    assert prompt.token_ids.tolist() == case.input_ids.tolist()
    assert [list(slot.image.grid_thw) for slot in prompt.slots] == case.grid_thw.tolist()


def test_patches_equal_the_recording(models: dict[bool, QwenVL], case: GoldenCase) -> None:
    prompt = prompt_of(models[case.tied], case)
    sha = hashlib.sha256()
    for slot in prompt.slots:
        one_frame = slot.image.patches.reshape(-1, 3, 1, 14, 14)
        sha.update(np.repeat(one_frame, 2, axis=2).tobytes())
    assert sha.hexdigest() == case.patches_sha256


def test_positions_equal_the_recording(models: dict[bool, QwenVL], case: GoldenCase) -> None:
    prompt = prompt_of(models[case.tied], case)
    slots = [(slot.start, slot.image.grid_thw) for slot in prompt.slots]
    positions, rope_delta = prompt_positions(prompt.token_ids.size, slots, merge_size=2)
    assert positions.tolist() == case.position_ids.tolist()
    assert rope_delta == case.rope_delta


def test_vision_features_equal_the_recording(models: dict[bool, QwenVL], case: GoldenCase) -> None:
    vlm = models[case.tied]
    images = [slot.image for slot in prompt_of(vlm, case).slots]
    encoded = encode_images(vlm.model, images)
    features = [np.array(encoded[image.digest]) for image in images]
    ours = np.concatenate(features) if features else np.empty_like(case.features)
    assert ours.shape == case.features.shape
    np.testing.assert_allclose(ours, case.features, rtol=0, atol=TOLERANCE)


def test_logits_of_the_whole_prompt_equal_the_recording(
    models: dict[bool, QwenVL], case: GoldenCase
) -> None:
    vlm = models[case.tied]
    filled = prefill(
        vlm.model, Conversation(vlm.model), prompt_of(vlm, case), step=4096, all_logits=True
    )
    np.testing.assert_allclose(np.array(filled.logits[0]), case.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("step", [4096, 16], ids=["whole", "in steps of 16"])
def test_greedy_tokens_equal_the_recording(
    models: dict[bool, QwenVL], case: GoldenCase, step: int
) -> None:
    vlm = models[case.tied]
    prompt, conversation = prompt_of(vlm, case), Conversation(vlm.model)
    filled = prefill(vlm.model, conversation, prompt, step=step)
    sampler = Sampler(Options(), filled.logits.shape[-1], prompt.token_ids)
    tokens = decode(
        vlm.model, conversation.cache, filled.logits[:, -1], [sampler], len(case.greedy)
    )
    assert tuple(step[0].token_id for step in tokens) == case.greedy


def test_public_logits_equal_the_recording(models: dict[bool, QwenVL]) -> None:
    case = load_case("one_image")
    question = case.messages[-1]["content"][-1]
    assert isinstance(question, dict)
    ours = models[True].logits(str(question["text"]), images=case.images())
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, case.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("layout", "shards"), [("nested", 1), ("hub", 3), ("nested", 2)])
def test_every_layout_of_a_folder_gives_the_same_logits(
    tmp_path: Path, layout: str, shards: int
) -> None:
    folder = write_checkpoint(tmp_path, layout=layout, shards=shards)  # type: ignore[arg-type]
    case = load_case("one_image")
    vlm = load(folder, dtype="float32")
    filled = prefill(
        vlm.model, Conversation(vlm.model), prompt_of(vlm, case), step=4096, all_logits=True
    )
    np.testing.assert_allclose(np.array(filled.logits[0]), case.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_stay_near_the_recording(tmp_path: Path, dtype: str) -> None:
    folder = write_checkpoint(tmp_path, dtype=dtype)  # type: ignore[arg-type]
    case = load_case("one_image")
    vlm = load(folder, dtype="float32")
    filled = prefill(
        vlm.model, Conversation(vlm.model), prompt_of(vlm, case), step=4096, all_logits=True
    )
    bound = {"float16": 0.05, "bfloat16": 0.4}[dtype]  # rounding of the weights alone
    assert float(mx.abs(filled.logits[0] - mx.array(case.logits)).max()) < bound
