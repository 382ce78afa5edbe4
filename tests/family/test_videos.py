"""Qwen3-VL's videos against recordings of Transformers, in float32 (see golden/README.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mlx_qwenvl import QwenVL
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import encode_images
from mlx_qwenvl.inputs.frames import moments_to_take
from mlx_qwenvl.inputs.frames_shared import SharedBudget
from mlx_qwenvl.inputs.image import ImageGeometry, PixelBudget
from mlx_qwenvl.inputs.messages import parse_messages
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.inputs.video import VideoPatches
from mlx_qwenvl.models.rope import Slot
from tests.family.recorded import hold_answer
from tests.golden.timed_videos import CASES, LAST, load_timed_case, timed
from tests.golden.videos import VideoCase
from tests.test_parity import TOLERANCE
from tests.test_video import videos_of

GEOMETRY = ImageGeometry(patch_size=16, merge_size=2, temporal_patch_size=2)
Recorded = tuple[QwenVL, VideoCase]


@pytest.fixture(
    params=[(member, name) for member, names in CASES.items() for name in names],
    ids=lambda pair: "-".join(pair),
)
def recorded(request: pytest.FixtureRequest, younger: Callable[..., QwenVL]) -> Recorded:
    """A member and one of its cases."""
    member, name = request.param
    return younger(member), load_timed_case(name, member)


def prompt_of(vlm: QwenVL, case: VideoCase) -> Prompt:
    """The case's prompt as the runtime makes it of messages, pictures and lists of frames."""
    messages = [
        message
        if isinstance(message["content"], str)
        else {
            "role": message["role"],
            "content": [
                part if part["type"] == "text" else {"type": part["type"]}
                for part in message["content"]
            ],
        }
        for message in case.messages
    ]
    return vlm.prompt(parse_messages(messages, case.images(), case.videos()), Options())


def test_ids_patches_and_positions_equal_the_recording(recorded: Recorded) -> None:
    vlm, case = recorded
    prompt = prompt_of(vlm, case)
    assert prompt.token_ids.tolist() == case.input_ids.tolist()
    videos, sha = videos_of(prompt), hashlib.sha256()
    assert [list(video.grid_thw) for video in videos] == case.grid_thw.tolist()
    for video in videos:
        by_frame = video.patches.reshape(-1, 2, 3, 16, 16)
        sha.update(np.ascontiguousarray(by_frame.swapaxes(1, 2)).tobytes())
    assert sha.hexdigest() == case.patches_sha256
    slots = [Slot(start, seen.grid_thw) for slot in prompt.slots for start, seen in slot.runs]
    positions, rope_delta = vlm.model.prompt_positions(prompt.token_ids.size, slots)
    assert positions.tolist() == case.position_ids.tolist()
    assert rope_delta == case.rope_delta


@pytest.mark.parametrize("name", CASES["qwen3_vl"])
def test_features_equal_the_recording(younger: Callable[..., QwenVL], name: str) -> None:
    vlm, case = younger("qwen3_vl"), load_timed_case(name, "qwen3_vl")
    videos = videos_of(prompt_of(vlm, case))
    encoded = encode_images(vlm.model, videos)
    ours = np.concatenate([np.array(encoded[video.digest]) for video in videos])
    np.testing.assert_allclose(ours, case.features, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("step", [4096, 16], ids=["whole", "in steps of 16"])
def test_logits_and_greedy_tokens_equal_the_recording(recorded: Recorded, step: int) -> None:
    vlm, case = recorded
    assert len(case.logits) == LAST
    hold_answer(vlm, prompt_of(vlm, case), step, case.logits, case.greedy)


@pytest.mark.parametrize("row", timed("qwen3_vl")["sampled"], ids=lambda row: f"{row['total']}")
def test_frames_taken_and_times_told_equal_the_recording(row: dict[str, Any]) -> None:
    asked = dict(row["asked"])
    if "num_frames" in asked:
        asked["n_frames"] = asked.pop("num_frames")
    total, rate = row["total"], Fraction(row["rate"])
    shown = [index / rate for index in range(total)]
    moments = moments_to_take(shown, total / rate, SharedBudget(**asked), 2)
    assert [shown.index(moment) for moment in moments] == row["indices"]
    video = VideoPatches(
        patches=np.empty((0, 0), np.uint8),
        grid_thw=(len(row["times"]), 2, 2),
        frame_times=tuple(float(moment) for moment in moments),
        seconds_per_grid=1.0,
        source_size=(32, 32),
        size=(32, 32),
        geometry=GEOMETRY,
    )
    assert [f"{moment:.1f}" for moment in video.timestamps] == row["times"]


@pytest.mark.parametrize("row", timed("qwen3_vl")["sizes"], ids=lambda row: f"{row['width']}")
def test_sizes_of_frames_equal_the_recording(row: dict[str, Any]) -> None:
    least, total = row["limits"]
    stated = {"size": {"shortest_edge": least, "longest_edge": total}}
    budget = SharedBudget.stated(stated, PixelBudget(1, 2), GEOMETRY)
    size = budget.size(row["height"], row["width"], row["frames"], GEOMETRY)
    assert list(size) == row["size"]
