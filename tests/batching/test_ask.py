"""`ask_all`: many pictures are answered as each alone, in bounded memory, and fail alone."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from PIL import Image

from mlx_qwenvl import MediaError, MemoryExceeded, OptionError, PromptError, QwenVL, QwenVLError
from mlx_qwenvl.batching import Answer, ask_all
from mlx_qwenvl.batching.together import AHEAD
from mlx_qwenvl.engine.crowd import Crowd
from mlx_qwenvl.engine.fit import SWITCH
from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.scheduler import Scheduler
from mlx_qwenvl.inputs.image import ImagePatches
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.inputs.messages import ImagePart
from tests.batching.conftest import COUNT, GREEDY, Gallery
from tests.crowds import Question

SYSTEM = "You are a helpful assistant that counts."


def texts(answers: Iterator[Answer]) -> dict[ImageSource, str]:
    """Answers by picture; none may have failed or come twice."""
    found: dict[ImageSource, str] = {}
    for answer in answers:
        assert answer.reply is not None, answer.error
        assert answer.image not in found
        found[answer.image] = answer.reply.text
    return found


def test_shapes_are_counted_in_every_picture(demo: QwenVL, gallery: Gallery) -> None:
    found = texts(ask_all(demo, gallery.paths, COUNT, **GREEDY))
    right = [f" {n} " in found[p] for p, n in zip(gallery.paths, gallery.numbers, strict=True)]
    assert sum(right) >= 11


@pytest.mark.parametrize("max_running", [1, 8])
def test_greedy_answers_are_those_of_one_by_one(
    demo: QwenVL, gallery: Gallery, max_running: int
) -> None:
    found = texts(ask_all(demo, gallery.paths, COUNT, max_running=max_running, **GREEDY))
    assert found == dict(zip(gallery.paths, gallery.alone, strict=True))


def test_pictures_come_in_every_form_and_are_given_back_as_they_came(
    demo: QwenVL, gallery: Gallery
) -> None:
    path = gallery.paths[0]
    forms: list[ImageSource] = [path, str(path), path.read_bytes(), Image.open(path)]
    answers = list(ask_all(demo, iter(forms), COUNT, **GREEDY))
    assert {id(answer.image) for answer in answers} == set(map(id, forms))
    assert {answer.reply.text for answer in answers if answer.reply} == {gallery.alone[0]}


def test_no_pictures_make_no_answers(demo: QwenVL) -> None:
    assert list(ask_all(demo, [], COUNT)) == []


@pytest.mark.parametrize("max_running", [1, 4])
@pytest.mark.parametrize("prompt_first", [False, True])
def test_what_all_prompts_begin_with_is_computed_once(
    demo: QwenVL, gallery: Gallery, max_running: int, prompt_first: bool
) -> None:
    images = gallery.paths[:6]
    options: Any = {"system": SYSTEM, "prompt_first": prompt_first, "max_running": max_running}
    usages = [
        answer.reply.usage
        for answer in ask_all(demo, images, COUNT, **options, **GREEDY)
        if answer.reply
    ]
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": COUNT}]
    said = demo.generate(messages=turns, max_tokens=1).usage.prompt_tokens
    asked = len(demo.tokenizer.encode(COUNT))
    # Beside these there are the ends of the user's turn, the opening of the answer's, and, where
    # the picture comes first, not yet the question.
    least = said - 6 - (0 if prompt_first else asked)
    cached = sorted(usage.cached_tokens for usage in usages)
    assert cached[0] == 0 and cached[1] >= least and len(cached) == 6
    assert all(usage.cached_tokens < usage.prompt_tokens - usage.image_tokens for usage in usages)


def test_the_first_answer_waits_for_a_second_picture_so_that_its_beginning_is_shared(
    demo: QwenVL, gallery: Gallery
) -> None:
    images = gallery.paths[:2]

    def slowly() -> Iterator[Path]:
        yield images[0]
        time.sleep(0.3)
        yield images[1]

    cached = [a.reply.usage.cached_tokens for a in ask_all(demo, slowly(), COUNT) if a.reply]
    assert sorted(cached)[0] == 0 < sorted(cached)[1]


def test_a_crowd_is_full_before_it_is_decoded(
    demo: QwenVL, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step reads the weights once, for as many answers as there can be."""
    images, step = gallery.paths, Crowd.step
    sizes: list[int] = []

    def seen(crowd: Crowd, *, is_alone: bool) -> Any:
        sizes.append(len(crowd.members))
        return step(crowd, is_alone=is_alone)

    monkeypatch.setattr(Crowd, "step", seen)
    scheduler = demo.scheduler(4, in_bulk=True)
    add_all(demo, scheduler, images)
    while not scheduler.is_idle:
        scheduler.step()
    assert sizes[0] == 4
    in_bulk = len(sizes)
    sizes.clear()
    scheduler = demo.scheduler(4)
    add_all(demo, scheduler, images)
    while not scheduler.is_idle:
        scheduler.step()
    assert sizes[0] == 1 and in_bulk < 0.7 * len(sizes)


