"""Quantized keys and values: near the exact ones, the same however the work is cut, bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl import ContextError, OptionError, QwenVL
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.engine.prefill import prefill
from mlx_qwenvl.generate import main
from mlx_qwenvl.inputs.messages import user_message
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models import quantized_cache
from mlx_qwenvl.models.attention import Packed, attend_quantized
from mlx_qwenvl.models.cache import Positions
from mlx_qwenvl.models.quantized_cache import KVFormat, QuantizedKVCache
from tests.golden.tiny import picture
from tests.test_attention import random, reference

TOLERANCE = 5e-5  # float32 sums in another order
FORMATS = [KVFormat(bits, 32, start) for bits in (8, 4) for start in (0, 11, 30)]


def packed(numbers: np.ndarray, bits: int) -> Packed:
    words, scales, biases = mx.quantize(mx.array(numbers), group_size=32, bits=bits)
    return words, scales, biases


def unpacked(parts: Packed, bits: int) -> np.ndarray:
    """Numbers from their packed form by its definition: scale * q + bias, low bits first."""
    words, scales, biases = (np.array(part) for part in parts)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    numbers = (words[..., None] >> shifts) & (2**bits - 1)
    numbers = numbers.reshape(*words.shape[:-1], -1, 32).astype(np.float64)
    whole = numbers * scales[..., None] + biases[..., None]
    out: np.ndarray = whole.reshape(*words.shape[:-1], -1)
    return out


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["none", "causal", "booleans", "addends"])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_attention_to_packed_numbers_equals_the_definition(
    bits: int, kind: str, length: int
) -> None:
    q, kv = random(0, 2, 6, length, 64), random(1, 2, 2, 2, 21, 64)
    keys, values = (packed(part, bits) for part in kv)
    allowed = np.tril(np.ones((length, 21), bool), 21 if kind == "none" else 21 - length)
    masks: dict[str, Any] = {
        "none": None,
        "causal": "causal",
        "booleans": mx.array(allowed),
        "addends": mx.where(mx.array(allowed), 0.0, -1e30)[None, None],
    }
    out = attend_quantized(
        mx.array(q), keys, values, 64**-0.5, masks[kind], bits=bits, group_size=32
    )
    expected = reference(q, unpacked(keys, bits), unpacked(values, bits), allowed)
    np.testing.assert_allclose(np.array(out), expected, rtol=0, atol=TOLERANCE)


def some_tokens(length: int) -> tuple[mx.array, mx.array]:
    """Queries, and keys with values, of one layer."""
    return mx.array(random(0, 1, 4, length, 32)), mx.array(random(1, 2, 1, 2, length, 32))


def fed(cache: QuantizedKVCache, cuts: list[int], q: mx.array, kv: mx.array) -> np.ndarray:
    """Attention of the tokens behind those held, fed in pieces that end at `cuts`."""
    outs, begin = [], cache.offset
    for end in cuts:
        mask = cache.make_mask(end - begin)
        outs.append(cache.attend(q[:, :, begin:end], kv[:, :, :, begin:end], 0.2, mask))
        begin = end
    return np.array(mx.concatenate(outs, axis=2))


@pytest.mark.parametrize("packed_queries", [0, 1, 100])
@pytest.mark.parametrize("form", FORMATS)
def test_outputs_do_not_depend_on_how_tokens_are_fed(
    monkeypatch: pytest.MonkeyPatch, form: KVFormat, packed_queries: int
) -> None:
    most = dict.fromkeys((mx.cpu, mx.gpu), packed_queries)
    monkeypatch.setattr(quantized_cache, "PACKED_QUERIES", most)
    q, kv = some_tokens(24)
    at_once = fed(QuantizedKVCache(Positions(), form), [24], q, kv)
    for cuts in ([*range(1, 25)], [11, 24], [5, 12, 24], [10, 11, 12, 13, 24]):
        cache = QuantizedKVCache(Positions(), form)
        np.testing.assert_allclose(fed(cache, cuts, q, kv), at_once, rtol=0, atol=TOLERANCE)
        assert cache.is_packed is (form.start < 24)


def test_a_mask_of_booleans_is_cut_at_the_start_as_the_named_one_is() -> None:
    q, kv = some_tokens(24)
    outs = []
    for as_array in (False, True):
        cache = QuantizedKVCache(Positions(), FORMATS[1])
        outs.append(np.array(cache.attend(q, kv, 0.2, cache.make_mask(24, as_array))))
    np.testing.assert_allclose(outs[0], outs[1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("length", [1, 10, 11, 12, 20])
def test_a_copy_goes_on_as_one_that_saw_no_more(form: KVFormat, length: int) -> None:
    q, kv = some_tokens(40)
    long = QuantizedKVCache(Positions(), form)
    fed(long, [20], q, kv)
    if long.is_packed and length < form.start:
        assert long.reusable(length) == 0  # their keys and values were exact, and are lost
        return
    assert long.reusable(length) == length
    fresh, copied = QuantizedKVCache(Positions(), form), long.copy(Positions(), length)
    fed(fresh, [length], q, kv)
    rest = [length + 5, 40]
    expected = fed(fresh, rest, q, kv)
    np.testing.assert_allclose(fed(copied, rest, q, kv), expected, rtol=0, atol=TOLERANCE)
    again = QuantizedKVCache(Positions(), form)
    fed(again, [20], q, kv)
    np.testing.assert_array_equal(fed(long, [21], q, kv), fed(again, [21], q, kv))


@pytest.mark.parametrize("form", FORMATS)
def test_trimming_and_restoring_keep_what_is_held(form: KVFormat) -> None:
    q, kv = some_tokens(40)
    cache, other = QuantizedKVCache(Positions(), form), QuantizedKVCache(Positions(), form)
    fed(cache, [25], q, kv)
    assert cache.trim(5) == 5 and cache.offset == 20
    other.state = cache.state
    assert (other.offset, other.is_packed) == (20, cache.is_packed)
    np.testing.assert_array_equal(fed(cache, [30], q, kv), fed(other, [30], q, kv))
    assert cache.trim(100) == 30 and cache.offset == 0
    fresh = fed(QuantizedKVCache(Positions(), form), [24], q, kv)
    np.testing.assert_allclose(fed(cache, [24], q, kv), fresh, rtol=0, atol=TOLERANCE)


def test_a_start_beyond_the_prompt_changes_nothing_and_one_within_does(tiny: QwenVL) -> None:
    prompt: Prompt = tiny.prompt([user_message("What?", [picture(1, 84, 56)])], Options())
    total = prompt.token_ids.size

    def logits(form: KVFormat, step: int = 4096) -> np.ndarray:
        conversation = Conversation(tiny.model, form)
        filled = prefill(tiny.model, conversation, prompt, step=step, all_logits=True)
        return np.array(filled.logits[0])

    plain = logits(KVFormat())
    np.testing.assert_array_equal(logits(KVFormat(4, start=total)), plain)
    late = logits(KVFormat(4, start=total - 3))
    np.testing.assert_allclose(late[:-3], plain[:-3], rtol=0, atol=TOLERANCE)
    assert (np.abs(late[-3:] - plain[-3:]).max(axis=1) > 1e-3).all()


def test_answers_with_a_start_do_not_depend_on_what_was_kept(tiny: QwenVL) -> None:
    prompt = "Left or right, and what else is to be seen?"
    options: dict[str, Any] = {"kv_bits": 4, "kv_start": 20, "max_tokens": 8, "temperature": 0}
    fresh = tiny.generate(prompt, cache=False, **options)
    for other in ("Left", "Left or right", prompt):
        tiny.generate(other, **options)
        assert tiny.generate(prompt, **options).token_ids == fresh.token_ids


def test_a_prompt_beyond_max_kv_size_is_refused_and_an_answer_ends_at_it(tiny: QwenVL) -> None:
    images = [picture(1, 84, 56)]
    whole = tiny.generate("What?", images=images, max_tokens=9, temperature=0)
    size, pictures = whole.usage.prompt_tokens, whole.usage.image_tokens
    words = rf"has {size} tokens \({pictures} of them pictures\), max_kv_size {size};"
    with pytest.raises(ContextError, match=words):
        tiny.generate("What?", images=images, max_kv_size=size)
    assert whole.usage.completion_tokens == 9
    cut = tiny.generate("What?", images=images, max_kv_size=size + 4, temperature=0)
    assert cut.finish_reason == "length" and cut.token_ids == whole.token_ids[:4]


def test_a_turn_beyond_max_kv_size_leaves_the_chat_as_it_was(tiny: QwenVL) -> None:
    chat = tiny.chat()
    first = chat.ask("What?", images=[picture(1, 84, 56)], max_tokens=3, temperature=0)
    size = first.usage.prompt_tokens + 40
    before = list(chat.messages)
    with pytest.raises(ContextError, match=f"max_kv_size {size};"):
        chat.ask("And this?", images=[picture(2, 140, 140)], max_kv_size=size)
    assert chat.messages == before
    again = chat.ask("And?", max_kv_size=size, max_tokens=1000, temperature=0)
    assert again.usage.image_tokens == first.usage.image_tokens  # none was dropped
    assert again.usage.prompt_tokens + again.usage.completion_tokens <= size


def test_the_command_line_takes_a_limit_of_tokens(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", str(tiny_folder), "--prompt", "Hello", "--temperature", "0", "--json"]
    assert main([*asked, "--max-tokens", "1"]) == 0
    size = json.loads(capsys.readouterr().out)["usage"]["prompt_tokens"]
    packed = ["--kv-bits", "8", "--kv-group-size", "32", "--kv-start", "9"]
    assert main([*asked, *packed, "--max-kv-size", str(size + 3)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["usage"]["completion_tokens"], told["finish_reason"]) == (3, "length")
    assert main([*asked, "--max-kv-size", str(size)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert f"the prompt has {size} tokens" in captured.err


@pytest.mark.parametrize("size", [64, 128])
def test_groups_wider_than_a_head_are_refused(tiny: QwenVL, size: int) -> None:
    with pytest.raises(OptionError, match=rf"kv_group_size is {size}.* 32 wide; .*\[32\]"):
        tiny.stream("Hello", kv_bits=8, kv_group_size=size)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_group_size": 16}, "kv_group_size is 16"),
        ({"kv_start": -1}, "kv_start is -1"),
        ({"max_kv_size": 0}, "max_kv_size is 0"),
    ],
)
def test_options_outside_their_ranges_are_refused(
    tiny: QwenVL, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        tiny.generate("Hello", **options)
