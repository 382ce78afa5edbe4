"""Qwen2-VL on Apple Silicon, through MLX.

from mlx_qwenvl import load

vlm = load("demo")
print(vlm.generate("What is shown in this image?", images=["shapes.png"]))
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from mlx_qwenvl import blas as _blas  # noqa: F401 - has to come before anything imports MLX
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
    RanksLost,
)

if TYPE_CHECKING:
    from mlx_qwenvl.dialogue import Chat
    from mlx_qwenvl.engine.grammar import Grammar
    from mlx_qwenvl.engine.reply import Chunk, Reply, Speculation, Timings, TokenLogprob, Usage
    from mlx_qwenvl.grounding.boxes import Box
    from mlx_qwenvl.vlm import QwenVL, load

__version__ = "0.7.0"

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
    "RanksLost",
    "Reply",
    "Speculation",
    "Timings",
    "TokenLogprob",
    "Usage",
    "__version__",
    "load",
]

# What is imported when it is asked for: a command that needs no MLX does not wait for it, and
# `doctor` runs where MLX does not.
_HOMES = {
    "Box": "grounding.boxes",
    "Chat": "dialogue",
    "Chunk": "engine.reply",
    "Grammar": "engine.grammar",
    "QwenVL": "vlm",
    "Reply": "engine.reply",
    "Speculation": "engine.reply",
    "Timings": "engine.reply",
    "TokenLogprob": "engine.reply",
    "Usage": "engine.reply",
    "load": "vlm",
}

if not TYPE_CHECKING:  # or a name that is not there would pass for an object

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value  # found without us from now on
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
