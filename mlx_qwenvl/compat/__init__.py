"""mistral.rs's Python API on top of ours: change the import line, and a program goes on.

    from mlx_qwenvl.compat import Runner, Which, ChatCompletionRequest, VisionArchitecture

Its Rust API has a twin here as well:

    from mlx_qwenvl.compat import VisionModelBuilder, VisionLoaderType, VisionMessages, ...

Nothing is computed here: requests are translated into `QwenVL.stream`, and its chunks into
responses. An option that means nothing on this machine is refused where the answer or the files
would be others without it, and otherwise ignored, which the log tells; `docs/compat.md` lists them
all.
"""

from mlx_qwenvl.compat.builder import Model, VisionMessages, VisionModelBuilder
from mlx_qwenvl.compat.names import (
    IsqType,
    ModelDType,
    MultimodalArchitecture,
    MultimodalLoaderType,
    TextMessageRole,
    ToolChoice,
    VisionArchitecture,
    VisionLoaderType,
)
from mlx_qwenvl.compat.requests import ChatCompletionRequest, CompletionRequest
from mlx_qwenvl.compat.responses import (
    CalledFunction,
    ChatCompletionChunkResponse,
    ChatCompletionResponse,
    Choice,
    ChunkChoice,
    CompletionChoice,
    CompletionResponse,
    Delta,
    Logprobs,
    ResponseLogprob,
    ResponseMessage,
    ToolCallResponse,
    ToolCallType,
    TopLogprob,
    Usage,
)
from mlx_qwenvl.compat.runner import Runner
from mlx_qwenvl.compat.which import Which

MultimodalMessages = VisionMessages
MultimodalModelBuilder = VisionModelBuilder

__all__ = [
    "CalledFunction",
    "ChatCompletionChunkResponse",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "Choice",
    "ChunkChoice",
    "CompletionChoice",
    "CompletionRequest",
    "CompletionResponse",
    "Delta",
    "IsqType",
    "Logprobs",
    "Model",
    "ModelDType",
    "MultimodalArchitecture",
    "MultimodalLoaderType",
    "MultimodalMessages",
    "MultimodalModelBuilder",
    "ResponseLogprob",
    "ResponseMessage",
    "Runner",
    "TextMessageRole",
    "ToolCallResponse",
    "ToolCallType",
    "ToolChoice",
    "TopLogprob",
    "Usage",
    "VisionArchitecture",
    "VisionLoaderType",
    "VisionMessages",
    "VisionModelBuilder",
    "Which",
]
