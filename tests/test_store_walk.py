"""Answers with stores equal answers without, whatever was asked before."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

from mlx_qwenvl import Chat, QwenVL
from mlx_qwenvl.engine.disk_tier import DiskTier
from mlx_qwenvl.engine.stores import Stores
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.inputs.messages import Message
from tests.golden.tiny import picture

PREFIX_BYTES, FEATURE_BYTES = 3 * 2**20, 2**14  # exceeded by a few conversations and pictures
QUESTIONS = ("What is this?", "What is that?", "Why?", "Is it so, and why is it?")
SYSTEMS = (None, "Be brief.", "Be brief, and be kind too. " * 3)
KINDS = ("ask", "ask", "chat", "chat", "chat", "branch", "edit", "break off", "two at once")


def pictures() -> list[ImageSource]:
    """A small pool in which most have a twin that some careless key would confuse with it."""
    tall, wide = (Image.new("RGB", size, (90, 120, 30)) for size in ((28, 112), (112, 28)))
    red, blue = Image.new("P", (84, 56), 0), Image.new("P", (84, 56), 0)
    red.putpalette([200, 10, 10])
    blue.putpalette([10, 10, 200])
    one, other = picture(1, 84, 56), picture(2, 84, 56)
    mode = Image.frombytes("YCbCr", one.size, one.tobytes())
    return [one, other, mode, red, blue, tall, wide, encoded(red), encoded(blue), encoded(one)]


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@dataclass
class Walk:
    """Operations at random on a model, each answered with stores and without.

    Attributes:
        vlm: The model.
        rng: Source of chance.
        pool: Pictures to ask about.
        dialogues: Conversations that may go on from any turn, as their messages.
        reused: Tokens that were not computed.
    """

    vlm: QwenVL
    rng: random.Random
    pool: list[ImageSource] = field(default_factory=pictures)
    dialogues: list[list[Message]] = field(default_factory=list)
    reused: int = 0

    def step(self) -> None:
        """Do one operation; answers that differ raise."""
        kind, question = self.rng.choice(KINDS), self.rng.choice(QUESTIONS)
        images = self.rng.sample(self.pool, self.rng.choice([0, 1, 1, 1, 2]))
        options: dict[str, Any] = {
            "max_tokens": self.rng.choice([1, 4, 24]),
            "temperature": 0,
            "kv_bits": self.rng.choice([None, None, None, 8]),
            "kv_start": self.rng.choice([0, 0, 70, 150]),
            "max_pixels": self.rng.choice([None, None, 56 * 56]),
            "prefill_step": self.rng.choice([7, 1024]),
            "images": images,
        }
        if kind in ("chat", "branch", "edit"):
            self._talk(kind, question, options)
            return
        options["system"] = self.rng.choice(SYSTEMS)
        if kind == "ask":
            kept = self.vlm.generate(question, **options)
            assert kept.token_ids == self._plain(question, options)
            self.reused += kept.usage.cached_tokens
        elif kind == "break off":
            broken: Any = self.vlm.stream(question, **options)
            next(broken)
            broken.close()
        else:
            self._two_at_once(question, options)

    def _plain(self, question: str, options: dict[str, Any]) -> tuple[int, ...]:
        return self.vlm.generate(question, cache=False, **options).token_ids

    def _two_at_once(self, question: str, options: dict[str, Any]) -> None:
        texts = (question, question + " And now?")
        streams = [self.vlm.stream(text, **options) for text in texts]
        heads = [next(stream) for stream in streams]  # each begins before one ends
        tails = [list(stream) for stream in reversed(streams)][::-1]
        for text, head, tail in zip(texts, heads, tails, strict=True):
            heard = tuple(i for chunk in (head, *tail) for i in chunk.token_ids)
            assert heard == self._plain(text, options)

    def _talk(self, kind: str, question: str, options: dict[str, Any]) -> None:
        if not self.dialogues or (kind == "chat" and self.rng.random() < 0.2):
            self.dialogues.append(self.vlm.chat(self.rng.choice(SYSTEMS)).messages)
        index = self.rng.randrange(len(self.dialogues))
        past = self.dialogues[index]
        systems, turns = len(past) % 2, len(past) // 2
        if kind in ("branch", "edit"):  # go on from an earlier turn
            past = past[: systems + 2 * self.rng.randint(0, turns)]
        elif turns > 3:
            past = past[:systems]
        kept, plain = self._chat(past), self._chat(past)
        reply = kept.ask(question, **options)
        assert reply.token_ids == plain.ask(question, cache=False, **options).token_ids
        self.reused += reply.usage.cached_tokens
        if kind == "branch":
            self.dialogues.append(kept.messages)
        else:
            self.dialogues[index] = kept.messages

    def _chat(self, messages: list[Message]) -> Chat:
        chat = self.vlm.chat()
        chat.messages = list(messages)
        return chat


@pytest.mark.parametrize(
    ("seed", "steps", "on_disk"), [(4, 200, False), (5, 100, True)], ids=["memory", "disk"]
)
def test_random_operations_answer_as_without_stores(
    tiny: QwenVL,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    steps: int,
    on_disk: bool,
) -> None:
    disk = DiskTier(tmp_path_factory.mktemp("disk"), 2**20, "tiny") if on_disk else None
    walk = Walk(tiny, random.Random(seed))
    for number in range(steps):
        if number == 0 or (on_disk and number % 20 == 0):  # as after a restart
            stores = Stores.of(tiny.model, PREFIX_BYTES, FEATURE_BYTES, disk)
            monkeypatch.setattr(tiny, "stores", stores)
        try:
            walk.step()
        except AssertionError as error:
            raise AssertionError(f"operation {number} of seed {seed}: {error}") from error
        assert stores.features.nbytes <= FEATURE_BYTES
        assert len(stores.prefixes._kept) == 1 or stores.prefixes.nbytes <= PREFIX_BYTES
    assert walk.reused > 1000
