"""What is kept of earlier questions: reused where the content is the same, and nowhere else."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from PIL import Image

from mlx_qwenvl import MemoryExceeded, OptionError, QwenVL, Reply, load
from mlx_qwenvl.engine.feature_store import FeatureStore
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.inputs import image as inputs_image
from mlx_qwenvl.inputs import processor
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.source import MediaLimits
from mlx_qwenvl.models.text import DecoderLayer
from tests.golden.tiny import picture

ONE, OTHER, WIDE = picture(1, 84, 56), picture(2, 84, 56), picture(3, 140, 56)
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0}


class Work:
    """Counts what the model really does."""

    def __init__(self, vlm: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tower_runs = self.rows = 0
        tower, decoder = type(vlm.model.visual).begin, type(vlm.model.model).__call__

        def look(this: Any, patches: mx.array, grid: Any) -> Any:
            self.tower_runs += 1
            return tower(this, patches, grid)

        def decode(this: Any, embeddings: mx.array, cache: Any) -> mx.array:
            self.rows += embeddings.shape[1]
            return decoder(this, embeddings, cache)

        monkeypatch.setattr(type(vlm.model.visual), "begin", look)
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


def paletted(index: int) -> Image.Image:
    """All pixels hold one index; the palette makes it red."""
    image = Image.new("P", (84, 56), index)
    image.putpalette([0, 0, 0] * index + [250, 0, 0])
    return image


@pytest.mark.parametrize(
    ("kept", "asked"),
    [
        (ONE, OTHER),
        (one_colour(28, 112), one_colour(112, 28)),
        (palette((200, 10, 10)), palette((10, 10, 200))),
        (Image.new("L", (84, 56), 90), Image.new("1", (84, 56), 1)),
        (ONE, Image.frombytes("YCbCr", ONE.size, ONE.tobytes())),
        (Image.new("L", (84, 56), 3), paletted(3)),
        (Image.new("RGB", (30, 100), (9, 9, 9)), Image.new("RGB", (100, 30), (9, 9, 9))),
    ],
    ids=[
        "same size",
        "sides swapped",
        "palettes",
        "modes",
        "bytes of another mode",
        "grey or palette",
        "30x100 and 100x30",
    ],
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


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_url_with_new_content_is_another_picture(
    vlm: QwenVL, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = {"picture": ONE}
    monkeypatch.setattr("mlx_qwenvl.inputs.fetch.fetch", lambda url, limits: png(served["picture"]))
    for image, runs in ((ONE, 1), (OTHER, 2), (ONE, 2)):
        served["picture"] = image
        vlm.generate("What is this?", images=["https://example.com/a.png"], **GREEDY)
        assert work.tower_runs == runs


def test_palette_twins_as_files_are_two_pictures(vlm: QwenVL, work: Work) -> None:
    for image in (palette((200, 10, 10)), palette((10, 10, 200))):
        vlm.generate("What is this?", images=[png(image)], **GREEDY)
    assert work.tower_runs == 2


def test_a_file_that_was_cut_before_is_not_decoded_again(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def decode(data: bytes, name: str, limits: MediaLimits) -> Image.Image:
        decoded.append(len(data))
        return Image.open(io.BytesIO(data))

    monkeypatch.setattr("mlx_qwenvl.inputs.processor.decode", decode)
    data = png(ONE)
    for max_pixels in (None, None, 56 * 56):
        vlm.generate("What is this?", images=[data], max_pixels=max_pixels, **GREEDY)
    assert decoded == [len(data)] * 2  # once a budget
    kept = vlm.stores.patches.nbytes
    vlm.generate("What is this?", images=[png(OTHER)], cache=False, **GREEDY)
    assert vlm.stores.patches.nbytes == kept


@pytest.mark.parametrize("other", [{"dtype": "float16"}, {"quantize": "8bit"}])
def test_another_dtype_or_quantization_shares_nothing(
    vlm: QwenVL, tiny_folder: Path, other: dict[str, Any]
) -> None:
    vlm.generate("What is this?", images=[ONE], **GREEDY)
    again = load(tiny_folder, **({"dtype": "float32"} | other))
    reply = again.generate("What is this?", images=[ONE], max_tokens=1, temperature=0)
    assert reply.usage.cached_tokens == 0
    assert again.stores is not vlm.stores


def test_kept_prefixes_do_not_keep_pictures_alive(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[Any] = []
    image_patches = inputs_image.image_patches

    def noted(*arguments: Any) -> ImagePatches:
        patches = image_patches(*arguments)
        cut.append(weakref.ref(patches))
        return patches

    monkeypatch.setattr(processor, "image_patches", noted)
    vlm.generate("What is this?", images=[ONE], **GREEDY)
    assert vlm.stores.prefixes.nbytes > 0
    gc.collect()
    assert [alive() for alive in cut] == [None]


def test_a_repeated_question_adds_no_second_copy(vlm: QwenVL) -> None:
    for length in (24, 2, 2):
        vlm.generate("What is this?", images=[ONE], max_tokens=length, temperature=0)
    one = vlm.stores.prefixes.nbytes
    vlm.generate("What is this?", images=[ONE], max_tokens=2, temperature=0)
    assert vlm.stores.prefixes.nbytes == one
    assert len(vlm.stores.prefixes._kept) == 1


def test_an_interruption_between_layers_leaves_a_cache_that_is_right(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm.generate("What is this?", images=[ONE], **GREEDY)
    calls, layer = [0], DecoderLayer.__call__

    def interrupted(this: Any, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == len(vlm.model.layers) + 2:  # in the second step, behind its first layer
            raise KeyboardInterrupt
        return layer(this, *arguments)

    question = "What is this, and why is it there, and where does it come from?"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(DecoderLayer, "__call__", interrupted)
        vlm.generate(question, images=[ONE], prefill_step=4, **GREEDY)
    for kept in vlm.stores.prefixes._kept:
        assert {cache.offset for cache in kept.cache} == {kept.length}
    plain = vlm.generate(question, images=[ONE], cache=False, **GREEDY)
    reply = vlm.generate(question, images=[ONE], **GREEDY)
    assert reply.token_ids == plain.token_ids
    assert reply.usage.cached_tokens > 0


def test_answers_in_two_threads_on_one_prefix_are_both_right(vlm: QwenVL) -> None:
    asked = ("Left or right?", "Above or below?")
    alone = [vlm.generate(q, images=[ONE], cache=False, **GREEDY).token_ids for q in asked]
    vlm.generate("What is this?", images=[ONE], **GREEDY)
    together: dict[int, list[tuple[int, ...]]] = {0: [], 1: []}

    def ask(index: int) -> None:
        for _ in range(5):
            together[index].append(vlm.generate(asked[index], images=[ONE], **GREEDY).token_ids)

    threads = [threading.Thread(target=ask, args=(index,)) for index in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {index: [alone[index]] * 5 for index in together}


def test_what_is_kept_makes_room_for_an_answer_that_would_not_fit(
    vlm: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm.generate("What is this?", images=[ONE], **GREEDY)
    kept, held = vlm.stores.nbytes, mx.get_active_memory()
    assert vlm.stores.features.nbytes and vlm.stores.prefixes.nbytes

    def answered(limit: int) -> Reply:
        monkeypatch.setenv("MLX_QWENVL_MEMORY_LIMIT", str(limit))
        return vlm.generate("Say something else.", **GREEDY)

    least, most = held - kept, held + 2**24  # refused, and with nothing in the way
    vlm.stores.make_room(kept)
    while most - least > 2**10:  # the least that the answer fits into where nothing is kept
        middle = (least + most) // 2
        try:
            answered(middle)
            most = middle
        except MemoryExceeded:
            least = middle
        vlm.stores.make_room(2**40)
    monkeypatch.delenv("MLX_QWENVL_MEMORY_LIMIT")
    vlm.generate("What is this?", images=[ONE], **GREEDY)
    assert vlm.stores.nbytes == kept
    assert answered(most).usage.cached_tokens == 0
    assert vlm.stores.features.nbytes == 0
    with pytest.raises(MemoryExceeded):
        answered(least)


def test_default_bounds_follow_the_machine(vlm: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = []
    for memory in (2**33, 2**36):
        monkeypatch.setattr("mlx_qwenvl.engine.stores.memory_here", lambda memory=memory: memory)
        bounds.append(Stores.of(vlm.model).prefixes._limit)
    assert bounds == [2**29, 2**30]
