"""The recordings of Qwen3-VL's videos, ready for a test; the conversations are `videos.py`'s."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.videos import CONVERSATIONS, VideoCase

TOKEN_SIDE = 32  # pixels
MIN_PIXELS, TOTAL_PIXELS = 4096, 25165824  # of all frames together, as the checkpoints have it
RATE = 2  # frames of a second, in all cases
LAST = 8  # tokens of each prompt whose logits are recorded

# Cases and arrays of each member. Its tower is the other's, so features are recorded once.
CASES = {
    "qwen3_vl": tuple(CONVERSATIONS),
    "qwen3_vl_moe": ("odd_video", "pictures_and_video_in_two_turns"),
}
ARRAYS = {
    "qwen3_vl": ("input_ids", "grid_thw", "position_ids", "features", "logits"),
    "qwen3_vl_moe": ("input_ids", "grid_thw", "position_ids", "logits"),
}


def paths_of(member: str) -> tuple[Path, Path]:
    """A member's arrays, and what is said of them."""
    folder = Path(__file__).parent
    return folder / f"{member}_videos.npz", folder / f"{member}_videos.json"


def load_timed_case(name: str, member: str) -> VideoCase:
    """Load one recording, with no features where none are; its arrays must not be written to."""
    about = timed(member)["cases"][name]
    arrays: dict[str, Any] = {"features": np.empty((0, 0), np.float32)}
    with np.load(paths_of(member)[0]) as recording:
        arrays |= {array: recording[f"{name}/{array}"] for array in ARRAYS[member]}
    return VideoCase(
        name=name,
        messages=tuple(CONVERSATIONS[name]),
        text=about["text"],
        rope_delta=about["rope_delta"],
        patches_sha256=about["patches_sha256"],
        greedy=tuple(about["greedy"]),
        token_side=TOKEN_SIDE,
        **arrays,
    )


@cache
def timed(member: str) -> dict[str, Any]:
    """All of a member's description: cases and, of the dense one, what was sampled and sized."""
    recording: dict[str, Any] = json.loads(paths_of(member)[1].read_text("utf-8"))
    return recording
