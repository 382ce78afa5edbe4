"""Train `tokenizer.json` of the tiny checkpoint: `python -m tests.golden.train_tokenizer`.

The pipeline is Qwen2-VL's (NFC, Qwen2's split, byte-level BPE, special tokens after the learned
ones); only the vocabulary is small: 480 learned tokens, the 14 special ones at 480 to 493.
The recordings depend on these ids, so a new vocabulary means recording again.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

from tests.golden.tiny_files import LEARNED_TOKENS, TOKENIZER_FILE
from tests.golden.vocabulary import SPECIAL_TOKENS, byte_letters, qwen_pre_tokenizer

SENTENCES = (
    "You are a helpful assistant.",
    "system user assistant",
    "What is in this picture? Describe this image in one sentence.",
    "The first picture shows a red circle; the second shows two blue squares.",
    "How many circles are there? There are three circles and a line.",
    "Which of the pictures is wider, and which one is taller?",
    "Compare the colours of these images: is the left one darker than the right one?",
    "Read the words in the picture from left to right. Answer briefly, please.",
    "A small black cat sits on the table under the window, and it is looking at a bird.",
    "Thank you! That's right, I'll look at the next picture now. Don't worry.",
    "Grüße aus Köln, señor. Où est la forêt? Это картинка. 这张图片里有什么? 写真を見てください。",
    "for index in range(10):\n    print(index, 3.14, 2024)\n",
)


def train() -> Tokenizer:
    """Learn the vocabulary from `SENTENCES`.

    Returns:
        The tokenizer, `LEARNED_TOKENS` learned ids followed by the special ones.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = qwen_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED_TOKENS,
        initial_alphabet=list(byte_letters().values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    learned = tokenizer.get_vocab_size()
    if learned != LEARNED_TOKENS:
        raise RuntimeError(f"the sentences give {learned} tokens, expected {LEARNED_TOKENS}")
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    return tokenizer


if __name__ == "__main__":
    train().save(str(TOKENIZER_FILE))
    print(f"{TOKENIZER_FILE.name}: {TOKENIZER_FILE.stat().st_size} bytes")
