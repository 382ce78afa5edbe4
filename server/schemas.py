"""What goes over the wire, in OpenAI's shapes.

Fields that are known but not supported are refused by name; unknown ones are ignored.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from mlx_qwenvl.engine.options import CallOptions
from mlx_qwenvl.errors import OptionError, PromptError
from mlx_qwenvl.inputs.messages import ImagePart, parse_messages

NOT_SUPPORTED = ("tools", "functions", "response_format", "audio", "logprobs", "modalities")


class ChatRequest(BaseModel):
    """Body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    messages: list[dict[str, Any]]
    stream: bool = False
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None
    modalities: list[str] | None = None
    logprobs: bool | None = None

    def check(self) -> None:
        """Refuse what this server cannot do.

        Raises:
            OptionError: A field that is known but not supported.
            PromptError: Messages that make no prompt, or a picture that is not inside the request.
        """
        asked = [name for name in NOT_SUPPORTED if getattr(self, name)]
        if asked or self.n not in (None, 1):
            raise OptionError(f"{asked[0] if asked else 'n'} is not supported by this server")
        for message in parse_messages(self.messages):
            for part in message.parts:
                if isinstance(part, ImagePart) and not _is_inside(part.source):
                    raise PromptError(
                        "pictures have to come inside the request, as data: URLs; "
                        "this server opens no addresses and no local files"
                    )

    def options(self) -> CallOptions:
        """The engine's options."""
        return {
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
            "seed": self.seed,
            "stop": self.stop,
        }


def _is_inside(source: object) -> bool:
    return isinstance(source, str) and source[:5].lower() == "data:"