def add_all(vlm: QwenVL, scheduler: Scheduler, images: Sequence[Path]) -> None:
    for image in images:
        Question(COUNT, [image], GREEDY).add(vlm, scheduler)


# --- Memory --------------------------------------------------------------------------------------


def test_two_hundred_pictures_are_open_a_few_at_a_time(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: weakref.WeakSet[ImagePatches] = weakref.WeakSet()
    taken, most, open_ = 0, 0, QwenVL.open

    def counted(vlm: QwenVL, *arguments: Any) -> ImagePatches:
        nonlocal most
        patches = open_(vlm, *arguments)
        opened.add(patches)
        most = max(most, len(opened))
        return patches

    def pictures() -> Iterator[Image.Image]:
        nonlocal taken
        for seed in range(200):
            taken += 1
            yield Image.new("RGB", (56, 56), (seed, 0, 0))

    monkeypatch.setattr(QwenVL, "open", counted)
    answered = 0
    for answer in ask_all(tiny, pictures(), "What?", max_running=4, max_tokens=2, temperature=0):
        assert answer.reply is not None
        answered += 1
        del answer
        # One more is queued, and one more was just given out.
        assert taken <= answered + AHEAD + 4 + 2
    assert answered == 200
    assert most <= AHEAD + 4 + 2


def test_a_picture_beyond_memory_costs_itself_alone(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = Image.new("RGB", (56, 56)), Image.new("RGB", (1120, 1120))
    monkeypatch.setenv(SWITCH, str(mx.get_active_memory() + 20 * 2**20))
    images = [small, large, small.copy()]
    answers = list(ask_all(tiny, images, "What?", max_tokens=2, max_pixels=10**7))
    failed = [answer for answer in answers if answer.error is not None]
    assert [answer.image for answer in failed] == [large]
    assert isinstance(failed[0].error, MemoryExceeded) and "max_pixels" in str(failed[0].error)
    assert len(answers) == 3


def test_a_step_without_memory_is_made_again_with_fewer_at_a_time(
    demo: QwenVL, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Crowd.step

    def small(crowd: Crowd, *, is_alone: bool) -> Any:
        if len(crowd.members) > 2:
            raise RuntimeError("[malloc] Unable to allocate 9 bytes.")
        return step(crowd, is_alone=is_alone)

    monkeypatch.setattr(Crowd, "step", small)
    found = texts(ask_all(demo, gallery.paths, COUNT, **GREEDY))
    assert found == dict(zip(gallery.paths, gallery.alone, strict=True))


def test_one_answer_that_never_fits_fails_alone(
    demo: QwenVL, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, step = gallery.paths[:5], Crowd.step
    bad = demo.open(ImagePart(images[2]), Options()).digest

    def picky(crowd: Crowd, *, is_alone: bool) -> Any:
        if any(m.prompt.slots[0].image.digest == bad for m in crowd.members):
            raise RuntimeError("[malloc] Unable to allocate 9 bytes.")
        return step(crowd, is_alone=is_alone)

    monkeypatch.setattr(Crowd, "step", picky)
    answers = {answer.image: answer for answer in ask_all(demo, images, COUNT, **GREEDY)}
    failed = [image for image, answer in answers.items() if answer.reply is None]
    assert failed == [images[2]] and len(answers) == 5
    assert isinstance(answers[images[2]].error, MemoryExceeded)


# --- Faults --------------------------------------------------------------------------------------


def test_broken_pictures_fail_each_for_itself(
    demo: QwenVL, gallery: Gallery, tmp_path: Path
) -> None:
    images = gallery.paths[:4]
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes(images[0].read_bytes()[:300])
    broken = [tmp_path / "text.png", tmp_path / "half.png", tmp_path / "absent.png", tmp_path]
    mixed = [image for pair in zip(images, broken, strict=True) for image in pair]
    answers = {answer.image: answer for answer in ask_all(demo, mixed, COUNT, **GREEDY)}
    assert len(answers) == 8
    assert all(isinstance(answers[image].error, MediaError) for image in broken)
    assert all(answers[image].error is None for image in images)


def test_what_nobody_expected_is_told_as_one_line_with_its_cause(
    demo: QwenVL, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(vlm: QwenVL, *arguments: Any) -> ImagePatches:
        raise ZeroDivisionError("once\nmore")

    monkeypatch.setattr(QwenVL, "open", breaks)
    (answer,) = ask_all(demo, gallery.paths[:1], COUNT)
    assert isinstance(answer.error, QwenVLError)
    assert str(answer.error).endswith("ZeroDivisionError: once more")
    assert isinstance(answer.error.__cause__, ZeroDivisionError)


def test_bad_arguments_are_refused_before_anything_is_read(demo: QwenVL) -> None:
    def untouched() -> Iterator[str]:
        raise AssertionError("read")
        yield

    wrong: list[Any] = [
        {"temperature": -1},
        {"max_running": 0},
        {"unknown": 1},
        {"grammar": Grammar("json_schema", "nonsense")},
    ]
    for options in wrong:
        with pytest.raises(OptionError):
            ask_all(demo, untouched(), COUNT, **options)
    with pytest.raises(PromptError, match="list of images"):
        ask_all(demo, "photo.jpg", COUNT)


def test_a_question_beyond_the_context_is_each_pictures_error(
    demo: QwenVL, gallery: Gallery
) -> None:
    answers = list(ask_all(demo, gallery.paths[:3], "word " * 5000))
    assert len(answers) == 3 and all("context" in str(answer.error) for answer in answers)


# --- Endings -------------------------------------------------------------------------------------


def threads() -> int:
    return sum(thread.name.startswith("ahead-") for thread in threading.enumerate())


def ended() -> bool:
    """Whether the threads go within seconds."""
    end = time.monotonic() + 20
    while threads() and time.monotonic() < end:
        time.sleep(0.01)
    return threads() == 0


def test_whoever_stops_listening_ends_the_work(demo: QwenVL, gallery: Gallery) -> None:
    answers = ask_all(demo, gallery.paths, COUNT, **GREEDY)
    first = next(answers)
    assert threads() > 0
    del answers
    assert ended()
    again = texts(ask_all(demo, gallery.paths[:4], COUNT, **GREEDY))
    assert tuple(again[path] for path in gallery.paths[:4]) == gallery.alone[:4]
    assert first.reply is not None


def test_an_interruption_in_the_middle_leaves_a_model_that_answers(
    demo: QwenVL, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, left = Scheduler.step, [9]

    def interrupted(scheduler: Scheduler) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(ask_all(demo, gallery.paths, COUNT, **GREEDY))
    assert ended()
    found = texts(ask_all(demo, gallery.paths, COUNT, **GREEDY))
    assert found == dict(zip(gallery.paths, gallery.alone, strict=True))


def test_an_iterable_that_fails_is_not_swallowed(demo: QwenVL, gallery: Gallery) -> None:
    def failing() -> Iterator[Path]:
        yield from gallery.paths[:2]
        raise LookupError("the list ends here")

    with pytest.raises(LookupError, match="the list ends here"):
        list(ask_all(demo, failing(), COUNT))
    assert ended()
