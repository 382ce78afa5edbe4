"""This project, for `benchmarks.peers`."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.peers.wire import FIRST_TOKENS, Answer, Batch, Options, Turn, asking, drive, timed
from mlx_qwenvl import QwenVL, blas, load
from mlx_qwenvl.benching.batch import answer_together
from mlx_qwenvl.engine.reply import Chunk


class Ours:
    """A loaded `QwenVL`."""

    def __init__(self, options: Options) -> None:
        self._vlm: QwenVL = load(options.folder, dtype=options.dtype, quantize=options.quantize)
        self._vlm.end_ids = frozenset()

    def answer(self, turns: list[Turn], max_tokens: int) -> Answer:
        """Answer a conversation as if nothing had been asked before."""
        return self._answer(turns, max_tokens, cache=False)

    def another(self, turns: list[Turn], question: str, *, best: bool) -> Answer:
        """Answer both; the model keeps what both begin with, and the picture."""
        self._answer(turns, 1, cache=True)
        return self._answer(asking(turns, question), 1, cache=True)

    def next_turn(self, turns: list[Turn], question: str, *, best: bool) -> Answer:
        """Ask twice in one `Chat`."""
        system = next((turn.text for turn in turns if turn.role == "system"), None)
        (first,) = (turn for turn in turns if turn.role == "user")
        chat = self._vlm.chat(system)
        chat.ask(first.text, images=list(first.images), temperature=0, max_tokens=FIRST_TOKENS)
        begin = time.perf_counter()
        return _timed(chat.stream(question, temperature=0, max_tokens=1), begin)

    def batch(self, questions: list[str], max_tokens: int) -> Batch:
        """Decode all rows in one step."""
        begin = time.perf_counter()
        rows = answer_together(self._vlm, questions, max_tokens)
        return Batch(time.perf_counter() - begin, sum(map(len, rows)))

    def _answer(self, turns: list[Turn], max_tokens: int, *, cache: bool) -> Answer:
        messages = [
            {
                "role": turn.role,
                "content": [
                    *({"type": "image", "image": path} for path in turn.images),
                    {"type": "text", "text": turn.text},
                ],
            }
            for turn in turns
        ]
        begin = time.perf_counter()
        stream = self._vlm.stream(
            messages=messages,
            temperature=0,
            max_tokens=max_tokens,
            cache=cache,
            speculation=False,  # peers decode plainly; random models repeat themselves
        )
        return _timed(stream, begin)


def _timed(stream: Iterator[Chunk], begin: float) -> Answer:
    last: list[Chunk] = []

    def pieces() -> Iterator[tuple[int, str]]:
        for chunk in stream:
            last[:] = [chunk]
            for token in chunk.token_ids:
                yield token, chunk.text

    answer = timed(pieces(), begin)
    usage = last[0].usage
    assert usage is not None, "the last chunk tells it"
    return Answer(
        answer.first_s,
        answer.decode_s,
        answer.tokens,
        answer.n_tokens,
        usage.prompt_tokens,
        answer.text,
    )


if __name__ == "__main__":
    drive(Ours, ["mlx", "mlx-qwenvl"], "OpenBLAS" if blas.LOADED else "MLX's own BLAS")
