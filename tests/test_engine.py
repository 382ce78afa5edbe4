"""Prefill and decode: however the work is cut, the numbers are the same."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl import ContextError, QwenVL
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.decode import decode
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import encode_images, prefill
from mlx_qwenvl.engine.sampling import Sampler
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.inputs.messages import Message, user_message
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models.quantized_cache import KVFormat
from tests.golden.tiny import picture

TOLERANCE = 5e-5  # float32 sums in another order
SMALL, WIDE = picture(1, 84, 56), picture(2, 140, 56)


def prompt(vlm: QwenVL, *turns: Message) -> Prompt:
    return vlm.prompt(turns or [user_message("What is this?", [SMALL, WIDE])], Options())


def all_logits(vlm: QwenVL, built: Prompt, step: int = 4096) -> np.ndarray:
    filled = prefill(vlm.model, Conversation(vlm.model), built, step=step, all_logits=True)
    return np.array(filled.logits[0])


def test_chunked_prefill_equals_whole(tiny: QwenVL) -> None:
    built = prompt(tiny)
    whole = all_logits(tiny, built)
    for step in (1, 3, 7):
        np.testing.assert_allclose(all_logits(tiny, built, step), whole, rtol=0, atol=TOLERANCE)


def test_cached_decode_equals_one_prefill(tiny: QwenVL) -> None:
    built, conversation = prompt(tiny), Conversation(tiny.model)
    filled = prefill(tiny.model, conversation, built, step=4096)
    steps = [np.array(filled.logits[0, -1])]
    fed = [5, 99, 17, 250, 3]
    for token in fed:
        steps.append(np.array(tiny.model(mx.array([[token]]), conversation.cache)[0, -1]))
    longer = Prompt(np.append(built.token_ids, np.array(fed, dtype=np.int32)), built.slots)
    at_once = all_logits(tiny, longer)[-len(steps) :]
    np.testing.assert_allclose(np.stack(steps), at_once, rtol=0, atol=TOLERANCE)


def test_two_interleaved_streams_equal_each_alone(tiny: QwenVL) -> None:
    def asked(question: str, image: ImageSource) -> list[int]:
        reply = tiny.generate(question, images=[image], max_tokens=12, temperature=0)
        return list(reply.token_ids)

    alone = asked("Left?", SMALL), asked("And what of this one?", WIDE)
    first = tiny.stream("Left?", images=[SMALL], max_tokens=12, temperature=0)
    second = tiny.stream("And what of this one?", images=[WIDE], max_tokens=12, temperature=0)
    together: tuple[list[int], list[int]] = ([], [])
    running = [(first, together[0]), (second, together[1])]
    while running:
        for entry in list(running):
            chunk = next(entry[0], None)
            if chunk is None:
                running.remove(entry)
            else:
                entry[1].extend(chunk.token_ids)
    assert together == alone


def test_a_batch_of_two_decodes_as_each_alone(tiny: QwenVL) -> None:
    prompts = [prompt(tiny, user_message(text, [])) for text in ("1 2 3", "4 5 6")]
    assert len({p.token_ids.size for p in prompts}) == 1, "the batch needs equal lengths"

    def sampler(built: Prompt) -> Sampler:
        return Sampler(Options(), tiny.config.text.vocab_size, built.token_ids)

    alone, caches, logits = [], [], []
    for built in prompts:
        for keep in (False, True):
            conversation = Conversation(tiny.model)
            filled = prefill(tiny.model, conversation, built, step=4096)
            if keep:
                caches.append(conversation.cache)
                logits.append(filled.logits[:, -1])
            else:
                steps = decode(
                    tiny.model, conversation.cache, filled.logits[:, -1], [sampler(built)], 8
                )
                alone.append([step[0].token_id for step in steps])
    batch = tiny.model.make_cache()
    for layer, one, other in zip(batch, *caches, strict=True):
        pairs = zip(one.state, other.state, strict=True)
        layer.update_and_fetch(*(mx.concatenate(list(pair)) for pair in pairs))
    batched = list(
        decode(tiny.model, batch, mx.concatenate(logits), [sampler(p) for p in prompts], 8)
    )
    together = [[step[row].token_id for step in batched] for row in range(2)]
    assert together == alone


def test_a_picture_given_twice_is_encoded_once(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = prompt(tiny, user_message("Same?", [SMALL, WIDE, SMALL]))
    batches: list[int] = []
    tower = type(tiny.model.visual)
    original = tower.begin

    def counted(self: Any, patches: mx.array, grid: tuple[int, int, int]) -> Any:
        batches.append(patches.shape[0])
        return original(self, patches, grid)

    monkeypatch.setattr(tower, "begin", counted)
    encode_images(tiny.model, [slot.image for slot in built.slots])
    assert batches == [1, 1]


def test_pictures_of_one_size_go_through_the_tower_together(tiny: QwenVL) -> None:
    pictures = [picture(seed, 84, 56) for seed in (3, 4)]
    images = [slot.image for slot in prompt(tiny, user_message("", pictures)).slots]
    together = encode_images(tiny.model, images)
    for image in images:
        alone = encode_images(tiny.model, [image])[image.digest]
        assert float(mx.abs(together[image.digest] - alone).max()) < TOLERANCE


def test_quantized_keys_and_values_answer_nearly_the_same(tiny: QwenVL) -> None:
    built = prompt(tiny)
    exact = all_logits(tiny, built)
    spread = exact.std()
    for bits, allowed in ((8, 0.02), (4, 0.35)):  # of the logits' spread, root mean square
        conversation = Conversation(tiny.model, KVFormat(bits))
        filled = prefill(tiny.model, conversation, built, step=5, all_logits=True)
        error = np.sqrt(np.mean((np.array(filled.logits[0]) - exact) ** 2)) / spread
        assert 0 < error < allowed
        assert conversation.cache[0].nbytes < 0.5 * prefilled_bytes(tiny, built)


def prefilled_bytes(vlm: QwenVL, built: Prompt) -> int:
    conversation = Conversation(vlm.model)
    prefill(vlm.model, conversation, built, step=4096)
    return conversation.cache[0].nbytes


def test_progress_reports_every_step_up_to_the_end(tiny: QwenVL) -> None:
    seen: list[tuple[int, int]] = []
    tiny.generate(
        "Hello there",
        max_tokens=1,
        cache=False,
        prefill_step=4,
        on_prefill=lambda done, total: seen.append((done, total)),
    )
    total = seen[-1][1]
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == [*range(4, total, 4), total]


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(tiny: QwenVL) -> None:
    limit = tiny.config.text.max_position_embeddings
    with pytest.raises(ContextError, match=f"context {limit}"):
        tiny.generate("word " * limit)


def test_figures_add_up(tiny: QwenVL) -> None:
    reply = tiny.generate("What?", images=[SMALL, WIDE], max_tokens=5, temperature=0, cache=False)
    usage = reply.usage
    assert usage.image_tokens == 3 * 2 + 5 * 2
    assert usage.completion_tokens == len(reply.token_ids) <= 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.cached_tokens == 0
    timings = reply.timings
    assert 0 < timings.prefill_s < timings.time_to_first_token_s
    assert timings.vision_s > 0 and timings.load_s > 0 and timings.decode_s > 0
    assert reply.peak_memory_bytes > 0
    assert dict(usage)["total_tokens"] == usage["total_tokens"] == usage.total_tokens
    assert timings["decode_s"] == timings.decode_s


def test_a_stream_that_is_left_early_can_be_left(tiny: QwenVL) -> None:
    stream = tiny.stream("Hello", max_tokens=50, temperature=0)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert tiny.generate("Hello", max_tokens=2, temperature=0).usage.completion_tokens <= 2
