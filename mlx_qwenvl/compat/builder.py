"""The twin of mistral.rs's Rust API: a model built step by step, and messages likewise.

Nothing is awaited, and what `?` passes on is raised. Each step gives something new and leaves the
old as it was. Steps that could not be followed are not there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

from mlx_qwenvl.compat.answering import Answering
from mlx_qwenvl.compat.names import IsqType, ModelDType, TextMessageRole, VisionLoaderType
from mlx_qwenvl.compat.requests import ChatCompletionRequest
from mlx_qwenvl.compat.responses import ChatCompletionChunkResponse, ChatCompletionResponse
from mlx_qwenvl.compat.runner import NO_TOKEN, ONE_BY_ONE, ONE_MEMORY, Runner
from mlx_qwenvl.compat.said import ignored, log, settle
from mlx_qwenvl.compat.which import Which
from mlx_qwenvl.inputs.media import ImageSource
from mlx_qwenvl.vlm import QwenVL


@dataclass(frozen=True)
class VisionMessages:
    """A conversation; each step gives a longer one.

    Attributes:
        messages: In OpenAI's form, so that they also go into a `ChatCompletionRequest`, which is
            the twin of `RequestBuilder`.
    """

    messages: tuple[Mapping[str, Any], ...] = ()

    def add_message(self, role: TextMessageRole, text: str) -> VisionMessages:
        """Say something without a picture."""
        return VisionMessages((*self.messages, {"role": role.value, "content": text}))

    def add_image_message(
        self, role: TextMessageRole, text: str, image: ImageSource | Sequence[ImageSource]
    ) -> VisionMessages:
        """Say something about a picture, or about a list of them.

        Args:
            role: Who says it; only users show pictures.
            text: What is said.
            image: Anything that names or holds a picture: bytes, a path, a PIL image, ...
        """
        images = image if isinstance(image, (list, tuple)) else [image]
        content: list[Mapping[str, Any]] = [{"type": "image", "image": each} for each in images]
        content.append({"type": "text", "text": text})
        return VisionMessages((*self.messages, {"role": role.value, "content": content}))

    add_vllama_image_message = add_image_message

    def clear(self) -> VisionMessages:
        """An empty conversation."""
        return VisionMessages()


class Model:
    """A built model.

    Args:
        answering: What answers.
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    @property
    def vlm(self) -> QwenVL:
        """The model with its own API, to go on with."""
        return self._answering.vlm

    def send_chat_request(
        self, messages: VisionMessages | ChatCompletionRequest
    ) -> ChatCompletionResponse:
        """Answer a conversation.

        Args:
            messages: The conversation, answered with the likeliest tokens; or a request, which
                says by itself how tokens are drawn.

        Raises:
            QwenVLError: As `QwenVL.generate` raises.
        """
        return self._answering.chat(_request(messages))

    def stream_chat_request(
        self, messages: VisionMessages | ChatCompletionRequest
    ) -> Iterator[ChatCompletionChunkResponse]:
        """Answer a conversation piece by piece; argument and errors as of `send_chat_request`."""
        return self._answering.stream(_request(messages))


def _request(messages: VisionMessages | ChatCompletionRequest) -> ChatCompletionRequest:
    if isinstance(messages, ChatCompletionRequest):
        return messages
    return ChatCompletionRequest(messages.messages, temperature=0)


@dataclass(frozen=True)
class VisionModelBuilder:
    """A model that is not loaded yet; `build` loads it.

    Attributes:
        model_id: Anything that `mlx_qwenvl.load` takes.
        loader_type: Makes no difference; every name that there is means Qwen2-VL.
    """

    model_id: str
    loader_type: VisionLoaderType | None = None
    _: KW_ONLY
    isq: str | None = None
    dtype: ModelDType = ModelDType.Auto
    topology: str | Path | None = None
    uqff: str | None = None
    max_edge: int | None = None
    prompt_batchsize: int | None = None
    prefix_cache_n: int | None = None
    logs: bool = False
    token_source: str = ignored(NO_TOKEN, "cache")
    max_num_seqs: int = ignored(ONE_BY_ONE, 32)
    device_mapping: Any = ignored(ONE_MEMORY)
    force_cpu: bool = ignored("MLX's default device computes", False)

    def with_isq(self, isq: IsqType | str) -> VisionModelBuilder:
        """Quantize while loading."""
        return replace(self, isq=isq.value if isinstance(isq, IsqType) else isq)

    def with_logging(self) -> VisionModelBuilder:
        """Tell on stderr what happens while the model is loaded."""
        return replace(self, logs=True)

    def with_dtype(self, dtype: ModelDType) -> VisionModelBuilder:
        """Take another number format for weights and activations."""
        return replace(self, dtype=dtype)

    def with_topology(self, topology: str | Path) -> VisionModelBuilder:
        """Quantize parts otherwise, as a YAML file says."""
        return replace(self, topology=topology)

    def with_prompt_batchsize(self, prompt_batchsize: int) -> VisionModelBuilder:
        """Compute so many prompt tokens at once."""
        return replace(self, prompt_batchsize=prompt_batchsize)

    def with_prefix_cache_n(self, n: int | None) -> VisionModelBuilder:
        """Keep nothing of earlier prompts, with 0."""
        return replace(self, prefix_cache_n=n)

    def with_max_edge(self, max_edge: int) -> VisionModelBuilder:
        """Give a picture the pixels of a square with this edge at most."""
        return replace(self, max_edge=max_edge)

    def from_uqff(self, uqff: str) -> VisionModelBuilder:
        """Take a stored quantization by its name."""
        return replace(self, uqff=uqff)

    def with_token_source(self, token_source: str) -> VisionModelBuilder:
        """Change nothing."""
        return replace(self, token_source=token_source)

    def with_max_num_seqs(self, max_num_seqs: int) -> VisionModelBuilder:
        """Change nothing."""
        return replace(self, max_num_seqs=max_num_seqs)

    def with_device_mapping(self, device_mapping: object) -> VisionModelBuilder:
        """Change nothing."""
        return replace(self, device_mapping=device_mapping)

    def with_force_cpu(self) -> VisionModelBuilder:
        """Change nothing."""
        return replace(self, force_cpu=True)

    with_topology_from_path = with_topology
    from_max_edge = with_max_edge

    def build(self) -> Model:
        """Load the model.

        Raises:
            QwenVLError: As `mlx_qwenvl.load` raises.
        """
        which = Which.VisionPlain(
            self.model_id,
            self.loader_type,
            topology=self.topology,
            from_uqff=self.uqff,
            dtype=self.dtype,
            max_edge=self.max_edge,
        )
        with _told() if self.logs else nullcontext():
            settle(self)
            runner = Runner(
                which,
                prefix_cache_n=16 if self.prefix_cache_n is None else self.prefix_cache_n,
                in_situ_quant=self.isq,
                prompt_batchsize=self.prompt_batchsize,
            )
            log.info("loaded %r in %.1f s", runner.vlm, runner.vlm.load_s)
        return Model(runner.answering)


@contextmanager
def _told() -> Iterator[None]:
    """Let this package's log be heard on stderr, and leave logging as it was."""
    logger = logging.getLogger("mlx_qwenvl")
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
