"""Build a byte-level BPE with Qwen's special tokens from the sentences of the generator.

`python -m examples.train_demo.tokenizer FILE` writes a fresh one; training from scratch may use it,
or the tokenizer.json of the shipped model, which was built the same way.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from examples.train_demo.marks import plain
from examples.train_demo.questions import make_sample
from examples.train_demo.rows import SYSTEM
from examples.train_demo.talk import INTENTS

SPECIAL: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen2's split: words with one leading mark or space, single digits, runs of punctuation, line
# ends.
SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build(vocab_size: int = 900, scenes: int = 6000) -> Tokenizer:
    """Train the BPE; capitals stay single bytes, because text to read is left out of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(scenes), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer


def _corpus(scenes: int) -> Iterator[str]:
    rng = random.Random(7)
    for i in range(scenes):
        kind = rng.choice(("shapes", "shapes", "pair", "text"))
        sample = make_sample(rng, kind, new_phrasing=i % 8 == 0)
        shown = sample.pictures[0].text
        for question in sample.questions:
            for sentence in (plain(question.question), plain(question.answer)):
                yield sentence.replace(shown, "123") if shown else sentence
    for trained, unseen, answer in INTENTS * 20:
        yield " ".join((*trained, *unseen, answer))
    for _ in range(500):
        yield from (f"system\n{SYSTEM}", "user\n", "assistant\n", "Picture 1: ", "Video 1: ")


def main() -> None:
    """Command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m examples.train_demo.tokenizer TOKENIZER_JSON")
    build().save(str(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
