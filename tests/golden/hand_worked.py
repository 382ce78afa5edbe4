"""M-RoPE positions worked out by hand: reasoning to hold the code against, not only other code.

The rules, from the Qwen2-VL paper: a text token takes the next position on all three axes. The
tokens of an image that begins at position s take t = s, h = s + row, w = s + column. The text after
it goes on at s + max(rows, columns), one more than the largest position used. Rows and columns are
counted in tokens, two patches each. rope_delta is the position of the first answer token minus the
length of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.golden.tiny_files import TOKEN_ID

_START, _PAD, _END = (
    TOKEN_ID[token] for token in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
)


@dataclass(frozen=True)
class HandWorked:
    """A prompt and its positions.

    Attributes:
        input_ids: Token ids of the tiny vocabulary, L of them; any text will do.
        grid_thw: t, h, w of each image in patches.
        position_ids: The rows t, h, w, each of length L.
        rope_delta: What to add to the index of a token after the prompt to get its position.
    """

    input_ids: tuple[int, ...]
    grid_thw: tuple[tuple[int, int, int], ...]
    position_ids: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    rope_delta: int


# 4x6 patches are 2 rows of 3 tokens. Two texts and the start mark take 0 1 2, so the image begins
# at s = 3: rows 3 and 4, columns 3 to 5. Text goes on at 3 + max(2, 3) = 6: the end mark, then 7 8.
# 12 tokens, the next position is 9: rope_delta = 9 - 12.
ONE_IMAGE = HandWorked(
    input_ids=(11, 12, _START, *[_PAD] * 6, _END, 13, 14),
    grid_thw=((1, 4, 6),),
    position_ids=(
        # text  vs  image             ve  text
        (0, 1,  2,  3, 3, 3, 3, 3, 3,  6,  7, 8),
        (0, 1,  2,  3, 3, 3, 4, 4, 4,  6,  7, 8),
        (0, 1,  2,  3, 4, 5, 3, 4, 5,  6,  7, 8),
    ),
    rope_delta=-3,
)  # fmt: skip

# A tall image, 6x4 patches: 3 rows of 2 tokens from s = 2, then text at 2 + max(3, 2) = 5: the end
# mark 5, a text 6, a start mark 7. A flat image, 2x8 patches: one row of 4 tokens from s = 8, then
# text at 8 + max(1, 4) = 12: the end mark, and 13.
# 17 tokens, the next position is 14: rope_delta = 14 - 17.
TWO_IMAGES = HandWorked(
    input_ids=(11, _START, *[_PAD] * 6, _END, 12, _START, *[_PAD] * 4, _END, 13),
    grid_thw=((1, 6, 4), (1, 2, 8)),
    position_ids=(
        # text vs  tall image        ve  text vs  flat image    ve   text
        (0,  1,  2, 2, 2, 2, 2, 2,  5,  6,  7,  8, 8,  8,  8,  12,  13),
        (0,  1,  2, 2, 3, 3, 4, 4,  5,  6,  7,  8, 8,  8,  8,  12,  13),
        (0,  1,  2, 3, 2, 3, 2, 3,  5,  6,  7,  8, 9, 10, 11,  12,  13),
    ),
    rope_delta=-3,
)  # fmt: skip

HAND_WORKED = {"one_image": ONE_IMAGE, "two_images": TWO_IMAGES}


_VIDEO = TOKEN_ID["<|video_pad|>"]


@dataclass(frozen=True)
class HandWorkedVideo:
    """A prompt with one video in it, and its positions in Qwen2.5-VL.

    There the time axis counts `tokens_per_second` positions a second, 2 in the tiny checkpoint:
    frame i of a video that begins at s takes t = s + floor(2 i seconds_per_grid).

    Attributes:
        input_ids: Token ids of the tiny vocabulary, L of them.
        grid_thw: t, h, w in patches.
        seconds_per_grid: Seconds that one temporal patch stands for.
        position_ids: The rows t, h, w, each of length L.
        rope_delta: What to add to the index of a token after the prompt to get its position.
    """

    input_ids: tuple[int, ...]
    grid_thw: tuple[int, int, int]
    seconds_per_grid: float
    position_ids: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    rope_delta: int


# 3 frames of 2x8 patches are 3 times one row of 4 tokens, 0.7 s apart: t = 0, floor(1.4) and
# floor(2.8). The video begins at s = 2; text goes on behind the largest position, 2 + 3, at 6.
# 16 tokens, the next position is 8: rope_delta = 8 - 16.
SHORT_VIDEO = HandWorkedVideo(
    input_ids=(11, _START, *[_VIDEO] * 12, _END, 12),
    grid_thw=(3, 2, 8),
    seconds_per_grid=0.7,
    position_ids=(
        (0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 6, 7),
        (0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 6, 7),
        (0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7),
    ),
    rope_delta=-8,
)

# 3 frames of 2x4 patches, 2 s apart: t = 0, 4, 8, and only two columns. The largest position is
# 2 + 8, so text goes on at 11.
LONG_VIDEO = HandWorkedVideo(
    input_ids=(11, _START, *[_VIDEO] * 6, _END, 12),
    grid_thw=(3, 2, 4),
    seconds_per_grid=2.0,
    position_ids=(
        (0, 1, 2, 2, 6, 6, 10, 10, 11, 12),
        (0, 1, 2, 2, 2, 2, 2, 2, 11, 12),
        (0, 1, 2, 3, 2, 3, 2, 3, 11, 12),
    ),
    rope_delta=3,
)

VIDEOS = {"short": SHORT_VIDEO, "long": LONG_VIDEO}


# Qwen3-VL has text between a video's frames, so that each is placed as a picture is. Two frames of
# 2x8 patches are one row of 4 tokens each. Text and the start mark take 0 and 1, the first frame
# begins at s = 2, text goes on at 2 + 4 = 6: the end mark 6, a text 7, a start mark 8. The second
# frame begins at 9, text goes on at 13. 15 tokens, the next position is 15: rope_delta = 0.
FRAMES = HandWorkedVideo(
    input_ids=(11, _START, *[_VIDEO] * 4, _END, 12, _START, *[_VIDEO] * 4, _END, 13),
    grid_thw=(2, 2, 8),
    seconds_per_grid=1.0,
    position_ids=(
        (0, 1, 2, 2, 2, 2, 6, 7, 8, 9, 9, 9, 9, 13, 14),
        (0, 1, 2, 2, 2, 2, 6, 7, 8, 9, 9, 9, 9, 13, 14),
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14),
    ),
    rope_delta=0,
)
