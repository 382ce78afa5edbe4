"""llama.cpp through llama-cpp-python, for `benchmarks.peers`; run by a Python that has it.

The folder holds `model.gguf`, which `benchmarks.peers.to_gguf` writes: the decoder alone, so this
is about text.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.peers.wire import (
    Answer,
    AskedAnew,
    Batch,
    Options,
    Turn,
    Unsupported,
    drive,
    timed,
)

CONTEXT = 2048  # tokens
SYSTEM = "You are a helpful assistant."  # as the checkpoint's template has it


class LlamaCpp(AskedAnew):
    """A loaded GGUF file."""

    def __init__(self, options: Options) -> None:
        package = importlib.import_module("llama_cpp")
        file = Path(options.folder) / "model.gguf"
        self._llama: Any = package.Llama(str(file), n_ctx=CONTEXT, verbose=False)

    def answer(self, turns: list[Turn], max_tokens: int) -> Answer:
        """Answer a conversation of text."""
        begin = time.perf_counter()
        ids = self._ids(turns)
        return timed(self._pieces(ids, max_tokens), begin, len(ids))

    def batch(self, questions: list[str], max_tokens: int) -> Batch:
        """Refuse."""
        raise Unsupported("its Python class answers one question at a time")

    def _pieces(self, ids: list[int], max_tokens: int) -> Iterator[tuple[int, str]]:
        stream = self._llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0)
        for token in islice(stream, max_tokens):
            yield int(token), self._llama.detokenize([int(token)]).decode("utf-8", "replace")

    def _ids(self, turns: list[Turn]) -> list[int]:
        if any(turn.images for turn in turns):
            raise Unsupported("measured without pictures")
        if turns[0].role != "system":
            turns = [Turn("system", SYSTEM), *turns]
        text = "".join(f"<|im_start|>{t.role}\n{t.text}<|im_end|>\n" for t in turns)
        text += "<|im_start|>assistant\n"
        ids = self._llama.tokenize(text.encode(), add_bos=False, special=True)
        return [int(token) for token in ids]


if __name__ == "__main__":
    drive(LlamaCpp, ["llama-cpp-python"])
