"""mistral.rs through its Python package, for `benchmarks.peers`; run by a Python that has it.

It does not tell token ids. The first token's time is the call's less the time that it says decoding
took. A picture's place has to be written into the text.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

from benchmarks.peers.wire import (
    Answer,
    AskedAnew,
    Batch,
    Options,
    Turn,
    Unsupported,
    drive,
)

PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class MistralRs(AskedAnew):
    """A runner."""

    def __init__(self, options: Options) -> None:
        self._package: Any = importlib.import_module("mistralrs")
        which = self._package.Which.MultimodalPlain(
            model_id=options.folder,
            arch=self._package.MultimodalArchitecture.Qwen2VL,
            dtype=getattr(self._package.ModelDType, DTYPES[options.dtype or "float32"]),
        )
        self._runner = self._package.Runner(
            which=which,
            in_situ_quant=options.quantize,
            token_source="none",
            max_seqs=1,
        )

    def answer(self, turns: list[Turn], max_tokens: int) -> Answer:
        """Answer a conversation."""
        begin = time.perf_counter()
        done = self._ask(turns, max_tokens)
        seconds = time.perf_counter() - begin
        usage = done.usage
        decode_s = float(usage.total_completion_time_sec) if max_tokens > 1 else 0.0
        return Answer(
            first_s=seconds - decode_s,
            decode_s=decode_s,
            tokens=(),
            n_tokens=int(usage.completion_tokens),
            prompt_tokens=int(usage.prompt_tokens),
            text=str(done.choices[0].message.content),
        )

    def batch(self, questions: list[str], max_tokens: int) -> Batch:
        """Refuse: asked from several threads, its runner says "Already borrowed"."""
        raise Unsupported("its Python class answers one question at a time")

    def _ask(self, turns: list[Turn], max_tokens: int) -> Any:
        messages: list[dict[str, Any]] = []
        for turn in turns:
            content: Any = turn.text
            if turn.images:
                content = [
                    *({"type": "image_url", "image_url": {"url": path}} for path in turn.images),
                    {"type": "text", "text": PLACE * len(turn.images) + turn.text},
                ]
            messages.append({"role": turn.role, "content": content})
        request = self._package.ChatCompletionRequest(
            model="default",
            messages=messages,
            max_tokens=max_tokens,
            temperature=0.0,
            ignore_eos=True,
        )
        return self._runner.send_chat_completion_request(request)


if __name__ == "__main__":
    drive(MistralRs, ["mistralrs"])
