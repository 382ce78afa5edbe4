"""The recordings, ready for a test: no torch and no transformers needed.

case = load_case("two_images")
case.images()       what the user showed
case.logits         what transformers makes of it
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.golden.pictures import picture

RECORDING = Path(__file__).with_name("qwen2_vl.npz")
DESCRIPTION = Path(__file__).with_name("qwen2_vl.json")
LAST_LOGITS = 24  # tokens of a prompt whose logits are kept of the younger siblings

CASES: tuple[str, ...] = (
    "text",
    "one_image",
    "two_images",
    "wide_image",
    "tall_image",
    "image_in_second_turn",
    "three_images_in_two_turns",
    "own_system_message",
    "text_before_image",
    "untied_text",
    "untied_one_image",
    "untied_two_images",
)

YOUNGER_CASES = (
    "text",
    "one_image",
    "two_images",
    "wide_image",
    "image_in_second_turn",
    "three_images_in_two_turns",
    "untied_two_images",
)

ARRAYS = ("input_ids", "grid_thw", "position_ids", "features", "logits")

# {"type": "text", "text": ...} or {"type": "image", "image": index into the case's pictures}
Part = dict[str, str | int]
# {"role": ..., "content": text or parts}
Message = dict[str, str | list[Part]]


@dataclass(frozen=True)
class GoldenCase:
    """One conversation, and what transformers made of it on the CPU in float32.

    Attributes:
        name: One of `CASES`.
        tied: Whether the checkpoint's head is its embedding.
        messages: The conversation in OpenAI's form.
        pictures: Seed, width, height of each picture the messages refer to.
        text: The conversation through the chat template, one pad token an image.
        input_ids: [L] int32, the text's tokens with every pad token repeated t*h*w/4 times.
        grid_thw: [n_images, 3] int32, in patches.
        position_ids: [3, L] int32, axes t, h, w.
        rope_delta: What to add to the index of a token after the prompt to get its position.
        patches_sha256: Of the uint8 patches [n_patches, 3, 2, 14, 14] of all images, before
            normalization.
        features: [n_patches/4, D] float32, of all images.
        logits: [L, V] float32, of the whole prompt; of a younger sibling [`LAST_LOGITS`, V] at
            most, of its last tokens.
        greedy: The 24 tokens with the largest logit at each step, stop tokens ignored.
    """

    name: str
    tied: bool
    messages: tuple[Message, ...]
    pictures: tuple[tuple[int, int, int], ...]
    text: str
    input_ids: NDArray[np.int32]
    grid_thw: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    rope_delta: int
    patches_sha256: str
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    greedy: tuple[int, ...]

    def images(self) -> list[Image.Image]:
        """Draw the pictures.

        Returns:
            RGB images, in the order of the prompt.
        """
        return [picture(*numbers) for numbers in self.pictures]


def load_case(name: str, member: str = "qwen2_vl") -> GoldenCase:
    """Load one recording.

    Args:
        name: One of `CASES`, or of `YOUNGER_CASES`.
        member: Whose it is, by its `model_type`.

    Returns:
        The recording. Its arrays must not be written to.
    """
    about = description_of(member)["cases"][name]
    with np.load(paths_of(member)[0]) as recording:
        arrays = {array: recording[f"{name}/{array}"] for array in ARRAYS}
    return GoldenCase(
        name=name,
        tied=about["tied"],
        messages=tuple(about["messages"]),
        pictures=tuple((seed, width, height) for seed, width, height in about["pictures"]),
        text=about["text"],
        rope_delta=about["rope_delta"],
        patches_sha256=about["patches_sha256"],
        greedy=tuple(about["greedy"]),
        **arrays,
    )


def paths_of(member: str) -> tuple[Path, Path]:
    """The arrays and the description of a member's recording."""
    return Path(__file__).with_name(f"{member}.npz"), Path(__file__).with_name(f"{member}.json")


@cache
def description_of(member: str) -> dict[str, Any]:
    """What is recorded of a member beside arrays."""
    recording: dict[str, Any] = json.loads(paths_of(member)[1].read_text("utf-8"))
    return recording
