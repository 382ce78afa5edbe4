"""The younger siblings against recordings of Transformers, in float32 (see golden/README.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.prefill import encode_images, prefill
from mlx_qwenvl.models.rope import Slot
from tests.family.recorded import hold_answer
from tests.golden.cases import LAST_LOGITS, YOUNGER_CASES, GoldenCase, description_of, load_case
from tests.golden.hand_worked import FRAMES, VIDEOS, HandWorkedVideo
from tests.golden.tiny_files import TOKEN_ID
from tests.golden.younger import write_younger
from tests.test_parity import TOLERANCE, prompt_of

Younger = Callable[[str, bool], QwenVL]
VIDEO_PAD = TOKEN_ID["<|video_pad|>"]


@pytest.fixture(params=YOUNGER_CASES)
def case(request: pytest.FixtureRequest, member: str) -> GoldenCase:
    loaded = load_case(request.param, member)
    if loaded.pictures and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("recorded with Pillow 13, whose bicubic differs from earlier ones")
    return loaded


def test_ids_patches_and_positions_equal_the_recording(
    younger: Younger, member: str, case: GoldenCase
) -> None:
    vlm = younger(member, case.tied)
    prompt = prompt_of(vlm, case)
    assert prompt.token_ids.tolist() == case.input_ids.tolist()
    assert [list(slot.image.grid_thw) for slot in prompt.slots] == case.grid_thw.tolist()
    sha, side = hashlib.sha256(), vlm.processor.geometry.patch_size
    for slot in prompt.slots:
        one_frame = slot.image.patches.reshape(-1, 3, 1, side, side)
        sha.update(np.repeat(one_frame, 2, axis=2).tobytes())
    assert sha.hexdigest() == case.patches_sha256
    slots = [Slot(slot.start, slot.image.grid_thw) for slot in prompt.slots]
    positions, rope_delta = vlm.model.prompt_positions(prompt.token_ids.size, slots)
    assert positions.tolist() == case.position_ids.tolist()
    assert rope_delta == case.rope_delta


def test_features_equal_the_recording(younger: Younger, member: str, case: GoldenCase) -> None:
    vlm = younger(member, case.tied)
    images = [slot.image for slot in prompt_of(vlm, case).slots]
    encoded = encode_images(vlm.model, images)
    rows = [np.array(encoded[image.digest]) for image in images]
    ours = np.concatenate(rows) if rows else np.empty_like(case.features)
    np.testing.assert_allclose(ours, case.features, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("step", [4096, 16], ids=["whole", "in steps of 16"])
def test_logits_and_greedy_tokens_equal_the_recording(
    younger: Younger, member: str, case: GoldenCase, step: int
) -> None:
    vlm = younger(member, case.tied)
    prompt = prompt_of(vlm, case)
    assert len(case.logits) == min(LAST_LOGITS, prompt.token_ids.size)
    hold_answer(vlm, prompt, step, case.logits, case.greedy)


@pytest.mark.parametrize("video", VIDEOS.values(), ids=VIDEOS)
def test_a_videos_positions_count_seconds(younger: Younger, video: HandWorkedVideo) -> None:
    slot = Slot(video.input_ids.index(VIDEO_PAD), video.grid_thw, video.seconds_per_grid)
    model = younger("qwen2_5_vl", True).model
    positions, rope_delta = model.prompt_positions(len(video.input_ids), [slot])
    assert positions.tolist() == [list(row) for row in video.position_ids]
    assert rope_delta == video.rope_delta


def test_a_videos_own_positions_equal_the_recording(younger: Younger) -> None:
    """What follows a long video does not: Transformers 5 puts it below the video's last frames."""
    model = younger("qwen2_5_vl", True).model
    for name, recorded in description_of("qwen2_5_vl")["videos"].items():
        video = VIDEOS[name]
        start, length = video.input_ids.index(VIDEO_PAD), len(video.input_ids)
        slot = Slot(start, video.grid_thw, video.seconds_per_grid)
        ours, rope_delta = model.prompt_positions(length, [slot])
        theirs = np.array(recorded["position_ids"])
        end = length if name == "short" else start + video.input_ids.count(VIDEO_PAD)
        assert ours[:, :end].tolist() == theirs[:, :end].tolist()
        assert (rope_delta == recorded["rope_delta"]) == (name == "short")


@pytest.mark.parametrize("member", ["qwen3_vl", "qwen3_vl_moe"])
def test_frames_with_text_between_are_placed_as_pictures_are(younger: Younger, member: str) -> None:
    ids, (_, height, width) = FRAMES.input_ids, FRAMES.grid_thw
    starts = [i for i, token in enumerate(ids) if token == VIDEO_PAD != ids[i - 1]]
    slots = [Slot(start, (1, height, width), FRAMES.seconds_per_grid) for start in starts]
    model = younger(member, True).model
    positions, rope_delta = model.prompt_positions(len(ids), slots)
    recorded = description_of(member)["videos"]["frames"]
    assert positions.tolist() == [list(row) for row in FRAMES.position_ids]
    assert positions.tolist() == recorded["position_ids"]
    assert rope_delta == FRAMES.rope_delta == recorded["rope_delta"]


@pytest.mark.parametrize(("layout", "shards"), [("nested", 1), ("hub", 3)])
def test_every_layout_of_a_folder_gives_the_same_logits(
    member: str, tmp_path: Path, layout: str, shards: int
) -> None:
    case = load_case("one_image", member)
    vlm = load(write_younger(tmp_path, member, layout=layout, shards=shards), dtype="float32")  # type: ignore[arg-type]
    filled = prefill(
        vlm.model, Conversation(vlm.model), prompt_of(vlm, case), step=4096, all_logits=True
    )
    logits = np.array(filled.logits[0, -LAST_LOGITS:])
    np.testing.assert_allclose(logits, case.logits, rtol=0, atol=TOLERANCE)
