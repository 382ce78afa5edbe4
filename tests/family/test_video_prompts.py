"""Qwen3-VL's videos in prompts: where they stand, what is kept of them, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.distributed.wire import pack, unpack
from mlx_qwenvl.engine.lookup import PICTURE, Lookup
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.errors import CheckpointError, ContextError, MediaError
from mlx_qwenvl.inputs.frames import VideoWishes
from mlx_qwenvl.inputs.frames_shared import SharedBudget
from mlx_qwenvl.inputs.messages import parse_messages, user_message
from mlx_qwenvl.inputs.processor import Processor
from mlx_qwenvl.inputs.prompt import ChatTemplate, Prompt, build_prompt
from tests.golden.tiny_files import TOKEN_ID
from tests.golden.videos import film
from tests.golden.younger import write_younger
from tests.test_video import fresh, videos_of

FRAMES = film(51, 96, 64, 12)
SIX = 6  # tokens of a temporal patch of them
PAD = TOKEN_ID["<|video_pad|>"]
ASKED: Any = {"max_tokens": 4, "temperature": 0}


@pytest.fixture
def vlm(younger: Callable[..., QwenVL]) -> QwenVL:
    """The dense member with empty stores."""
    return fresh(younger("qwen3_vl"))


def asked(vlm: QwenVL, frames: Sequence[Image.Image], text: str = "What?", **wishes: Any) -> Prompt:
    return vlm.prompt([user_message(text, [], [list(frames)])], Options(**wishes))


def alone(vlm: QwenVL, frames: Sequence[Image.Image], text: str = "What?", **wishes: Any) -> str:
    """The answer where nothing is kept."""
    empty = fresh(vlm, prefix_bytes=0, feature_bytes=0)
    return empty.generate(text, videos=[list(frames)], **ASKED, **wishes).text


# --- where videos stand -------------------------------------------------------------------------


def test_each_temporal_patch_stands_behind_its_time(vlm: QwenVL) -> None:
    turns = parse_messages(
        [{"role": "user", "content": ["See: ", {"type": "video"}, " So?"]}], (), [FRAMES[:3]]
    )
    prompt = vlm.prompt(turns, Options(fps=4))
    block = "<|vision_start|>" + SIX * "<|video_pad|>" + "<|vision_end|>"
    text = f"user\nSee: <0.1 seconds>{block}<0.5 seconds>{block} So?<|im_end|>"
    ids = vlm.tokenizer.encode_trusted(text)
    found = np.lib.stride_tricks.sliding_window_view(prompt.token_ids, len(ids))
    assert (found == ids).all(axis=1).sum() == 1
    (slot,) = prompt.slots
    assert [start for start, _ in slot.views] == list(slot.starts)
    assert prompt.video_tokens == (prompt.token_ids == PAD).sum() == 2 * SIX


@pytest.mark.parametrize("place", ["<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>"])
def test_a_template_may_mark_the_place_or_only_fill_it(vlm: QwenVL, place: str) -> None:
    source = "{% for p in messages[0].content %}{{ p.text or '" + place + "' }}{% endfor %}"
    turns = [user_message("Hi", [], [FRAMES[:2]])]
    prompt = build_prompt(
        turns,
        ChatTemplate(source),
        vlm.tokenizer,
        vlm.processor.open,
        lambda part: vlm.open_video(part, Options()),
        tells_times=True,
    )
    block = "<|vision_start|>" + SIX * "<|video_pad|>" + "<|vision_end|>"
    expected = vlm.tokenizer.encode_trusted(f"<0.2 seconds>{block}Hi")
    assert prompt.token_ids.tolist() == expected


def test_a_mark_that_is_typed_is_text(vlm: QwenVL) -> None:
    prompt = asked(vlm, FRAMES[:4], "See <|video_pad|> and <|vision_start|> here")
    assert (prompt.token_ids == PAD).sum() == 2 * SIX
    assert (prompt.token_ids == TOKEN_ID["<|vision_start|>"]).sum() == 2


def test_one_frame_is_there_twice_and_none_is_refused(vlm: QwenVL) -> None:
    (one,) = videos_of(asked(vlm, FRAMES[:1]))
    (two,) = videos_of(asked(vlm, [FRAMES[0], FRAMES[0]]))
    assert one.digest == two.digest
    with pytest.raises(MediaError, match="no frames"):
        asked(vlm, [])
    with pytest.raises(MediaError, match="frames of one video"):
        asked(vlm, [FRAMES[0], FRAMES[1].resize((64, 64))])
    with pytest.raises(MediaError, match="too elongated"):
        asked(vlm, [Image.new("RGB", (4000, 16))] * 2)
    with pytest.raises(ContextError, match="the model's context"):
        vlm.generate("What?", videos=[[FRAMES[0]] * 600])


def test_the_same_video_may_stand_twice(vlm: QwenVL) -> None:
    (video,) = videos_of(asked(vlm, FRAMES[:4]))
    turns = parse_messages(
        [{"role": "user", "content": [{"type": "video", "video": FRAMES[:4]}] * 2}]
    )
    first, second = vlm.prompt(turns, Options()).slots
    assert first.image.digest == second.image.digest == video.digest
    assert len(first.starts) == len(second.starts) == 2
    assert first.starts[-1] < second.start


def test_a_prompt_comes_to_other_ranks_as_it_was(vlm: QwenVL) -> None:
    sent = asked(vlm, FRAMES[:4])
    (ours,), (theirs,) = sent.slots, unpack(pack(sent)).slots
    assert theirs.starts == ours.starts
    assert [v.digest for _, v in theirs.views] == [v.digest for _, v in ours.views]


# --- what is kept -------------------------------------------------------------------------------


def test_a_longer_cut_looks_at_new_frames_alone_and_goes_on_where_the_shorter_ended(
    vlm: QwenVL,
) -> None:
    vlm.generate("What?", videos=[FRAMES[:6]], **ASKED)
    assert (vlm.stores.features.hits, vlm.stores.features.misses) == (0, 3)
    long = vlm.generate("What?", videos=[FRAMES], **ASKED)
    assert vlm.stores.features.misses == 3 + 3
    third = asked(vlm, FRAMES).slots[0].starts[2]
    assert long.usage.cached_tokens == third + SIX + 1  # up to the mark behind the third
    assert long.text == alone(vlm, FRAMES)


def test_a_patch_that_was_filled_up_is_another(vlm: QwenVL) -> None:
    vlm.generate("What?", videos=[FRAMES[:5]], **ASKED)
    long = vlm.generate("What?", videos=[FRAMES[:6]], **ASKED)
    assert vlm.stores.features.misses == 3 + 1
    _, second, third = asked(vlm, FRAMES[:6]).slots[0].starts
    assert second + SIX < long.usage.cached_tokens < third
    assert long.text == alone(vlm, FRAMES[:6])


def test_a_changed_frame_is_seen_though_all_tokens_are_the_same(vlm: QwenVL) -> None:
    changed = [*FRAMES[:6], FRAMES[0], *FRAMES[7:]]
    vlm.generate("What?", videos=[FRAMES], **ASKED)
    other = vlm.generate("What?", videos=[changed], **ASKED)
    assert vlm.stores.features.misses == 6 + 1
    assert other.usage.cached_tokens == asked(vlm, FRAMES).slots[0].starts[3]
    assert other.text == alone(vlm, changed)


def test_frames_at_another_pace_are_known_and_stand_behind_other_times(vlm: QwenVL) -> None:
    vlm.generate("What?", videos=[FRAMES], **ASKED)
    quick = vlm.generate("What?", videos=[FRAMES], fps=1, **ASKED)
    assert vlm.stores.features.misses == 6
    assert quick.usage.cached_tokens < asked(vlm, FRAMES).slots[0].start
    assert quick.text == alone(vlm, FRAMES, fps=1)


def test_another_question_about_a_video_looks_at_nothing(vlm: QwenVL) -> None:
    chat = vlm.chat()
    chat.ask("What?", videos=[FRAMES], max_tokens=3)
    reply = chat.ask("And then?", max_tokens=3)
    assert vlm.stores.features.misses == 6
    assert reply.usage.cached_tokens > reply.usage.video_tokens == 6 * SIX


def test_prefixes_on_disk_are_shared_by_cuts(tmp_path: Path) -> None:
    folder = write_younger(tmp_path / "model", "qwen3_vl")

    def cached(frames: Sequence[Image.Image]) -> int:
        vlm = load(folder, dtype="float32", disk_cache=tmp_path / "disk", prefix_bytes=0)
        reply = vlm.generate("What?", videos=[list(frames)], max_tokens=1)
        return reply.usage.cached_tokens

    assert cached(FRAMES[:8]) == 0
    assert cached(FRAMES) == 64  # one whole block of the disk's


def test_many_at_once_answer_as_each_alone(vlm: QwenVL) -> None:
    cuts = [FRAMES[:4], FRAMES, FRAMES[3:8]]

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(
            *(vlm.agenerate("What?", videos=[cut], **ASKED) for cut in cuts)
        )

    replies = asyncio.run(all_at_once())
    assert [reply.text for reply in replies] == [alone(vlm, cut) for cut in cuts]


def test_text_between_frames_is_looked_up_and_slots_are_not(vlm: QwenVL) -> None:
    prompt = asked(vlm, FRAMES)
    lookup = Lookup(prompt)
    lookup.prepare()
    assert [token == PICTURE for token in lookup._tokens] == (prompt.token_ids == PAD).tolist()


# --- how videos are taken -----------------------------------------------------------------------

PICTURES = {
    **{"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2},
    **{"size": {"shortest_edge": 65536, "longest_edge": 16777216}},
    **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}


def budget_of(**settings: Any) -> Any:
    return Processor.from_dict(PICTURES, settings, SharedBudget).video


def test_settings_of_videos_are_read_in_every_layout(tmp_path: Path) -> None:
    stated = {"shortest_edge": 4096, "longest_edge": 25165824}
    expected = SharedBudget(
        shared_pixels=4096, max_pixels=768 * 32 * 32, total_pixels=25165824 // 2
    )
    assert budget_of(size=stated) == expected
    for layout in ("hub", "nested"):
        folder = write_younger(tmp_path / layout, "qwen3_vl_moe", layout=layout)
        assert load(folder).processor.video == expected


def test_without_settings_those_of_pictures_hold() -> None:
    """As Transformers falls back to `preprocessor_config.json` where there is no other file."""
    budget = budget_of()
    assert (budget.shared_pixels, budget.total_pixels) == (65536, 16777216 // 2)
    own = budget_of(fps=1, max_frames=64, max_video_tokens=512)
    assert (own.fps, own.max_frames, own.max_pixels) == (1, 64, 512 * 32 * 32)
    assert budget_of(cap_pixels_per_frame=False).max_pixels == 16777216
    for least, total in ((4096, 1), (-1, 4096), (4096, "many")):
        with pytest.raises(CheckpointError, match="contradict each other"):
            budget_of(size={"shortest_edge": least, "longest_edge": total})


def test_wishes_bound_frames_and_pixels(vlm: QwenVL) -> None:
    def size(**wishes: Any) -> tuple[int, tuple[int, int]]:
        (video,) = videos_of(asked(vlm, film(5, 256, 192, 8), **wishes))
        return video.grid_thw[0], video.size

    assert size() == (4, (256, 192))
    assert size(max_pixels=128 * 96) == (4, (128, 96))
    assert size(min_pixels=512 * 384) == (4, (512, 384))
    assert size(min_pixels=100 * 75, max_pixels=100 * 75) == (4, (96, 64))


def test_frames_at_their_least_size_are_fewer_than_fill_half_of_the_context() -> None:
    budget = budget_of().within(100 * 1024)
    least = int(65536 * 1.05)
    assert VideoWishes().applied(budget, 2).max_frames == max(2 * (100 * 1024 // least), 4)
    roomy = budget_of().within(131072 * 1024)
    assert VideoWishes().applied(roomy, 2).max_frames == 768
    assert VideoWishes(total_pixels=10 * least).applied(roomy, 2).max_frames == 20
