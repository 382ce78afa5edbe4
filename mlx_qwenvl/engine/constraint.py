"""Which tokens may come next, so that an answer keeps to its grammar.

llguidance follows the grammar byte by byte on the CPU, while the device computes the step whose
token is to be drawn. It gives one bit a token; they become a mask on the device.

V is the width of the logits, which is more than the vocabulary has tokens.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_qwenvl.errors import OptionError, QwenVLError
from mlx_qwenvl.inputs.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance


class Vocabulary:
    """A checkpoint's tokens in llguidance's form; made once for a model.

    Args:
        tokenizer: The checkpoint's. Its special tokens are never text, so no grammar that is about
            text lets them through.
        end_ids: Tokens that end an answer; they may come exactly where a grammar may end.
        width: V.

    Raises:
        OptionError: No token ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, end_ids: frozenset[int], width: int) -> None:
        import llguidance

        if not end_ids:
            raise OptionError("the model has no token that ends an answer, which a grammar needs")
        self.width = width
        self.end_ids = end_ids
        size = max(tokenizer.vocabulary.values()) + 1
        wrapped = llguidance.TokenizerWrapper(_Tokens(tokenizer, min(end_ids), size))
        self.tokens = llguidance.LLTokenizer(wrapped, eos_token=sorted(end_ids))
        ends = np.zeros(width, dtype=bool)
        ends[sorted(end_ids)] = True
        self.only_ends = mx.array(ends)
        self.all_but_ends = mx.array(~ends & (np.arange(width) < size))


class _Tokens:
    """What `llguidance.TokenizerWrapper` asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end_id: int, size: int) -> None:
        self.eos_token_id = end_id
        self.tokens = [tokenizer.token_bytes(index) for index in range(size)]
        self.special_token_ids = sorted(tokenizer.special_ids.values())
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8", "replace"))


class Compiled:
    """A grammar ready for use; any thread may start answers with it.

    Args:
        matcher: At the grammar's beginning; never moved.
        vocabulary: What it was made with.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._lock = threading.Lock()

    def start(self) -> Constraint:
        """The constraint of one answer."""
        with self._lock:
            return Constraint(self._matcher.deep_copy(), self._vocabulary)


class Constraint:
    """What may come next in one answer.

    A failure never raises here, where a whole batch is at work: from then on only the answer's end
    may be drawn, and whoever hears it calls `check`.

    Args:
        matcher: Its own, at the beginning.
        vocabulary: What it was made with.

    Attributes:
        error: Why the grammar could not be followed, or None.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._has_ended = False
        self._opener: int | None = None
        self.error: QwenVLError | None = None

    def begin_behind(self, token_id: int) -> None:
        """Let the grammar begin behind a token; anything may come before it but the end."""
        self._opener = token_id

    def mask(self) -> mx.array:
        """Tokens that may be drawn now, bool [V]; after the end, or a failure, only the end's."""
        vocabulary = self._vocabulary
        if self._opener is not None:
            return vocabulary.all_but_ends
        if self._has_ended or self.error is not None:
            return vocabulary.only_ends
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint32)
        if self._matcher.is_error():
            self.error = OptionError("the grammar is too complex to follow this answer any further")
            return vocabulary.only_ends
        if not words.any():
            self.error = OptionError("the grammar leads to where no token of the model goes on")
            return vocabulary.only_ends
        return unpack_bits(mx.array(words), vocabulary.width)

    def accept(self, token_id: int) -> None:
        """Take note of the token that was drawn."""
        if self._has_ended or self.error is not None or token_id < 0:  # none, where logits are NaN
            return
        if self._opener is not None:
            self._opener = None if token_id == self._opener else self._opener
        elif token_id in self._vocabulary.end_ids:
            self._has_ended = True
            if not self._matcher.is_accepting():
                self.error = OptionError("the answer ended where its grammar may not end")
        elif not self._matcher.consume_token(token_id):
            self.error = OptionError("a token was drawn that the grammar does not allow")

    @property
    def may_end(self) -> bool:
        """Whether the text so far is all that the grammar asks for."""
        return not self._matcher.is_error() and self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether nothing but the end can follow."""
        return self._has_ended or self.error is not None or self._matcher.is_stopped()

    def check(self) -> None:
        """Raise what went wrong.

        Raises:
            OptionError: The grammar could not be followed.
        """
        if self.error is not None:
            raise self.error


def unpack_bits(words: mx.array, width: int) -> mx.array:
    """Bits of words [W] uint32, lowest first, as bool [width]; False beyond the last."""
    bits = (words[:, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    mask = bits.reshape(-1)[:width].astype(mx.bool_)
    return mx.pad(mask, (0, width - mask.size)) if mask.size < width else mask
