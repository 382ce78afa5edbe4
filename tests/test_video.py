"""Videos in prompts, against recordings of Transformers in float32 (see golden/README.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.decode import decode
from mlx_qwenvl.engine.fit import check_answer
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import encode_images, prefill
from mlx_qwenvl.engine.sampling import Sampler
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.errors import ContextError, MemoryExceeded, OptionError, PromptError
from mlx_qwenvl.inputs.frames import VideoBudget, VideoWishes
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.messages import parse_messages, user_message
from mlx_qwenvl.inputs.processor import Processor
from mlx_qwenvl.inputs.prompt import ChatTemplate, Prompt, build_prompt
from mlx_qwenvl.inputs.video import VideoPatches
from mlx_qwenvl.models.rope import prompt_positions
from tests.golden.tiny import picture
from tests.golden.videos import CASES, LAST, MIN_PIXELS, VideoCase, film, load_video_case

TOLERANCE = 1e-4  # largest absolute difference of features and logits, which reach about 8
SMALL = Options(min_pixels=MIN_PIXELS)
FRAMES = film(51, 84, 56, 12)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> VideoCase:
    return load_video_case(request.param)


def prompt_of(vlm: QwenVL, case: VideoCase) -> Prompt:
    """The case's prompt as the runtime makes it of messages, pictures and lists of frames."""
    messages = [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [
                part if part["type"] == "text" else {"type": part["type"]}
                for part in message["content"]
            ],
        }
        for message in case.messages
    ]
    return vlm.prompt(parse_messages(messages, case.images(), case.videos()), SMALL)


def asked(vlm: QwenVL, frames: Sequence[Image.Image], text: str = "What happens?") -> Prompt:
    return vlm.prompt([user_message(text, [], [list(frames)])], SMALL)


def videos_of(prompt: Prompt) -> list[VideoPatches]:
    return [slot.image for slot in prompt.slots if isinstance(slot.image, VideoPatches)]


# --- parity -------------------------------------------------------------------------------------


def test_prompt_ids_and_grids_equal_the_recording(tiny: QwenVL, case: VideoCase) -> None:
    prompt = prompt_of(tiny, case)
    assert prompt.token_ids.tolist() == case.input_ids.tolist()
    assert [list(video.grid_thw) for video in videos_of(prompt)] == case.grid_thw.tolist()


def test_positions_equal_the_recording(tiny: QwenVL, case: VideoCase) -> None:
    prompt = prompt_of(tiny, case)
    slots = [(slot.start, slot.image.grid_thw) for slot in prompt.slots]
    positions, rope_delta = prompt_positions(prompt.token_ids.size, slots, merge_size=2)
    assert positions.tolist() == case.position_ids.tolist()
    assert rope_delta == case.rope_delta


def test_vision_features_equal_the_recording(tiny: QwenVL, case: VideoCase) -> None:
    videos = videos_of(prompt_of(tiny, case))
    encoded = encode_images(tiny.model, videos)
    ours = np.concatenate([np.array(encoded[video.digest]) for video in videos])
    np.testing.assert_allclose(ours, case.features, rtol=0, atol=TOLERANCE)


