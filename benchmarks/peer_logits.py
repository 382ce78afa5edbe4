"""Logits of other MLX runtimes, for `benchmarks.interchange`; run by the Python that has them.

    PEER_PYTHON benchmarks/peer_logits.py JOBS.json

JOBS.json holds a list of jobs, each with `library` ("mlx-vlm" or "mlx-lm"), `folder`, `inputs` and
`output`. `inputs` is an .npz with input_ids [1, L], pixel_values [n, 1176], image_grid_thw [1, 3],
text_ids [1, L], and a picture's path and question. `output` becomes an .npz with `logits` and
`text_logits` [L, V] and, of mlx-vlm, what its own processor makes of the picture. One line of JSON
per job tells whether that went well. Weights and activations are cast to float32.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np


def mlx_vlm_logits(folder: Path, inputs: Any) -> dict[str, np.ndarray]:
    """Logits of a question with and one without a picture, and the processor's own inputs."""
    model, processor = importlib.import_module("mlx_vlm.utils").load(str(folder), lazy=True)
    model.set_dtype(mx.float32)
    found = {
        "logits": _mlx_vlm_answer(
            model, inputs["input_ids"], inputs["pixel_values"], inputs["image_grid_thw"]
        ),
        "text_logits": _mlx_vlm_answer(model, inputs["text_ids"], None, None),
    }
    content = [{"type": "image"}, {"type": "text", "text": str(inputs["question"])}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    prepare = importlib.import_module("mlx_vlm.utils").prepare_inputs
    own = prepare(processor, images=[str(inputs["picture"])], prompts=text)
    for name in ("input_ids", "pixel_values", "image_grid_thw"):
        found[f"own_{name}"] = np.array(own[name])
    return found


def _mlx_vlm_answer(
    model: Any, ids: np.ndarray, pixels: np.ndarray | None, grid: np.ndarray | None
) -> np.ndarray:
    """One pass as `model.__call__` makes it, with embeddings cast between its two halves.

    Embeddings in float formats such as mxfp4 come out in bfloat16 whatever the weights' dtype is,
    and the cosines and sines of positions then take that dtype too.
    """
    tokens = mx.array(ids)
    media = {} if grid is None else {"image_grid_thw": mx.array(grid)}
    embedded = model.get_input_embeddings(
        tokens, None if pixels is None else mx.array(pixels), **media
    )
    answer = model.language_model(
        tokens,
        embedded.inputs_embeds.astype(mx.float32),
        position_ids=embedded.position_ids,
        rope_deltas=embedded.rope_deltas,
    )
    return _rows(answer.logits)


def mlx_lm_logits(folder: Path, inputs: Any) -> dict[str, np.ndarray]:
    """Logits of a question without a picture."""
    model, _ = importlib.import_module("mlx_lm.utils").load_model(folder, lazy=True)
    model.set_dtype(mx.float32)
    return {"text_logits": _rows(model(mx.array(inputs["text_ids"])))}


def _rows(logits: mx.array) -> np.ndarray:
    return np.array(logits[0].astype(mx.float32))


LIBRARIES = {"mlx-vlm": mlx_vlm_logits, "mlx-lm": mlx_lm_logits}


def main() -> None:
    """Run the jobs."""
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            found = LIBRARIES[job["library"]](Path(job["folder"]), np.load(job["inputs"]))
            np.savez(job["output"], **found)  # type: ignore[arg-type,unused-ignore]
            problem = None
        except Exception as error:  # whatever it is, it is this job's result
            problem = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps({"error": problem}), flush=True)


if __name__ == "__main__":
    main()
