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
