"""Text to token ids and back, for the byte-level vocabularies of the Qwen family.

Special tokens are never recognized in text that a person typed: `encode` turns `<|im_end|>` into
the pieces of those ten characters. Only `encode_trusted`, for a template's own text, gives ids to
special tokens.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import tokenizers

from mlx_qwenvl.errors import CheckpointError


class Tokenizer:
    """A checkpoint's vocabulary.

    Args:
        backend: A byte-level tokenizer of the `tokenizers` library.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._backend.encode_special_tokens = True
        added = backend.get_added_tokens_decoder()
        self._added = {index: token.content for index, token in added.items()}
        self.special_ids = {t.content: index for index, t in added.items() if t.special}
        longest_first = sorted(self.special_ids, key=len, reverse=True)
        self._longest = max(map(len, backend.get_vocab()), default=1)  # bytes: one a character
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json` of a model folder.

        Raises:
            CheckpointError: The file is missing or is no tokenizer.
        """
        file = folder / "tokenizer.json"
        if not file.exists():
            raise CheckpointError(f"{file} is missing")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises bare Exception
            reason = str(error).split("\n")[0]
            raise CheckpointError(f"{file} is not a tokenizer: {reason}") from None

    @property
    def vocabulary(self) -> dict[str, int]:
        """All tokens and their ids."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def least_tokens(self, text: str) -> int:
        """No text of this size has fewer tokens; told at once, where `encode` takes its time."""
        # Letters that are composed before they are looked up lose two thirds of their bytes.
        size = len(text) if text.isascii() else len(text.encode("utf-8", "replace")) // 3
        return -(-size // self._longest)

    def encode(self, text: str) -> list[int]:
        """Ids of text in which nothing is special."""
        return list(self._backend.encode(printable(text), add_special_tokens=False).ids)

    def encode_trusted(self, text: str) -> list[int]:
        """Ids of text in which special tokens count."""
        ids: list[int] = []
        for piece in self.split_special(text):
            ids += [self.special_ids[piece]] if piece in self.special_ids else self.encode(piece)
        return ids

    def split_special(self, text: str) -> list[str]:
        """Cut text before and after every special token; no piece is empty."""
        return [piece for piece in self._special.split(text) if piece]

    def token_id(self, content: str) -> int:
        """Id of a special token.

        Raises:
            CheckpointError: The vocabulary has no such token.
        """
        if content not in self.special_ids:
            raise CheckpointError(f"the tokenizer has no special token {content}")
        return self.special_ids[content]

    def find_token(self, content: str) -> int | None:
        """Id of a text that is one token, or None where it is none."""
        found: int | None = self._backend.token_to_id(content)
        return found

    def decode(self, token_ids: list[int]) -> str:
        """Text of ids, special tokens spelled out, bytes that are no UTF-8 replaced."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for ids outside the vocabulary."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else bytes(_BYTE_OF[character] for character in token)


class StreamDecoder:
    """Turns ids into text one by one and never gives half a code point."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """Text that is complete with this token; may be empty."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What an unfinished code point at the end becomes."""
        return self._utf8.decode(b"", final=True)


def printable(text: str) -> str:
    """Text without lone surrogates, which have no UTF-8 form."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _byte_table() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes follow from U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF = _byte_table()
