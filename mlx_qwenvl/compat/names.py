"""The names that mistral.rs gives to architectures, types and roles, as far as they are Qwen's.

Several of its generations meet here: what was `Vision...` up to its version 0.7 is `Multimodal...`
since, and both names are one thing.
"""

from __future__ import annotations

from enum import Enum


class VisionArchitecture(Enum):
    """Architectures that may be named; which member a model is stands in its `config.json`.

    `VLlama` is what the page about Qwen2-VL that programs were written after says.
    """

    VLlama = "vllama"
    Qwen2VL = "qwen2vl"
    Qwen2_5VL = "qwen2_5vl"
    Qwen3VL = "qwen3vl"
    Qwen3VLMoE = "qwen3vlmoe"


MultimodalArchitecture = VisionArchitecture
VisionLoaderType = VisionArchitecture
MultimodalLoaderType = VisionArchitecture


class ModelDType(Enum):
    """Number formats of weights and activations; `Auto` is what suits the device."""

    Auto = None
    BF16 = "bfloat16"
    F16 = "float16"
    F32 = "float32"


class IsqType(Enum):
    """Quantizations; `weights/recipes.py` says which format of MLX each becomes."""

    Q4_0 = "Q4_0"
    Q4_1 = "Q4_1"
    Q5_0 = "Q5_0"
    Q5_1 = "Q5_1"
    Q8_0 = "Q8_0"
    Q8_1 = "Q8_1"
    Q2K = "Q2K"
    Q3K = "Q3K"
    Q4K = "Q4K"
    Q5K = "Q5K"
    Q6K = "Q6K"
    Q8K = "Q8K"
    HQQ4 = "HQQ4"
    HQQ8 = "HQQ8"
    F8E4M3 = "F8E4M3"
    F8Q8 = "F8Q8"
    AFQ2 = "AFQ2"
    AFQ3 = "AFQ3"
    AFQ4 = "AFQ4"
    AFQ6 = "AFQ6"
    AFQ8 = "AFQ8"
    MXFP4 = "MXFP4"


class ToolChoice(Enum):
    """Whether the model may call tools."""

    NoTools = "none"
    Auto = "auto"


class TextMessageRole(Enum):
    """Who says a message."""

    User = "user"
    Assistant = "assistant"
    System = "system"
    Tool = "tool"
