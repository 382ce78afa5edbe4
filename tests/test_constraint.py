"""Answers that keep to a grammar, and grammars that nobody may harm us with."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance.numpy import apply_token_bitmask_inplace

from mlx_qwenvl import Grammar, OptionError, QwenVL
from mlx_qwenvl.engine.compiler import Compiler
from mlx_qwenvl.engine.constraint import Constraint, unpack_bits
from mlx_qwenvl.engine.options import Options, Sampling
from mlx_qwenvl.engine.sampling import Sampler, draw
from mlx_qwenvl.engine.trial import MOST_PROCESSES
from mlx_qwenvl.inputs.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"
WIDTH = 512
Json = dict[str, Any]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(GOLDEN)


@pytest.fixture(scope="module")
def ends(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(map(tokenizer.token_id, ("<|im_end|>", "<|endoftext|>")))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer, ends: frozenset[int]) -> Iterator[Compiler]:
    compiler = Compiler(tokenizer, ends, WIDTH)
    yield compiler
    compiler.close()


def schema(source: object) -> Grammar:
    return Grammar("json_schema", json.dumps(source))


def allowed(constraint: Constraint) -> set[int]:
    return set(np.flatnonzero(np.array(constraint.mask())).tolist())


def fed(constraint: Constraint, tokenizer: Tokenizer, text: str) -> bool:
    """Whether a text is let through, token by token."""
    for token in tokenizer.encode(text):
        if token not in allowed(constraint):
            return False
        constraint.accept(token)
    return True


def random_text(
    constraint: Constraint, tokenizer: Tokenizer, ends: frozenset[int], seed: int
) -> str | None:
    """What a model without any sense would answer, or None where it does not end in time."""
    chance = random.Random(seed)
    tokens: list[int] = []
    for _ in range(400):
        choice = sorted(allowed(constraint))
        # A model that never likes to end would take long to show that it may.
        token = min(ends) if min(ends) in choice else chance.choice(choice)
        if token in ends:
            return b"".join(map(tokenizer.token_bytes, tokens)).decode()
        tokens.append(token)
        constraint.accept(token)
    return None


# What a mask is made of


@pytest.mark.parametrize("width", [480, 494, 512, 600, 32, 31, 1])
def test_bits_become_the_mask_that_llguidance_itself_applies(width: int) -> None:
    words = np.random.default_rng(width).integers(0, 2**32, 16, dtype=np.uint32)
    logits = np.zeros((1, width), dtype=np.float32)
    apply_token_bitmask_inplace(logits, words.view(np.int32)[None])
    assert np.array_equal(np.array(unpack_bits(mx.array(words), width)), np.isfinite(logits[0]))


def test_end_tokens_come_exactly_where_the_grammar_may_end(
    compiler: Compiler, tokenizer: Tokenizer, ends: frozenset[int]
) -> None:
    constraint = compiler.start(Grammar("regex", "ab?c"))
    seen = []
    for token in tokenizer.encode("a") + tokenizer.encode("c"):
        seen.append((bool(ends & allowed(constraint)), constraint.may_end, constraint.is_finished))
        constraint.accept(token)
    assert seen == [(False, False, False)] * 2
    assert allowed(constraint) == ends
    assert constraint.may_end and constraint.is_finished
    constraint.accept(min(ends))
    assert allowed(constraint) == ends  # a loop that is a step ahead asks once more
    constraint.check()


def test_a_special_token_is_never_text(
    compiler: Compiler, tokenizer: Tokenizer, ends: frozenset[int]
) -> None:
    specials = set(tokenizer.special_ids.values())
    constraint = compiler.start(Grammar("regex", "(.|\n)*"))
    assert allowed(constraint) & specials == ends
    assert fed(constraint, tokenizer, "<|im_start|>system")  # the letters are


def test_rows_of_the_embedding_that_are_no_tokens_are_never_drawn(
    compiler: Compiler, tokenizer: Tokenizer
) -> None:
    tokens = max(tokenizer.vocabulary.values()) + 1
    assert tokens < WIDTH
    assert max(allowed(compiler.start(Grammar("regex", "(.|\n)*")))) < tokens


def test_answers_of_one_grammar_do_not_touch_each_other(
    compiler: Compiler, tokenizer: Tokenizer
) -> None:
    compiled = compiler.compile(Grammar("regex", "a+b"))
    one, other = compiled.start(), compiled.start()
    before = allowed(other)
    assert fed(one, tokenizer, "aab")
    assert one.may_end and not other.may_end
    assert allowed(other) == before


def test_a_token_that_was_not_allowed_ends_the_answer_with_an_error(
    compiler: Compiler, tokenizer: Tokenizer, ends: frozenset[int]
) -> None:
    constraint = compiler.start(Grammar("regex", "a+b"))
    constraint.accept(tokenizer.encode("z")[0])
    assert allowed(constraint) == ends
    with pytest.raises(OptionError, match="does not allow"):
        constraint.check()


def test_an_end_where_none_may_be_is_an_error(compiler: Compiler, ends: frozenset[int]) -> None:
    constraint = compiler.start(Grammar("regex", "a+b"))
    constraint.accept(min(ends))
    with pytest.raises(OptionError, match="may not end"):
        constraint.check()


# Drawing


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=1.0),
        Sampling(temperature=100.0, top_p=0.99, min_p=0.001),
        Sampling(temperature=0.7, repetition_penalty=1.5, presence_penalty=2, frequency_penalty=1),
    ],
)
def test_only_what_is_allowed_is_drawn_whatever_the_settings(
    tiny: QwenVL, compiler: Compiler, tokenizer: Tokenizer, sampling: Sampling
) -> None:
    options = Options(sampling=sampling, seed=3, logit_bias={5: 100.0})
    constraint = compiler.start(Grammar("regex", "[a-d]{30}"))
    sampler = Sampler(options, WIDTH, np.array([1, 2, 3]), constraint)
    free = Sampler(options, WIDTH, np.array([1, 2, 3]))
    plain = Sampler(options, WIDTH, np.array([1, 2, 3]))
    logits = np.random.default_rng(0).normal(0, 5, (30, 2, WIDTH)).astype(np.float32)
    logits[:, 1] = logits[:, 0]
    text, beside, alone = b"", [], []
    for row in logits:
        both = draw(mx.array(row), [sampler, free], tiny.model.ops)
        text += tokenizer.token_bytes(both[0].token_id)
        beside.append(both[1].token_id)
        alone.append(draw(mx.array(row[1:]), [plain], tiny.model.ops)[0].token_id)
        if constraint.is_finished:
            break
    assert set(text[:30].decode()) <= set("abcd")
    assert beside == alone  # a neighbour's grammar changes nothing


def test_log_probabilities_are_the_models_own(tiny: QwenVL) -> None:
    grammar = Grammar("regex", "[xyz]{6}")
    reply = tiny.generate("Say it.", grammar=grammar, logprobs=True, temperature=1.0, seed=1)
    for entry in reply.logprobs:
        assert entry.logprob < np.log(0.2)  # of 512 tokens, not of the few that were allowed


@pytest.mark.parametrize("seed", range(3))
def test_a_random_model_answers_in_valid_json(tiny: QwenVL, seed: int) -> None:
    properties: Json = {
        "name": {"type": "string", "maxLength": 8},
        "size": {"type": "integer", "minimum": -5, "maximum": 500},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    }
    source: Json = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    options: dict[str, Any] = {"temperature": 1.0, "seed": seed}
    reply = tiny.generate("Describe it.", grammar=schema(source), max_tokens=200, **options)
    assert reply.finish_reason == "stop"
    jsonschema.validate(json.loads(reply.text), source)
    assert reply.speculation is None
    again = tiny.generate("Describe it.", grammar=schema(source), max_tokens=200, **options)
    assert again.text == reply.text


def test_json_holds_no_more_than_one_blank_between_two_tokens(
    compiler: Compiler, tokenizer: Tokenizer
) -> None:
    evil = {"type": "object", "x-guidance": {"whitespace_pattern": "[ \\n]*"}}
    for grammar in (Grammar("json_object"), schema(evil)):
        for text in ('{"a":1}', '{"a": 1, "b": [1, 2]}', '{ "a" : 1 }'):
            assert fed(compiler.start(grammar), tokenizer, text)
        for text in ('{  "a":1}', '{\n"a":1}', ' {"a":1}', '{"a":1} '):
            assert not fed(compiler.start(grammar), tokenizer, text)


def _with_bounds(kind: str, keys: tuple[str, str], least: int, most: int) -> Any:
    pairs = st.tuples(st.integers(least, most), st.integers(least, most)).map(sorted)
    return pairs.map(lambda pair: {"type": kind, keys[0]: pair[0], keys[1]: pair[1]})


LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"const": "it"}]),
    st.lists(st.one_of(st.text(max_size=5), st.integers(-9, 9)), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    _with_bounds("integer", ("minimum", "maximum"), -1000, 1000),
    _with_bounds("string", ("minLength", "maxLength"), 0, 6),
    st.sampled_from([{"type": "string", "pattern": p} for p in ("^[a-c]{1,4}$", "^x\\d+y$")]),
    st.sampled_from([{"type": "string", "format": f} for f in ("date", "time", "uuid", "ipv4")]),
)


def _larger(inner: Any) -> Any:
    keys = st.text('abcü"\\', min_size=1, max_size=3)
    objects = st.dictionaries(keys, inner, max_size=3).map(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": sorted(properties)[::2],
            "additionalProperties": False,
        }
    )
    arrays = inner.map(
        lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 2}
    )
    return st.one_of(
        objects, arrays, st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some})
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=st.recursive(LEAVES, _larger, max_leaves=6), seed=st.integers(0, 2**16))
def test_what_ends_parses_and_fits_its_schema(
    compiler: Compiler, tokenizer: Tokenizer, ends: frozenset[int], source: Json, seed: int
) -> None:
    text = random_text(compiler.start(schema(source)), tokenizer, ends, seed)
    if text is not None:
        jsonschema.validate(json.loads(text), source)


# Bad inputs 103 to 110


def deep(depth: int) -> Json:
    source: Json = {"type": "string"}
    for _ in range(depth):
        source = {"type": "object", "properties": {"a": source}}
    return source


def chain(length: int) -> Json:
    """References that lead from one to the next; 3000 of them overflow an 8 MiB stack."""
    definitions: Json = {"a0": {"type": "string"}}
    for index in range(1, length):
        definitions[f"a{index}"] = {"type": "array", "items": {"$ref": f"#/$defs/a{index - 1}"}}
    return {"$ref": f"#/$defs/a{length - 1}", "$defs": definitions}


COSTLY = "too complex|takes more than"  # on a busy machine the clock may be first
REFUSED = {
    "invalid": (schema({"type": "something"}), "names a type that is none of JSON's"),
    "no JSON": (Grammar("json_schema", "{"), "no JSON object"),
    "no object": (Grammar("json_schema", "[1]"), "no JSON object"),
    "no such definition": (schema({"$ref": "#/$defs/none"}), "a definition that it does not have"),
    "remote reference": (schema({"$ref": "http://localhost:1/x.json"}), "another document"),
    "file reference": (schema({"$ref": "file:///etc/passwd"}), "another document"),
    "itself": (schema({"$ref": "#"}), "lets no text through"),
    "depth": (schema(deep(300)), "nested too deeply"),
    "depth of JSON": (Grammar("json_schema", "[" * 100_000), "nested too deeply"),
    "stack overflow": (schema(chain(3000)), "too complex"),
    "unsatisfiable": (schema({"type": "string", "enum": [1]}), "cannot be satisfied"),
    "empty range": (schema({"type": "integer", "minimum": 5, "maximum": 3}), "cannot be satisfied"),
    "oneOf": (schema({"oneOf": [{"type": "integer"}, {"minimum": 3}]}), "expected anyOf"),
    "properties": (schema({"type": "object", "properties": 5}), "the JSON schema is not valid"),
    "keyword": (schema({"type": "array", "uniqueItems": True}), "uses uniqueItems"),
    "lenient": (
        schema({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}),
        "uses uniqueItems",
    ),
    "format": (schema({"type": "string", "format": "colour"}), "format that is not known"),
    "regex": (Grammar("regex", "(a"), "not valid"),
    "backreference": (Grammar("regex", r"(a)\1"), "backreferences"),
    "look-around": (Grammar("regex", "(?=a)b"), "look-around"),
    "regex blow-up": (Grammar("regex", "((a{1000}){1000}){1000}"), COSTLY),
    "wide object": (
        schema({"type": "object", "properties": {f"k{i}": {} for i in range(2500)}}),
        COSTLY,
    ),
    "lark": (Grammar("lark", "start: foo"), "does not define"),
    "lark stack overflow": (
        Grammar("lark", "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(9000))),
        "too complex|does not define",
    ),
    "llguidance": (Grammar("llguidance", "{}"), "not valid"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_grammar_that_does_not_do_is_refused_in_one_line(compiler: Compiler, case: str) -> None:
    grammar, said = REFUSED[case]
    begin = time.monotonic()
    with pytest.raises(OptionError, match=said) as caught:
        compiler.compile(grammar)
    assert time.monotonic() - begin < 12
    text = str(caught.value)
    assert "\n" not in text and "0x" not in text and len(text) < 160


def test_a_refusal_is_remembered(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = schema(chain(3001))
    for _ in range(2):
        with pytest.raises(OptionError, match="too complex"):
            compiler.compile(grammar)
        monkeypatch.setattr(compiler, "_trials", None)  # it is not tried again


def test_a_grammar_is_measured_before_anything_reads_it() -> None:
    with pytest.raises(OptionError, match=r"has 1388900 bytes, expected at most 262144"):
        schema({"enum": [f"value{i}" for i in range(100_000)]})
    with pytest.raises(OptionError, match="the regular expression is empty"):
        Grammar("regex")
    with pytest.raises(OptionError, match="kind 'ebnf'"):
        Grammar("ebnf", "x")  # type: ignore[arg-type]


def test_large_but_plain_grammars_work(compiler: Compiler, tokenizer: Tokenizer) -> None:
    one_of: Json = {
        "anyOf": [
            {"type": "object", "properties": {f"k{i}": {"type": "null"}}, "required": [f"k{i}"]}
            for i in range(2000)
        ]
    }
    assert fed(compiler.start(schema(one_of)), tokenizer, '{"k1999":null}')
    many = {"enum": [f"v{i}" for i in range(20_000)]}
    assert fed(compiler.start(schema(many)), tokenizer, '"v19999"')
    nested = {"type": "object", "properties": {"child": {"$ref": "#"}}}
    text = '{"child": {"child": {"child": {}}}}'
    assert fed(compiler.start(schema(nested)), tokenizer, text)
    assert fed(compiler.start(Grammar("regex", "(a+)+b")), tokenizer, "a" * 200 + "b")


def test_what_takes_too_long_is_ended_and_nobody_else_waits(
    tokenizer: Tokenizer, ends: frozenset[int]
) -> None:
    slow = schema({"type": "object", "properties": {f"k{i}": {} for i in range(15_000)}})
    hurried = Compiler(tokenizer, ends, WIDTH, seconds=0.5)
    hurried.compile(Grammar("regex", "warm"))
    errors = []

    def ask() -> None:
        try:
            hurried.compile(slow)
        except OptionError as error:
            errors.append(str(error))

    try:
        askers = [threading.Thread(target=ask) for _ in range(MOST_PROCESSES - 1)]
        begin = time.monotonic()
        for asker in askers:
            asker.start()
        time.sleep(0.1)
        assert any(asker.is_alive() for asker in askers)
        hurried.compile(Grammar("regex", "quick"))
        for asker in askers:
            asker.join()
        assert time.monotonic() - begin < 20
    finally:
        hurried.close()
    assert errors == ["the grammar takes more than 0.5 s to compile; make it simpler"] * len(askers)


def test_a_thousand_schemas_are_not_all_kept(tokenizer: Tokenizer, ends: frozenset[int]) -> None:
    limit = 8 * 2**20
    compiler = Compiler(tokenizer, ends, WIDTH, kept_bytes=limit)
    try:
        for index in range(1000):
            compiler.compile(schema({"type": "object", "properties": {f"key{index}": {}}}))
            assert compiler.kept.nbytes <= limit
        recent = schema({"type": "object", "properties": {"key999": {}}})
        assert compiler.compile(recent) is compiler.compile(recent)
    finally:
        compiler.close()


def test_no_process_is_left_behind(tokenizer: Tokenizer, ends: frozenset[int]) -> None:
    compiler = Compiler(tokenizer, ends, WIDTH)
    compiler.compile(Grammar("regex", "a"))
    (process,) = compiler._trials._idle
    number = process._popen.pid
    os.kill(number, 0)
    del process, compiler  # as one who forgets to close it
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_process_that_was_killed_meanwhile_is_replaced(
    tokenizer: Tokenizer, ends: frozenset[int]
) -> None:
    compiler = Compiler(tokenizer, ends, WIDTH)
    try:
        compiler.compile(Grammar("regex", "a"))
        compiler._trials._idle[0]._popen.kill()
        compiler._trials._idle[0]._popen.wait()
        compiler.compile(Grammar("regex", "b"))
    finally:
        compiler.close()


def test_an_answer_that_a_grammar_cannot_follow_any_further_fails_alone(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_qwenvl.engine.compiler.LEXER_STATES", 1500)
    small = Compiler(tiny.tokenizer, tiny.end_ids, WIDTH)
    monkeypatch.setattr(tiny, "grammars", small)
    grammar = Grammar("regex", r"(.*a.{1000}b.*c.{500}){20}")
    try:
        with pytest.raises(OptionError, match="too complex to follow this answer"):
            tiny.generate("Hello", grammar=grammar, temperature=1.0, seed=1, max_tokens=300)
    finally:
        small.close()
    assert tiny.generate("Hello", max_tokens=3).text
