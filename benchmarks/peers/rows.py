"""Who is compared: each runtime in the ways it is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Folder = Literal["packed", "dense", "gguf"]
OPENBLAS = {"LD_PRELOAD": "libopenblas.so.0"}
OURS = "ours"


@dataclass(frozen=True)
class Row:
    """A runtime and how it is started.

    Attributes:
        runtime: Whose driver and interpreter.
        note: What a reader has to know.
        folder: Which form of the model.
        dtype: Of activations and dense weights; None for the runtime's own choice.
        quantize: What it quantizes random models to at load.
        environment: Variables on top.
    """

    runtime: str
    note: str
    folder: Folder = "packed"
    dtype: str | None = None
    quantize: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


ROWS = {
    "ours": Row(OURS, "as it comes: float32 on a CPU, OpenBLAS where it is installed"),
    "ours-bfloat16": Row(OURS, "the dtype that mlx-vlm computes in", dtype="bfloat16"),
    "ours-dense": Row(OURS, "as Transformers has it", "dense", "float32"),
    "mlx-vlm": Row("mlx-vlm", "as it comes: bfloat16"),
    "mlx-vlm-float32": Row("mlx-vlm", "cast after loading", dtype="float32"),
    "mlx-vlm-float32-openblas": Row(
        "mlx-vlm", "cast, and with OpenBLAS preloaded", dtype="float32", environment=OPENBLAS
    ),
    "transformers": Row("transformers", "torch, not quantized", "dense", "float32"),
    "mistralrs": Row("mistralrs", "Q4K at load; the demo in float32", "dense", None, "Q4K"),
    "llama-cpp": Row("llama-cpp-python", "Q4_0, text alone", "gguf"),
}
DRIVERS = {
    OURS: "drive_ours",
    "mlx-vlm": "drive_mlx_vlm",
    "transformers": "drive_transformers",
    "mistralrs": "drive_mistralrs",
    "llama-cpp-python": "drive_llama_cpp",
}
MODULES = {
    OURS: "mlx_qwenvl",
    "mlx-vlm": "mlx_vlm",
    "transformers": "transformers",
    "mistralrs": "mistralrs",
    "llama-cpp-python": "llama_cpp",
}