def test_logits_equal_the_recording(tiny: QwenVL, case: VideoCase) -> None:
    prompt = prompt_of(tiny, case)
    filled = prefill(tiny.model, Conversation(tiny.model), prompt, step=4096, all_logits=True)
    ours = np.array(filled.logits[0])[-LAST:]
    np.testing.assert_allclose(ours, case.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("step", [4096, 16], ids=["whole", "in steps of 16"])
def test_greedy_tokens_equal_the_recording(tiny: QwenVL, case: VideoCase, step: int) -> None:
    prompt, conversation = prompt_of(tiny, case), Conversation(tiny.model)
    filled = prefill(tiny.model, conversation, prompt, step=step)
    sampler = Sampler(Options(), filled.logits.shape[-1], prompt.token_ids)
    tokens = decode(
        tiny.model, conversation.cache, filled.logits[:, -1], [sampler], len(case.greedy)
    )
    assert tuple(step[0].token_id for step in tokens) == case.greedy


def test_the_public_ways_equal_the_recording(tiny: QwenVL) -> None:
    case = load_video_case("video")
    text = "What happens here?"
    ours = tiny.logits(text, videos=case.videos(), min_pixels=MIN_PIXELS)
    np.testing.assert_allclose(ours[-LAST:], case.logits, rtol=0, atol=TOLERANCE)
    arrays = [np.stack([np.asarray(frame) for frame in frames]) for frames in case.videos()]
    messages = [{"role": "user", "content": [{"type": "video", "video": arrays[0]}, text]}]
    reply = tiny.generate(messages=messages, max_tokens=12, temperature=0, min_pixels=MIN_PIXELS)
    assert reply.token_ids == case.greedy
    assert (reply.usage.video_tokens, reply.usage.image_tokens) == (12, 0)
    assert reply.usage["video_tokens"] == 12
    (seen,) = reply.videos
    assert [frame.tobytes() for frame in seen.to_images()] == [
        frame.tobytes() for frame in case.videos()[0]
    ]
    assert reply.pictures == ()
    assert reply._repr_markdown_().count("data:image/") == 4


def test_a_template_without_videos_says_so(tiny: QwenVL) -> None:
    source = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    with pytest.raises(PromptError, match="1 videos came, but the chat template made 0 places"):
        build_prompt(
            [user_message("Hi", [], [FRAMES])],
            ChatTemplate(source),
            tiny.tokenizer,
            tiny.processor.open,
            lambda part: tiny.open_video(part, SMALL),
        )


def test_the_built_in_template_and_the_checkpoints_agree(tiny: QwenVL, tmp_path: Path) -> None:
    ours = build_prompt(
        [user_message("Hi", [], [FRAMES])],
        ChatTemplate.from_folder(tmp_path),
        tiny.tokenizer,
        tiny.processor.open,
        lambda part: tiny.open_video(part, SMALL),
    )
    assert ours.token_ids.tolist() == asked(tiny, FRAMES, "Hi").token_ids.tolist()


def test_a_mark_that_is_typed_is_text(tiny: QwenVL) -> None:
    pad = tiny.tokenizer.token_id("<|video_pad|>")
    prompt = asked(tiny, FRAMES, "See <|video_pad|> here")
    assert (prompt.token_ids == pad).sum() == prompt.video_tokens
    with pytest.raises(PromptError, match="token 493, which stands for no text"):
        from mlx_qwenvl.inputs.prompt import text_prompt

        text_prompt([pad], tiny.tokenizer, 100)


def test_pictures_and_videos_go_where_their_parts_stand(tiny: QwenVL) -> None:
    content = [
        {"type": "video_url", "video_url": {"url": FRAMES[:2], "max_frames": 8}},
        {"type": "image"},
        {"type": "video"},
        "Compare.",
    ]
    turns = parse_messages(
        [{"role": "user", "content": content}], [picture(1, 56, 56)], [FRAMES[:4]]
    )
    prompt = tiny.prompt(turns, SMALL)
    assert [type(slot.image) for slot in prompt.slots] == [VideoPatches, ImagePatches, VideoPatches]
    assert [slot.image.grid_thw[0] for slot in prompt.slots] == [1, 1, 2]
    assert prompt.seen_tokens == prompt.image_tokens + prompt.video_tokens


def test_videos_without_a_place_go_before_the_last_question(tiny: QwenVL) -> None:
    turns = parse_messages([{"role": "user", "content": "What?"}], [picture(1, 56, 56)], [FRAMES])
    kinds = [type(slot.image) for slot in tiny.prompt(turns, SMALL).slots]
    assert kinds == [ImagePatches, VideoPatches]
    with pytest.raises(PromptError, match="2 videos for 1 video parts without a source"):
        parse_messages([{"role": "user", "content": [{"type": "video"}]}], (), [FRAMES, FRAMES])


# --- caches -------------------------------------------------------------------------------------


def fresh(vlm: QwenVL, **bounds: Any) -> QwenVL:
    """The same model with stores of its own."""
    return QwenVL(
        "tiny",
        vlm.model,
        vlm.tokenizer,
        vlm.template,
        vlm.processor,
        {},
        0.0,
        Stores.of(vlm.model, **bounds),
    )


def test_a_longer_cut_looks_at_new_frames_alone_and_goes_on_where_the_shorter_ended(
    tiny: QwenVL,
) -> None:
    vlm = fresh(tiny)
    options: Any = {"max_tokens": 2, "min_pixels": MIN_PIXELS, "temperature": 0}
    short = vlm.generate("How does it end?", videos=[FRAMES[:6]], **options)
    assert (vlm.stores.features.hits, vlm.stores.features.misses) == (0, 3)
    long = vlm.generate("How does it end?", videos=[FRAMES], **options)
    assert vlm.stores.features.misses == 3 + 3  # of six temporal patches three are new
    before = int(np.flatnonzero(asked(vlm, FRAMES).token_ids == 493)[0])
    assert long.usage.cached_tokens == before + short.usage.video_tokens
    alone = fresh(tiny, prefix_bytes=0, feature_bytes=0)
    assert long.text == alone.generate("How does it end?", videos=[FRAMES], **options).text


def test_a_changed_frame_is_seen_though_all_tokens_are_the_same(tiny: QwenVL) -> None:
    vlm = fresh(tiny)
    changed = [*FRAMES[:6], FRAMES[0], *FRAMES[7:]]
    options: Any = {"max_tokens": 4, "min_pixels": MIN_PIXELS, "temperature": 0}
    vlm.generate("What?", videos=[FRAMES], **options)
    misses = vlm.stores.features.misses
    other = vlm.generate("What?", videos=[changed], **options)
    assert vlm.stores.features.misses == misses + 1
    alone = fresh(tiny, prefix_bytes=0, feature_bytes=0)
    assert other.text == alone.generate("What?", videos=[changed], **options).text
    before = int(np.flatnonzero(asked(vlm, FRAMES).token_ids == 493)[0])
    assert other.usage.cached_tokens == before + 3 * 6  # three temporal patches of six tokens


def test_another_question_about_a_video_looks_at_nothing(tiny: QwenVL) -> None:
    vlm = fresh(tiny)
    chat = vlm.chat()
    chat.ask("What?", videos=[FRAMES], max_tokens=3, min_pixels=MIN_PIXELS)
    looked = vlm.stores.features.misses
    reply = chat.ask("And then?", max_tokens=3)
    assert vlm.stores.features.misses == looked
    assert reply.usage.cached_tokens > reply.usage.video_tokens == 36
    assert "data:image/" in chat._repr_markdown_()


def test_prefixes_on_disk_are_shared_by_cuts(tiny_folder: Path, tmp_path: Path) -> None:
    def cached(frames: Sequence[Image.Image]) -> int:
        vlm = load(tiny_folder, dtype="float32", disk_cache=tmp_path, prefix_bytes=0)
        options: Any = {"max_tokens": 1, "min_pixels": 84 * 84}
        return vlm.generate("What?", videos=[list(frames)], **options).usage.cached_tokens

    assert cached(FRAMES[:8]) == 0
    assert cached(FRAMES) == 64  # one whole block of the disk's


# --- sizes, limits, memory ----------------------------------------------------------------------


def test_a_video_fills_half_of_the_context_where_nobody_says_otherwise(tiny: QwenVL) -> None:
    frames = [FRAMES[0]] * 600
    prompt = tiny.prompt([user_message("What?", [], [frames])], Options(min_pixels=MIN_PIXELS))
    assert prompt.video_tokens <= tiny.config.text.max_position_embeddings // 2 * 1.06
    with pytest.raises(ContextError, match=r"the video takes \d+ tokens, the model's context has"):
        tiny.prompt([user_message("What?", [], [frames])], Options(min_pixels=200_000))


def test_frames_at_their_least_size_are_fewer_rather_than_too_many() -> None:
    usual = VideoBudget(total_pixels=100 * 784)
    budget = VideoWishes(min_pixels=10 * 784).applied(usual, 2)
    assert budget.max_frames == 2 * (100 * 784 // int(7840 * 1.05))
    assert VideoWishes(max_frames=50).applied(usual, 2).max_frames == 50


def test_one_side_of_a_limit_moves_the_other() -> None:
    usual = VideoBudget()
    assert VideoWishes(max_pixels=784).applied(usual, 2).min_pixels == 784
    assert VideoWishes(min_pixels=10**6).applied(usual, 2).max_pixels == 10**6
    assert VideoWishes(max_frames=2).applied(usual, 2).min_frames == 2


def test_a_parts_own_wishes_go_first() -> None:
    own, call = VideoWishes(fps=4, max_pixels=784), VideoWishes(n_frames=8, max_frames=6)
    assert own.over(call) == VideoWishes(fps=4, max_frames=6, max_pixels=784)
    assert call.over(own) == VideoWishes(n_frames=8, max_frames=6, max_pixels=784)


@pytest.mark.parametrize(
    "options",
    [{"fps": 0}, {"fps": 1, "n_frames": 3}, {"max_frames": 0}, {"n_frames": 1.5}],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(tiny: QwenVL, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        tiny.generate("What?", videos=[FRAMES], **options)


def test_a_checkpoints_own_video_settings_hold() -> None:
    raw = {
        **{"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2},
        **{"min_pixels": 3136, "max_pixels": 28224},
        **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    }
    small = Processor.from_dict(raw).video
    assert (small.min_pixels, small.max_pixels) == (3136, 28224)
    own = {"size": {"shortest_edge": 5000, "longest_edge": 6000}, "fps": 1, "max_frames": 64}
    said = Processor.from_dict(raw, own).video
    assert (said.min_pixels, said.max_pixels, said.fps, said.max_frames) == (5000, 6000, 1, 64)


def test_memory_is_checked_before_a_video_is_looked_at(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = asked(tiny, FRAMES)
    nothing = Stores.of(tiny.model, 0, 0)
    monkeypatch.setenv("MLX_QWENVL_MEMORY_LIMIT", str(mx.get_active_memory() + 1000))
    with pytest.raises(MemoryExceeded, match="the answer needs about"):
        check_answer(tiny.model, prompt, SMALL, nothing, nothing)


def test_many_frames_go_through_the_tower_in_batches(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what comes out does not depend on how they were batched."""
    video = videos_of(asked(tiny, FRAMES))[0]
    whole = encode_images(tiny.model, [video])[video.digest]
    monkeypatch.setattr("mlx_qwenvl.engine.looking.VISION_BATCH", 24)
    parts = encode_images(tiny.model, [video])[video.digest]
    np.testing.assert_allclose(np.array(whole), np.array(parts), rtol=0, atol=1e-5)
