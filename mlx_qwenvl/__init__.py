"""Qwen2-VL on Apple Silicon, through MLX.

from mlx_qwenvl import load

vlm = load("demo")
print(vlm.generate("What is shown in this image?", images=["shapes.png"]))
"""

from mlx_qwenvl import blas as _blas  # noqa: F401 - has to come before anything imports MLX
from mlx_qwenvl.dialogue import Chat
from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.engine.reply import Chunk, Reply, Speculation, Timings, TokenLogprob, Usage
from mlx_qwenvl.errors import (
    CheckpointError,
    ContextError,
    FetchError,
    MediaError,
    MemoryExceeded,
    ModelNotFound,
    NotFinite,
    OptionError,
    PromptError,
    QwenVLError,
)
from mlx_qwenvl.grounding.boxes import Box
from mlx_qwenvl.vlm import QwenVL, load

__version__ = "0.5.0"

__all__ = [
    "Box",
    "Chat",
    "CheckpointError",
    "Chunk",
    "ContextError",
    "FetchError",
    "Grammar",
    "MediaError",
    "MemoryExceeded",
    "ModelNotFound",
    "NotFinite",
    "OptionError",
    "PromptError",
    "QwenVL",
    "QwenVLError",
    "Reply",
    "Speculation",
    "Timings",
    "TokenLogprob",
    "Usage",
    "__version__",
    "load",
]
