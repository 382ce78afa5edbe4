"""The recordings of videos, ready for a test: no torch and no transformers needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.golden.cases import Message
from tests.golden.pictures import picture

RECORDING = Path(__file__).with_name("videos.npz")
DESCRIPTION = Path(__file__).with_name("videos.json")
TOKEN_SIDE = 28  # pixels of a token's side, in Qwen2-VL

ARRAYS = ("input_ids", "grid_thw", "position_ids", "features", "logits")
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 768  # of a frame, in all cases


LAST = 20  # tokens of each prompt whose logits are recorded


def film(seed: int, width: int, height: int, frames: int) -> list[Image.Image]:
    """Frames that differ from one to the next: a window that moves over one picture."""
    whole = picture(seed, width + 3 * frames, height + 2 * frames)
    return [whole.crop((3 * at, 2 * at, 3 * at + width, 2 * at + height)) for at in range(frames)]


# Seed, width, height and frames of each video. Sides are multiples of 28, so that nothing is
# resized: torchvision's bicubic is not Pillow's.
VIDEOS = {
    "video": [(31, 84, 56, 4)],
    "odd_video": [(32, 56, 84, 5)],
    "one_frame": [(33, 84, 84, 1)],
    "long_video": [(34, 56, 56, 14)],
    "two_videos": [(35, 56, 56, 2), (36, 84, 56, 4)],
    "video_and_picture": [(37, 56, 84, 4)],
    "pictures_and_video_in_two_turns": [(38, 84, 56, 6)],
}
# Seed, width and height of each picture.
PICTURES = {
    "video_and_picture": [(21, 84, 56)],
    "pictures_and_video_in_two_turns": [(22, 56, 56), (23, 84, 84)],
}


def _text(text: str) -> dict[str, str | int]:
    return {"type": "text", "text": text}


def _video(index: int) -> dict[str, str | int]:
    return {"type": "video", "video": index}


def _image(index: int) -> dict[str, str | int]:
    return {"type": "image", "image": index}


CONVERSATIONS: dict[str, list[Message]] = {
    "video": [{"role": "user", "content": [_video(0), _text("What happens here?")]}],
    "odd_video": [{"role": "user", "content": [_video(0), _text("What happens here?")]}],
    "one_frame": [{"role": "user", "content": [_video(0), _text("Describe this video.")]}],
    "long_video": [{"role": "user", "content": [_video(0), _text("How does it end?")]}],
    "two_videos": [{"role": "user", "content": [_video(0), _text(" or "), _video(1), _text("?")]}],
    "video_and_picture": [
        {"role": "user", "content": [_video(0), _image(0), _text("Is this in the video?")]}
    ],
    "pictures_and_video_in_two_turns": [
        {"role": "user", "content": [_image(0), _text("What is this?")]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": [_video(0), _text("and"), _image(1), _text("now?")]},
    ],
}

CASES = tuple(CONVERSATIONS)


@dataclass(frozen=True)
class VideoCase:
    """One conversation with videos, and what transformers made of it on the CPU in float32.

    Attributes:
        name: One of `CASES`.
        messages: The conversation; parts name videos and pictures by their index.
        text: It through the chat template, one pad token a video and a picture.
        rope_delta: What to add to the index of a token after the prompt to get its position.
        patches_sha256: Of the uint8 patches [n, 3, 2, 14, 14] of all videos.
        greedy: The tokens with the largest logit at each step, stop tokens ignored.
        input_ids: [L] int32.
        grid_thw: [n_videos, 3] int32, in patches.
        position_ids: [3, L] int32, axes t, h, w.
        features: [n_patches/4, D] float32, of all videos.
        logits: [LAST, V] float32, of the last tokens of the prompt.
        token_side: Pixels of a token's side; of others, frames are larger by as much.
    """

    name: str
    messages: tuple[Message, ...]
    text: str
    rope_delta: int
    patches_sha256: str
    greedy: tuple[int, ...]
    input_ids: NDArray[np.int32]
    grid_thw: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    token_side: int = TOKEN_SIDE

    def videos(self) -> list[list[Image.Image]]:
        """The frames of each video."""
        return films(self.name, self.token_side)

    def images(self) -> list[Image.Image]:
        """The pictures."""
        return stills(self.name, self.token_side)


def films(name: str, token_side: int = TOKEN_SIDE) -> list[list[Image.Image]]:
    """Frames of each video of a case, as many tokens high and wide for every side of a token."""
    return [
        film(seed, width * token_side // TOKEN_SIDE, height * token_side // TOKEN_SIDE, frames)
        for seed, width, height, frames in VIDEOS[name]
    ]


def stills(name: str, token_side: int = TOKEN_SIDE) -> list[Image.Image]:
    """The pictures of a case, likewise."""
    return [
        picture(seed, width * token_side // TOKEN_SIDE, height * token_side // TOKEN_SIDE)
        for seed, width, height in PICTURES.get(name, [])
    ]


def load_video_case(name: str) -> VideoCase:
    """Load one recording; its arrays must not be written to."""
    about = described()["cases"][name]
    with np.load(RECORDING) as recording:
        arrays = {array: recording[f"{name}/{array}"] for array in ARRAYS}
    return VideoCase(
        name=name,
        messages=tuple(CONVERSATIONS[name]),
        text=about["text"],
        rope_delta=about["rope_delta"],
        patches_sha256=about["patches_sha256"],
        greedy=tuple(about["greedy"]),
        **arrays,
    )


@cache
def described() -> dict[str, Any]:
    """All of `videos.json`: cases, and what was sampled and resized to which size."""
    recording: dict[str, Any] = json.loads(DESCRIPTION.read_text("utf-8"))
    return recording
