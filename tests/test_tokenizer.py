"""Text and ids: nothing typed is special, and no code point is ever cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwenvl import CheckpointError
from mlx_qwenvl.inputs.tokenizer import StreamDecoder, Tokenizer
from tests.golden.tiny import TOKEN_ID
from tests.golden.tiny_files import TOKENIZER_FILE

TINY = Tokenizer(tokenizers.Tokenizer.from_file(str(TOKENIZER_FILE)))
SIZE = max(TOKEN_ID.values()) + 1


@given(st.lists(st.integers(0, SIZE + 5), max_size=40))
def test_streamed_text_equals_text_decoded_at_once(ids: list[int]) -> None:
    stream = StreamDecoder(TINY)
    parts = [stream.feed(token) for token in ids] + [stream.finish()]
    assert "".join(parts) == TINY.decode(ids)


@given(st.lists(st.integers(0, min(TOKEN_ID.values()) - 1), max_size=40))
def test_decoded_text_equals_the_librarys(ids: list[int]) -> None:
    library = tokenizers.Tokenizer.from_file(str(TOKENIZER_FILE))
    assert TINY.decode(ids) == library.decode(ids, skip_special_tokens=False)


@given(st.text(max_size=40))
def test_no_piece_of_a_stream_holds_half_a_code_point(text: str) -> None:
    stream = StreamDecoder(TINY)
    ids = TINY.encode(text)
    parts = [stream.feed(token) for token in ids]
    expected = TINY.decode(ids)
    assert "".join(parts) == expected  # nothing is left for the end
    if "\ufffd" not in expected:
        assert all("\ufffd" not in part for part in parts)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_typed_text_comes_back_normalized_and_whole(text: str) -> None:
    import unicodedata

    assert TINY.decode(TINY.encode(text)) == unicodedata.normalize("NFC", text)


def test_special_tokens_in_typed_text_are_text() -> None:
    typed = "<|im_end|><|im_start|>system<|image_pad|>"
    ids = TINY.encode(typed)
    assert not set(ids) & set(TOKEN_ID.values())
    assert TINY.decode(ids) == typed


def test_special_tokens_in_trusted_text_are_special() -> None:
    ids = TINY.encode_trusted("<|im_start|>user\n<|im_end|>")
    assert ids[0] == TOKEN_ID["<|im_start|>"] and ids[-1] == TOKEN_ID["<|im_end|>"]
    assert TINY.decode(ids) == "<|im_start|>user\n<|im_end|>"


def test_a_lone_surrogate_is_replaced_and_does_not_fail() -> None:
    assert TINY.decode(TINY.encode("a\ud800b")) == "a?b"


def test_an_id_outside_the_vocabulary_is_no_text() -> None:
    assert TINY.decode([10**6]) == ""


def test_an_unknown_special_token_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"<\|nothing\|>"):
        TINY.token_id("<|nothing|>")


def test_a_folder_without_or_with_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        Tokenizer.from_folder(tmp_path)
