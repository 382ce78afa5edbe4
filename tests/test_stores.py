"""What is kept of earlier questions: reused where the content is the same, and nowhere else."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from PIL import Image

from mlx_qwenvl import Chat, OptionError, QwenVL, load
from mlx_qwenvl.engine.feature_store import FeatureStore
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.vlm import Stores
from tests.golden.tiny import picture

ONE, OTHER, WIDE = picture(1, 84, 56), picture(2, 84, 56), picture(3, 140, 56)
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0}


class Work:
    """Counts what the model really does."""

    def __init__(self, vlm: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tower_runs = self.rows = 0
        tower, decoder = type(vlm.model.visual).__call__, type(vlm.model.model).__call__

        def look(this: Any, patches: mx.array, grid: Any) -> mx.array:
            self.tower_runs += 1
            return tower(this, patches, grid)

        def decode(this: Any, embeddings: mx.array, cache: Any) -> mx.array:
            self.rows += embeddings.shape[1]
            return decoder(this, embeddings, cache)

        monkeypatch.setattr(type(vlm.model.visual), "__call__", look)
        monkeypatch.setattr(type(vlm.model.model), "__call__", decode)


@pytest.fixture
def vlm(tiny: QwenVL, monkeypatch: pytest.MonkeyPatch) -> QwenVL:
    """The tiny model with empty stores."""
    monkeypatch.setattr(tiny, "stores", Stores.of(tiny.model, 2**26, 2**24))
    return tiny


@pytest.fixture
def work(vlm: QwenVL, monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(vlm, monkeypatch)


def test_the_second_question_about_a_picture_computes_its_own_tokens_only(
    vlm: QwenVL, work: Work
) -> None:
    first = vlm.generate("What is this?", images=[ONE], **GREEDY)
    assert (work.tower_runs, first.usage.cached_tokens) == (1, 0)
    before = work.rows
    second = vlm.generate("And what is that?", images=[ONE], **GREEDY)
    assert work.tower_runs == 1
    usage = second.usage
    assert usage.cached_tokens > usage.image_tokens
    # The last answer token is not fed again; the others each took one row.
    steps = work.rows - before - (usage.prompt_tokens - usage.cached_tokens)
    assert steps in (usage.completion_tokens - 1, usage.completion_tokens)
    assert (
        second.token_ids
        == vlm.generate("And what is that?", images=[ONE], cache=False, **GREEDY).token_ids
    )


def test_the_same_picture_in_another_place_is_not_looked_at_again(vlm: QwenVL, work: Work) -> None:
    vlm.generate("What is this?", images=[ONE], **GREEDY)
    moved = vlm.generate("And these?", images=[WIDE, ONE], **GREEDY)
    assert work.tower_runs == 2  # the wide one's
    plain = vlm.generate("And these?", images=[WIDE, ONE], cache=False, **GREEDY)
    assert moved.token_ids == plain.token_ids


def test_conversations_share_their_system_prompt(vlm: QwenVL) -> None:
    system = "You are very brief and you answer in one word. " * 4
    vlm.chat(system).ask("One?", **GREEDY)
    reply = vlm.chat(system).ask("Two?", **GREEDY)
    assert reply.usage.cached_tokens > reply.usage.prompt_tokens // 2


def one_colour(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (90, 120, 30))


def palette(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("P", (84, 56), 0)
    image.putpalette(list(colour))
    return image


@pytest.mark.parametrize(
    ("kept", "asked"),
    [
        (ONE, OTHER),
        (one_colour(28, 112), one_colour(112, 28)),
        (palette((200, 10, 10)), palette((10, 10, 200))),
        (Image.new("L", (84, 56), 90), Image.new("1", (84, 56), 1)),
    ],
    ids=["same size", "sides swapped", "palettes", "modes"],
)
def test_another_picture_is_never_answered_from_the_store(
    vlm: QwenVL, work: Work, kept: Image.Image, asked: Image.Image
) -> None:
    vlm.generate("What is this?", images=[kept], **GREEDY)
    reply = vlm.generate("What is this?", images=[asked], **GREEDY)
    assert work.tower_runs == 2
    plain = vlm.generate("What is this?", images=[asked], cache=False, **GREEDY)
    assert reply.token_ids == plain.token_ids


def test_a_path_with_new_content_is_another_picture(
    vlm: QwenVL, work: Work, tmp_path: Path
) -> None:
    file = tmp_path / "picture.png"
    for image, runs in ((ONE, 1), (OTHER, 2), (ONE, 2)):
        image.save(file)
        vlm.generate("What is this?", images=[file], **GREEDY)
        assert work.tower_runs == runs


def test_another_pixel_budget_is_another_picture(vlm: QwenVL, work: Work) -> None:
    vlm.generate("What is this?", images=[WIDE], **GREEDY)
    vlm.generate("What is this?", images=[WIDE], max_pixels=56 * 56, **GREEDY)
    assert work.tower_runs == 2


def test_another_form_of_keys_and_values_shares_no_prefix(vlm: QwenVL) -> None:
    vlm.generate("What is this?", images=[ONE], **GREEDY)
    reply = vlm.generate("What is this?", images=[ONE], kv_bits=8, **GREEDY)
    assert reply.usage.cached_tokens == 0


def test_without_cache_nothing_is_read_and_nothing_kept(vlm: QwenVL, work: Work) -> None:
    for _ in range(2):
        reply = vlm.generate("What is this?", images=[ONE], cache=False, **GREEDY)
        assert reply.usage.cached_tokens == 0
    assert work.tower_runs == 2
    assert vlm.stores.prefixes.nbytes == vlm.stores.features.nbytes == 0


def test_features_beyond_the_bound_go_the_oldest_first() -> None:
    store = FeatureStore(2 * 40)
    for name in (b"a", b"b"):
        store.put(name, mx.zeros(10))
    assert store.get(b"a") is not None
    store.put(b"c", mx.zeros(10))
    assert [name for name in (b"a", b"b", b"c") if store.get(name) is not None] == [b"a", b"c"]
    store.put(b"huge", mx.zeros(100))
    assert store.get(b"huge") is None
    assert store.nbytes == 80


def test_prefixes_beyond_the_bound_go_and_the_newest_stays(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlm, "stores", Stores.of(vlm.model, 1, 0))
    for question in ("One?", "What else is there?"):
        vlm.generate(question, images=[ONE], **GREEDY)
    one = vlm.model.make_cache()[0]
    one.update_and_fetch(mx.zeros((1, 2, 1, 32)), mx.zeros((1, 2, 1, 32)))
    assert vlm.stores.prefixes.nbytes == len(vlm.model.layers) * one.nbytes
    reply = vlm.generate("What else is there?", images=[ONE], **GREEDY)
    assert reply.usage.cached_tokens == reply.usage.prompt_tokens - 1


@pytest.mark.parametrize("name", ["prefix_bytes", "feature_bytes"])
def test_a_negative_bound_is_refused(tiny_folder: Path, name: str) -> None:
    with pytest.raises(OptionError, match=f"{name} is -1, expected a number of bytes"):
        load(tiny_folder, **{name: -1})  # type: ignore[arg-type]


def test_two_answers_at_once_on_one_prefix_are_both_right(vlm: QwenVL) -> None:
    asked = ("Left or right?", "Above or below?")
    alone = [vlm.generate(q, images=[ONE], cache=False, **GREEDY).token_ids for q in asked]
    vlm.generate("What is this?", images=[ONE], **GREEDY)
    streams = [vlm.stream(question, images=[ONE], **GREEDY) for question in asked]
    together: list[list[int]] = [[], []]
    running = list(zip(streams, together, strict=True))
    while running:
        for entry in list(running):
            chunk = next(entry[0], None)
            if chunk is None:
                running.remove(entry)
            else:
                entry[1].extend(chunk.token_ids)
    assert [tuple(ids) for ids in together] == alone


def test_an_answer_that_fails_leaves_nothing_half_done(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "A question that is read in several steps, one after another?"

    def fail(done: int, total: int) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        vlm.generate(question, images=[ONE], prefill_step=8, on_prefill=fail, **GREEDY)
    assert vlm.stores.prefixes.nbytes == 0
    reply = vlm.generate(question, images=[ONE], **GREEDY)
    plain = vlm.generate(question, images=[ONE], cache=False, **GREEDY)
    assert reply.token_ids == plain.token_ids


def walk(seed: int, steps: int) -> Iterator[tuple[str, tuple[str, list[ImageSource], int | None]]]:
    """Operations at random: new questions, chats that go on, and questions that are broken off."""
    rng = random.Random(seed)
    pictures = [ONE, OTHER, WIDE, one_colour(28, 112), one_colour(112, 28)]
    for _ in range(steps):
        kind = rng.choice(["ask", "ask", "chat", "chat", "new chat", "break off", "edit"])
        question = rng.choice(["What is this?", "What is that?", "Why?", "Is it so, and why?"])
        images: list[ImageSource] = list(rng.sample(pictures, rng.choice([0, 1, 1, 2])))
        yield kind, (question, images, rng.choice([None, None, None, 8]))


def test_200_random_operations_answer_as_without_stores(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Bounds that a few conversations and pictures exceed, so that much is dropped on the way.
    monkeypatch.setattr(vlm, "stores", Stores.of(vlm.model, 3 * 2**20, 2**13))
    chats: tuple[Chat, Chat] = vlm.chat("Be brief."), vlm.chat("Be brief.")
    reused = 0
    for number, (kind, (question, images, kv_bits)) in enumerate(walk(4, 200)):
        options: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "kv_bits": kv_bits}
        if kind == "new chat" or len(chats[0].messages) > 8:
            chats = vlm.chat("Be brief."), vlm.chat("Be brief.")
        if kind == "edit":
            for chat in chats:
                del chat.messages[-2:]
        if kind == "break off":
            stream = vlm.stream(question, images=images, **options)
            next(stream)
            stream.close()  # type: ignore[attr-defined]
            continue
        if kind == "ask":
            kept = vlm.generate(question, images=images, **options)
            plain = vlm.generate(question, images=images, cache=False, **options)
        else:
            kept = chats[0].ask(question, images=images, **options)
            plain = chats[1].ask(question, images=images, cache=False, **options)
        assert kept.token_ids == plain.token_ids, (number, kind, question)
        reused += kept.usage.cached_tokens
    assert reused > 1000
