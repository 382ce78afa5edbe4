"""What the runtime promises holds for every member: crowds, caches, speculation, slices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl import QwenVL, load
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.looking import look
from mlx_qwenvl.engine.prefill import encode_images, prefill
from mlx_qwenvl.engine.slices import Slices, UnderWay
from mlx_qwenvl.engine.speculate import speculate
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.models.quantized_cache import KVFormat
from tests.golden.tiny import picture
from tests.test_engine import TOLERANCE, all_logits, prompt
from tests.test_scheduler import check_crowd, questions
from tests.test_speculation import Script, eager, plainly, sampler

PHOTO = picture(41, 150, 210)


@pytest.fixture
def vlm(younger: Callable[..., QwenVL], member: str, monkeypatch: pytest.MonkeyPatch) -> QwenVL:
    """The member with empty stores, going on until it is told to stop."""
    loaded = younger(member)
    monkeypatch.setattr(loaded, "stores", Stores.of(loaded.model))
    monkeypatch.setattr(loaded, "end_ids", frozenset())
    return loaded


def test_a_crowd_answers_as_each_alone(vlm: QwenVL) -> None:
    check_crowd(vlm, questions(8))


@pytest.mark.parametrize("wrong_every", [3, 1000])
def test_proposals_change_no_token(vlm: QwenVL, wrong_every: int) -> None:
    built, count = prompt(vlm), 30
    plain, _ = plainly(vlm, built, count, count)
    conversation = Conversation(vlm.model)
    logits = prefill(vlm.model, conversation, built, step=4096).logits[:, -1]
    speculator = eager(Script(plain, wrong_every))
    steps = speculate(vlm.model, conversation.cache, logits, sampler(vlm, built), count, speculator)
    assert [step[0].token_id for step in steps] == plain and speculator.rounds > 0


def test_another_question_about_a_picture_reuses_it_and_is_answered_alike(vlm: QwenVL) -> None:
    asked = {"images": [PHOTO], "max_tokens": 6, "temperature": 0}
    vlm.generate("What is this?", **asked)  # type: ignore[arg-type]
    again = vlm.generate("Where is it?", **asked)  # type: ignore[arg-type]
    alone = vlm.generate("Where is it?", cache=False, **asked)  # type: ignore[arg-type]
    assert again.token_ids == alone.token_ids
    assert again.usage.cached_tokens > again.usage.image_tokens
    assert alone.usage.cached_tokens == 0


def test_a_prefix_that_ends_within_a_picture_is_gone_on_from(vlm: QwenVL) -> None:
    built, conversation = prompt(vlm), Conversation(vlm.model)
    whole = all_logits(vlm, built)
    prefill(vlm.model, conversation, built, step=4096)
    slot = built.slots[0]
    for layer in conversation.cache:
        layer.trim(layer.offset - (slot.start + 2))
    shorter = conversation.fork(slot.start + 2)
    filled = prefill(vlm.model, shorter, built, step=5, all_logits=True)
    assert filled.cached_tokens == slot.start + 2
    np.testing.assert_allclose(
        np.array(filled.logits[0]), whole[slot.start + 2 :], rtol=0, atol=TOLERANCE
    )


def test_features_outlive_the_process(folder: Path, tmp_path: Path) -> None:
    asked = {"images": [PHOTO], "max_tokens": 5, "temperature": 0}
    first = load(folder, dtype="float32", disk_cache=tmp_path)
    first.generate("What?", system="One.", **asked)  # type: ignore[arg-type]
    second = load(folder, dtype="float32", disk_cache=tmp_path)
    found = second.generate("What?", system="Other.", **asked)  # type: ignore[arg-type]
    alone = second.generate("What?", system="Other.", cache=False, **asked)  # type: ignore[arg-type]
    assert second.stores.features.hits == 1
    assert found.token_ids == alone.token_ids


def test_quantized_keys_and_values_answer_nearly_the_same(vlm: QwenVL) -> None:
    built = prompt(vlm)
    exact = all_logits(vlm, built)
    filled = prefill(
        vlm.model, Conversation(vlm.model, KVFormat(8)), built, step=5, all_logits=True
    )
    error = (np.array(filled.logits[0]) - exact) / exact.std()
    if hasattr(vlm.config.text, "num_experts"):
        # Of most numbers: where rounding makes a router choose otherwise, a token is another.
        assert 0 < np.median(np.abs(error)) < 0.02
    else:
        assert 0 < np.sqrt(np.mean(error**2)) < 0.03


class Timid(Slices):
    """Slices as small as they get, as where others wait and the device is slow."""

    def blocks(self, patches: int, most: int) -> int:
        return 0

    def keys(self, batch: int) -> int:
        return 10

    def rows(self, batch: int, patches: int) -> int:
        return 6

    def wait(self, slice_: UnderWay) -> float:
        mx.eval(list(slice_.arrays))
        return 1.0


def test_looking_in_small_slices_gives_the_same_features(vlm: QwenVL) -> None:
    images = [slot.image for slot in prompt(vlm).slots]
    whole = encode_images(vlm.model, images)
    looking = look(vlm.model, [view for image in images for view in image.views], Timid())
    count = 0
    while True:
        try:
            next(looking)
            count += 1
        except StopIteration as end:
            found = end.value
            break
    assert count > 20
    for digest, features in whole.items():
        np.testing.assert_allclose(
            np.array(found[digest]), np.array(features), rtol=0, atol=TOLERANCE
        )
