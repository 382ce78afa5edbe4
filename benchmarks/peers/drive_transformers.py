"""Transformers with torch, for `benchmarks.peers`; run by a Python that has both.

Its image processor's Pillow backend is taken: the other needs torchvision and resizes differently.
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
    drive,
)

IMAGE_PAD = "<|image_pad|>"
NO_TOKEN = -1  # which ends nothing


class Ear:
    """What `generate` tells: the prompt, then every token; each is noted with its moment."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, int]] = []
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """Hear."""
        if not self._is_prompt:
            self.heard.append((time.perf_counter(), int(value.reshape(-1)[0])))
        self._is_prompt = False

    def end(self) -> None:
        """Nothing comes after."""


class Transformers(AskedAnew):
    """A model, its tokenizer and its image processor."""

    def __init__(self, options: Options) -> None:
        self._torch = importlib.import_module("torch")
        transformers = importlib.import_module("transformers")
        pillow = importlib.import_module(
            "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
        )
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(options.folder)
        self._tokenizer.padding_side = "left"
        self._images = pillow.Qwen2VLImageProcessorPil.from_pretrained(options.folder)
        model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
            options.folder, dtype=getattr(self._torch, options.dtype or "float32")
        )
        self._model = model.eval()

    def answer(self, turns: list[Turn], max_tokens: int) -> Answer:
        """Answer a conversation through `generate`."""
        begin = time.perf_counter()
        inputs = self._inputs(turns)
        ear = Ear()
        with self._torch.inference_mode():
            self._model.generate(**inputs, **_greedy(max_tokens), streamer=ear)
        moments, tokens = zip(*ear.heard, strict=True)
        return Answer(
            first_s=moments[0] - begin,
            decode_s=moments[-1] - moments[0],
            tokens=tokens,
            n_tokens=len(tokens),
            prompt_tokens=int(inputs["input_ids"].shape[1]),
            text=str(self._tokenizer.decode(tokens)),
        )

    def batch(self, questions: list[str], max_tokens: int) -> Batch:
        """Answer all rows at once."""
        begin = time.perf_counter()
        texts = [self._text([Turn("user", question)]) for question in questions]
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True)
        with self._torch.inference_mode():
            rows = self._model.generate(**inputs, **_greedy(max_tokens))
        count = int((rows.shape[1] - inputs["input_ids"].shape[1]) * rows.shape[0])
        return Batch(time.perf_counter() - begin, count)

    def _text(self, turns: list[Turn]) -> str:
        messages = [
            {
                "role": turn.role,
                "content": [
                    *({"type": "image"} for _ in turn.images),
                    {"type": "text", "text": turn.text},
                ],
            }
            for turn in turns
        ]
        template = self._tokenizer.apply_chat_template
        return str(template(messages, tokenize=False, add_generation_prompt=True))

    def _inputs(self, turns: list[Turn]) -> dict[str, Any]:
        text = self._text(turns)
        paths = [path for turn in turns for path in turn.images]
        if not paths:
            return dict(self._tokenizer(text, return_tensors="pt"))
        open_image = importlib.import_module("PIL.Image").open
        opened = [open_image(path).convert("RGB") for path in paths]
        seen = dict(self._images(images=opened, return_tensors="pt"))
        seen["pixel_values"] = seen["pixel_values"].to(self._model.dtype)
        first, *pieces = text.split(IMAGE_PAD)
        for grid, piece in zip(seen["image_grid_thw"], pieces, strict=True):
            first += IMAGE_PAD * (int(grid.prod()) // self._images.merge_size**2) + piece
        inputs = dict(self._tokenizer(first, return_tensors="pt"))
        pad = self._tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        return inputs | seen | {"mm_token_type_ids": (inputs["input_ids"] == pad).int()}


def _greedy(max_tokens: int) -> dict[str, Any]:
    return {
        "do_sample": False,
        "max_new_tokens": max_tokens,
        "eos_token_id": NO_TOKEN,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "repetition_penalty": 1.0,
    }


if __name__ == "__main__":
    drive(Transformers, ["torch", "transformers"])
