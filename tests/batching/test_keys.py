"""A key changes with all that an answer depends on, and with nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from mlx_qwenvl import ContextError, QwenVL, load
from mlx_qwenvl.batching.keys import answer_key, model_digest, question_digest
from mlx_qwenvl.batching.questions import Question
from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.engine.options import Options, Sampling
from tests.faults import WEIGHTS

ASKED, OPTIONS = Question("What is shown?"), Options()


def digest(vlm: QwenVL, question: Question = ASKED, options: Options = OPTIONS) -> bytes:
    return question_digest(vlm, model_digest(vlm), question, options)


@pytest.mark.parametrize(
    "question",
    [
        Question("What is shown? "),
        Question("What is shown?", system="Be brief."),
        Question("What is shown?", comes_first=True),
    ],
)
def test_another_question_has_another_key(tiny: QwenVL, question: Question) -> None:
    assert digest(tiny, question) != digest(tiny)


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({"sampling": Sampling(temperature=0.5)}, True),
        ({"max_tokens": 5}, True),
        ({"logit_bias": {1: 2.0}}, True),
        ({"seed": 1}, True),
        ({"stop": ("x",)}, True),
        ({"grammar": Grammar("json_object")}, True),
        ({"min_pixels": 9999}, True),
        ({"max_pixels": 9999}, True),
        ({"kv_bits": 8}, True),
        ({"max_kv_size": 99}, True),
        ({"cache": False}, False),
        ({"speculation": False}, False),
        ({"prefill_step": 7}, False),
        ({"on_prefill": print}, False),
        ({"logprobs": True}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_count_where_they_change_answers(
    tiny: QwenVL, change: dict[str, Any], matters: bool
) -> None:
    assert (digest(tiny, options=replace(OPTIONS, **change)) != digest(tiny)) == matters


@pytest.mark.parametrize("change", [{"fps": 1.0}, {"n_frames": 4}, {"max_frames": 8}])
def test_how_videos_are_sampled_counts_for_videos_alone(
    tiny: QwenVL, change: dict[str, Any]
) -> None:
    changed, model = replace(OPTIONS, **change), model_digest(tiny)
    assert digest(tiny, options=changed) == digest(tiny)
    of_video = question_digest(tiny, model, ASKED, OPTIONS, "video")
    assert question_digest(tiny, model, ASKED, changed, "video") != of_video != digest(tiny)


def test_a_model_is_known_by_its_weights_wherever_it_lies(
    tiny: QwenVL, tiny_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert digest(load(copy, dtype="float32")) == digest(tiny)
    tensors = load_file(copy / WEIGHTS)
    name = max(tensors, key=lambda name: tensors[name].size)
    save_file(tensors | {name: tensors[name] * 1.01}, copy / WEIGHTS)
    assert digest(load(copy, dtype="float32")) != digest(tiny)


@pytest.mark.parametrize("how", [{"dtype": "bfloat16"}, {"quantize": "8bit"}])
def test_the_same_model_otherwise_loaded_is_another(
    tiny: QwenVL, tiny_folder: Path, how: dict[str, str]
) -> None:
    assert digest(load(tiny_folder, **({"dtype": "float32"} | how))) != digest(tiny)  # type: ignore[arg-type]


def test_another_chat_template_counts(tiny: QwenVL, tiny_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    for file in copy.glob("chat_template.*"):
        file.unlink()
    (copy / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    assert digest(load(copy, dtype="float32")) != digest(tiny)


def test_another_picture_has_another_key() -> None:
    assert answer_key(b"q", b"one") != answer_key(b"q", b"two")
    assert answer_key(b"q", b"one") == answer_key(b"q", b"one")


def test_a_question_that_is_too_long_alone_is_told(tiny: QwenVL) -> None:
    with pytest.raises(ContextError):
        digest(tiny, Question("word " * 10**6))
