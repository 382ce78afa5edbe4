"""Speculation: proposed tokens change how fast an answer comes, never what it says."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwenvl import Chunk, OptionError, QwenVL, load
from mlx_qwenvl.engine import answer as answering
from mlx_qwenvl.engine.conversation import Conversation
from mlx_qwenvl.engine.decode import decode
from mlx_qwenvl.engine.lookup import SIZE, Lookup
from mlx_qwenvl.engine.options import CallOptions, Options, Sampling
from mlx_qwenvl.engine.pace import FORGIVEN_AFTER, Pace
from mlx_qwenvl.engine.prefill import prefill
from mlx_qwenvl.engine.sampling import Sampler
from mlx_qwenvl.engine.speculate import (
    FUSED_ROWS,
    Rows,
    Source,
    Speculator,
    can_speculate,
    speculate,
    verify_rows,
)
from mlx_qwenvl.inputs.messages import Message, user_message
from mlx_qwenvl.inputs.prompt import Prompt
from mlx_qwenvl.models.cache import LayerCache
from mlx_qwenvl.models.quantized_cache import PLAIN, KVFormat
from tests.golden.tiny import picture, write_checkpoint

ONE, OTHER = picture(21, 84, 56), picture(22, 84, 56)
WORDS = ["red", "blue", "circle", "square", "one", "two", "three", "left", "shows", "the", "a"]
ROWS = Rows(2, 5)


class Script:
    """Proposes what the answer will be, but for every `wrong_every`th token of it."""

    def __init__(self, tokens: Sequence[int], wrong_every: int) -> None:
        self.tokens, self.wrong_every = list(tokens), wrong_every
        self.heard: list[int] = []
        self.confidence = 1000

    def prepare(self) -> None:
        pass

    def append(self, token: int) -> None:
        self.heard.append(token)

    def propose(self, most: int) -> list[int]:
        begin = len(self.heard)
        run = self.tokens[begin : begin + most]
        return [t ^ ((begin + i) % self.wrong_every == 0) for i, t in enumerate(run)]

    def learn(self, proposed: int, accepted: int) -> None:
        pass


def eager(proposer: Script | Lookup, rows: Rows = ROWS) -> Speculator:
    """A speculator that never loses heart: its clock stands still."""
    pace = Pace(least=0, first=0)
    pace.lost = lambda: None  # type: ignore[method-assign]
    return Speculator([Source(proposer, pace)], rows, clock=lambda: 0.0)


def prompt(vlm: QwenVL, *turns: Message) -> Prompt:
    return vlm.prompt(turns or [user_message("Which is it, and why?", [ONE, OTHER])], Options())


def plainly(
    vlm: QwenVL, built: Prompt, count: int, heard: int, kv: KVFormat = PLAIN
) -> tuple[list[int], int]:
    """Plain tokens, and how long the cache is when a caller stops after `heard` of them."""
    conversation = Conversation(vlm.model, kv)
    logits = prefill(vlm.model, conversation, built, step=4096).logits[:, -1]
    steps = decode(vlm.model, conversation.cache, logits, [sampler(vlm, built)], count)
    tokens = [next(steps)[0].token_id for _ in range(heard)]
    steps.close()
    return tokens, conversation.length


def sampler(vlm: QwenVL, built: Prompt, options: Options | None = None) -> Sampler:
    return Sampler(options or Options(), vlm.config.text.vocab_size, built.token_ids)


@pytest.mark.parametrize("wrong_every", [1, 2, 3, 5, 1000])
def test_however_many_proposals_are_right_the_tokens_are_the_plain_ones(
    tiny: QwenVL, wrong_every: int
) -> None:
    built, count = prompt(tiny), 40
    plain, _ = plainly(tiny, built, count, count)
    conversation = Conversation(tiny.model)
    logits = prefill(tiny.model, conversation, built, step=4096).logits[:, -1]
    speculator = eager(Script(plain, wrong_every))
    steps = speculate(
        tiny.model, conversation.cache, logits, sampler(tiny, built), count, speculator
    )
    assert [step[0].token_id for step in steps] == plain
    assert speculator.rounds > 0
    assert (speculator.accepted == speculator.proposed) == (wrong_every == 1000)
    if wrong_every == 1000:
        # The first token, one that is waited for, then five a step.
        assert speculator.rounds == math.ceil((count - 2) / ROWS.most)
    if wrong_every == 1:
        assert speculator.accepted == 0


@pytest.mark.parametrize("wrong_every", [1, 3])
@pytest.mark.parametrize("behind", range(3, 9))
def test_no_proposal_is_verified_across_the_start_of_quantization(
    tiny: QwenVL, wrong_every: int, behind: int
) -> None:
    built, count = prompt(tiny), 24
    kv = KVFormat(4, 32, start=built.token_ids.size + behind)
    plain, length = plainly(tiny, built, count, count, kv)
    conversation = Conversation(tiny.model, kv)
    logits = prefill(tiny.model, conversation, built, step=4096).logits[:, -1]
    speculator = eager(Script(plain, wrong_every))
    cache = conversation.cache
    lengths: list[int] = []
    for layer in cache:
        _watch(layer, lengths)
    steps = speculate(tiny.model, cache, logits, sampler(tiny, built), count, speculator)
    assert [step[0].token_id for step in steps] == plain
    assert conversation.length == length and cache[0].is_packed
    # A token that may be taken back never makes the cache convert the tokens before it.
    assert speculator.rounds > 0 and min(lengths) >= kv.start


def _watch(layer: LayerCache, lengths: list[int]) -> None:
    """Note the length to which a packed cache is trimmed."""
    trim = layer.trim

    def noted(n: int) -> int:
        done = trim(n)
        if layer.is_packed:
            lengths.append(layer.offset)
        return done

    layer.trim = noted  # type: ignore[method-assign]


@pytest.mark.parametrize("wrong_every", [2, 3, 1000])
def test_wherever_the_caller_stops_the_cache_is_the_plain_one(
    tiny: QwenVL, wrong_every: int
) -> None:
    built, count = prompt(tiny), 14
    plain, _ = plainly(tiny, built, count, count)
    for heard in range(1, count + 1):
        tokens, length = plainly(tiny, built, count, heard)
        conversation = Conversation(tiny.model)
        logits = prefill(tiny.model, conversation, built, step=4096).logits[:, -1]
        steps = speculate(
            tiny.model,
            conversation.cache,
            logits,
            sampler(tiny, built),
            count,
            eager(Script(plain, wrong_every)),
        )
        assert [next(steps)[0].token_id for _ in range(heard)] == tokens
        steps.close()
        assert {layer.offset for layer in conversation.cache} == {length}
        # What is in the cache goes on as one prefill of the same tokens does.
        kept = Prompt(np.append(built.token_ids, plain)[:length].astype(np.int32), built.slots)
        whole = prefill(tiny.model, Conversation(tiny.model), kept, step=4096).logits[0, -1]
        for layer in conversation.cache:
            layer.trim(1)
        again = tiny.model(mx.array([[int(kept.token_ids[-1])]]), conversation.cache)[0, -1]
        assert float(mx.abs(again - whole).max()) < 5e-5


def repeating_prompts(count: int) -> Iterator[str]:
    rng = random.Random(7)
    for _ in range(count):
        phrase = " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 6)))
        yield f"{phrase}. " * rng.randint(1, 5)


def test_answers_to_random_repeating_prompts_are_the_plain_ones(
    demo: QwenVL, tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = accepted = 0
    for vlm in (demo, tiny):
        monkeypatch.setattr(vlm, "end_ids", frozenset())  # long answers run in circles
        for question in repeating_prompts(12):
            plain = vlm.generate(question, max_tokens=48, temperature=0, speculation=False)
            fast = vlm.generate(question, max_tokens=48, temperature=0, speculation=True)
            assert fast.token_ids == plain.token_ids
            assert plain.speculation is None and fast.speculation is not None
            rounds += fast.speculation.rounds
            accepted += fast.speculation.accepted_tokens
    assert rounds > 10 and accepted > 20, "nothing was speculated, so nothing was shown"


def scripted(
    monkeypatch: pytest.MonkeyPatch, tokens: Sequence[int], wrong_every: int = 1000
) -> None:
    """Make every answer speculate on these tokens."""
    monkeypatch.setattr(answering, "sources", lambda *_: eager(Script(tokens, wrong_every)).sources)


@pytest.mark.parametrize("end", range(2, 12))
def test_an_end_token_in_an_accepted_run_ends_the_answer_there(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    long = tiny.generate(
        "Tell me", max_tokens=30, cache=False, temperature=0, speculation=False
    ).token_ids
    monkeypatch.setattr(tiny, "end_ids", frozenset({long[end]}))
    plain = tiny.generate("Tell me", max_tokens=30, cache=False, temperature=0, speculation=False)
    scripted(monkeypatch, long)
    fast = tiny.generate("Tell me", max_tokens=30, cache=False, temperature=0, speculation=True)
    assert (fast.text, fast.token_ids) == (plain.text, plain.token_ids)
    assert (fast.finish_reason, fast.usage) == (plain.finish_reason, plain.usage)


def test_stop_texts_and_limits_in_an_accepted_run_cut_where_they_always_do(
    demo: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "end_ids", frozenset())
    long = demo.generate("What?", max_tokens=30, cache=False, temperature=0, speculation=False)
    scripted(monkeypatch, long.token_ids)
    stops = [long.text[begin : begin + 3] for begin in range(0, 24, 5)]
    cases: list[CallOptions] = [
        {"stop": stop, "max_tokens": 30, "temperature": 0, "cache": False} for stop in stops
    ]
    cases += [{"max_tokens": most, "temperature": 0, "cache": False} for most in range(1, 9)]
    for case in cases:
        answers = []
        for speculation in (False, True):
            case["speculation"] = speculation
            reply = demo.generate("What?", **case)
            answers.append((reply.text, reply.token_ids, reply.finish_reason, reply.usage))
        assert answers[0] == answers[1]


@pytest.mark.parametrize("heard", [1, 3, 6, 9, None])
def test_the_next_question_reuses_as_much_as_after_a_plain_answer(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, heard: int | None
) -> None:
    def asked(vlm: QwenVL, speculation: bool) -> tuple[object, ...]:
        chat = vlm.chat()
        stream = chat.stream(
            "What is this?", images=[ONE], max_tokens=12, temperature=0, speculation=speculation
        )
        chunks: list[Chunk] = []
        for chunk in stream:
            chunks.append(chunk)
            if len(chunks) == heard:
                break
        stream.close()  # type: ignore[attr-defined]
        second = chat.ask("And now?", max_tokens=8, temperature=0, speculation=False)
        return [c.token_ids for c in chunks], second.usage, second.token_ids

    plain = asked(load(tiny_folder, dtype="float32"), speculation=False)
    first = [token for tokens in plain[0] for token in tokens]  # type: ignore[attr-defined]
    scripted(monkeypatch, first + [1] * 12, wrong_every=4)
    assert asked(load(tiny_folder, dtype="float32"), speculation=True) == plain


def test_logprobs_of_verified_tokens_are_the_plain_ones(
    tiny: QwenVL, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny.generate("Hello", max_tokens=20, top_logprobs=3, temperature=0, speculation=False)
    scripted(monkeypatch, plain.token_ids, wrong_every=6)
    fast = tiny.generate("Hello", max_tokens=20, top_logprobs=3, temperature=0, speculation=True)
    assert fast.speculation is not None and fast.speculation.rounds > 2
    assert fast.token_ids == plain.token_ids and len(fast.logprobs) == 20
    for one, other in zip(fast.logprobs, plain.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=5e-5)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_only_answers_that_the_text_alone_decides_are_speculated_on(tiny: QwenVL) -> None:
    cache = tiny.model.make_cache()
    greedy = Options(sampling=Sampling(temperature=0))
    assert can_speculate(greedy, cache)
    assert can_speculate(replace(greedy, logit_bias={5: 3.0}, logprobs=True), cache)
    assert not can_speculate(replace(greedy, speculation=False), cache)
    assert not can_speculate(Options(sampling=Sampling(temperature=0.5)), cache)
    for counting in (
        Sampling(temperature=0, presence_penalty=1.5),
        Sampling(temperature=0, frequency_penalty=1.5),
        Sampling(temperature=0, repetition_penalty=1.5),
    ):
        assert not can_speculate(Options(sampling=counting), cache)
    with pytest.raises(OptionError, match="speculation is 'yes'"):
        Options(speculation="yes")  # type: ignore[arg-type]


def text_of(tokens: Sequence[int]) -> Prompt:
    return Prompt(np.array(tokens, dtype=np.int32), ())


def ready(tokens: Sequence[int]) -> Lookup:
    lookup = Lookup(text_of(tokens))
    lookup.prepare()
    return lookup


def test_what_followed_the_same_three_tokens_last_is_proposed() -> None:
    lookup = ready([1, 2, 3, 40, 41, 1, 2, 3, 50, 51, 52, 9, 1, 2, 3])
    assert lookup.confidence == SIZE
    assert lookup.propose(9) == [50, 51, 52]  # three agree, so three are proposed
    lookup.append(50)
    assert (lookup.confidence, lookup.propose(2)) == (SIZE + 1, [51, 52])
    lookup.append(7)  # elsewhere now: 3, 50, 7 never stood there
    assert (lookup.confidence, lookup.propose(2)) == (0, [])


def test_a_text_that_runs_in_a_circle_is_proposed_round_and_round() -> None:
    assert ready([8, 1, 2, 1, 2, 1]).propose(5) == [2, 1, 2]
    lookup = ready([5, 6])
    for token in (7, 7, 7, 7):
        lookup.append(token)
    assert lookup.confidence == SIZE and lookup.propose(4) == [7, 7, 7]


def test_what_is_appended_is_found_like_what_was_there() -> None:
    """Against a search from the end, over random texts of few different tokens."""
    rng = random.Random(3)
    found = 0
    for _ in range(200):
        tokens = [rng.randrange(3) for _ in range(rng.randint(0, 25))]
        cut = rng.randint(0, len(tokens))
        lookup = ready(tokens[:cut])
        for token in tokens[cut:]:
            lookup._place = None  # an old match would be followed on, a search starts anew
            lookup.append(token)
        if cut == len(tokens) or cut + 1 < len(tokens):
            lookup._place = None
            lookup._find()
        places = [
            place
            for place in range(SIZE, len(tokens))
            if tokens[place - SIZE : place] == tokens[-SIZE:]
        ]
        expected = tokens[places[-1]] if places else None
        assert lookup.propose(1) == ([] if expected is None else [expected])
        found += expected is not None
    assert 50 < found < 200


def test_nothing_is_found_across_or_proposed_from_a_picture(tiny: QwenVL) -> None:
    built = prompt(tiny, user_message("Look", [ONE, OTHER, ONE]))
    lookup = Lookup(built)
    lookup.prepare()
    slot = built.slots[0]
    end = slot.start + slot.image.n_tokens
    pad = int(built.token_ids[slot.start])
    before = built.token_ids[slot.start - SIZE : slot.start].tolist()
    for token in before:
        lookup.append(token)
    assert lookup.propose(4) == []  # a picture follows there
    for token in [pad] * 5:
        lookup.append(token)
    assert lookup.propose(4) == [pad] * 4  # from the answer itself, not from the slots
    assert all(
        place > built.token_ids.size or not slot.start <= place - 1 < end
        for place in lookup._next.values()
    )


def test_a_loss_doubles_what_is_asked_and_a_gain_or_time_halves_it() -> None:
    pace = Pace(least=3, first=3)
    for _ in range(3):
        pace.plain(1.0)
    pace.round(seconds=2.5, tokens=2)
    assert pace.needed == 6
    pace.round(seconds=2.5, tokens=1)
    assert pace.needed == 12
    pace.round(seconds=2.5, tokens=3)
    assert pace.needed == 6
    for _ in range(FORGIVEN_AFTER):
        pace.plain(1.0)
    assert pace.needed == 3
    pace.round(seconds=2.5, tokens=3)
    assert pace.needed == 3


def test_proposals_that_are_always_wrong_are_soon_left_alone(tiny: QwenVL) -> None:
    """At most one step in twenty may be spent on them, whatever they cost."""
    built, count = prompt(tiny), 200
    plain, _ = plainly(tiny, built, count, count)
    script = Script(plain, wrong_every=1)

    class Growing(Script):
        """As confident as it is long since it was wrong."""

        def append(self, token: int) -> None:
            super().append(token)
            self.confidence += 1

        def propose(self, most: int) -> list[int]:
            self.confidence = 0
            return super().propose(most)

    liar = Growing(plain, wrong_every=1)
    speculator = Speculator([Source(liar, Pace(least=3, first=3))], ROWS)
    conversation = Conversation(tiny.model)
    logits = prefill(tiny.model, conversation, built, step=4096).logits[:, -1]
    steps = speculate(
        tiny.model, conversation.cache, logits, sampler(tiny, built), count, speculator
    )
    assert [step[0].token_id for step in steps] == script.tokens
    assert 1 <= speculator.rounds <= count // 20


def test_rows_stay_on_the_fused_path_and_respect_the_processor(
    tiny: QwenVL, demo: QwenVL, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verify_rows(tiny.model).least == 2
    quantized = load(tiny_folder, quantize="8bit", dtype="float32")
    assert verify_rows(quantized.model).least > 4  # up to 4 rows cost as much as one by one
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    for heads, groups, rows in ((12, 2, 5), (28, 4, 4), (64, 8, 4)):
        text = replace(demo.config.text, num_attention_heads=heads, num_key_value_heads=groups)
        monkeypatch.setattr(demo.model, "config", replace(demo.config, text=text))
        assert verify_rows(demo.model).most == rows
        assert rows * heads // groups <= FUSED_ROWS < (rows + 1) * heads // groups


def test_a_model_as_its_own_draft_is_nearly_always_right(
    monkeypatch: pytest.MonkeyPatch, demo: QwenVL
) -> None:
    twin = load("demo", dtype="float32", draft="demo")
    for vlm in (twin, demo):
        monkeypatch.setattr(vlm, "end_ids", frozenset())
    monkeypatch.setattr(answering, "Lookup", Silent)
    monkeypatch.setattr(Pace, "lost", lambda self: None)
    chat, other = twin.chat(), demo.chat()
    for question, images in (("What is this?", [ONE]), ("And this?", [OTHER]), ("Sure?", [])):
        fast = chat.ask(question, images=images, max_tokens=40, temperature=0, speculation=True)
        plain = other.ask(question, images=images, max_tokens=40, temperature=0, speculation=False)
        assert fast.token_ids == plain.token_ids
        guessed = fast.speculation
        assert guessed is not None and guessed.rounds > 5
        assert guessed.accepted_tokens >= 0.95 * guessed.proposed_tokens
    # The draft kept its side of the conversation as the model kept its own.
    assert twin.draft is not None
    (kept,), (own,) = twin.draft[1].prefixes._kept, twin.stores.prefixes._kept
    assert own.length - kept.length <= 2


class Silent(Lookup):
    """Finds nothing."""

    def _find(self) -> None:
        self._place, self.confidence = None, 0


def test_a_bad_draft_changes_no_token(
    tiny: QwenVL, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "draft")
    vlm = load(tiny_folder, dtype="float32", draft=folder)
    assert vlm.draft is not None
    model = vlm.draft[0]
    model.model.norm.weight = -model.model.norm.weight + 0.3  # it says other things now
    mx.eval(model.parameters())
    monkeypatch.setattr(Pace, "lost", lambda self: None)
    proposed = accepted = 0
    for question in repeating_prompts(6):
        fast = vlm.generate(question, images=[ONE], max_tokens=30, temperature=0, speculation=True)
        plain = tiny.generate(
            question, images=[ONE], max_tokens=30, temperature=0, speculation=False
        )
        assert fast.token_ids == plain.token_ids
        assert fast.speculation is not None
        proposed += fast.speculation.proposed_tokens
        accepted += fast.speculation.accepted_tokens
    assert accepted < proposed


def test_a_draft_of_another_vocabulary_is_refused_in_one_line(tiny_folder: Path) -> None:
    with pytest.raises(OptionError, match="another vocabulary") as caught:
        load(tiny_folder, draft="demo")
    assert "\n" not in str(caught.value)
