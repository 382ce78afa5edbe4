"""What is to be counted: a conversation with its pictures, or bare text."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from mlx_qwenvl.engine.options import MOST_FPS
from mlx_qwenvl.inputs.messages import parse_messages

from ..call import Call
from ..errors import RequestError
from ..settings import Settings
from .chat import MESSAGES_SCHEMA
from .common import Positive, admit, blaming, check_model
from .tools import Tools


class CountRequest(BaseModel):
    """Body of `POST /v1/tokenize`, with llama.cpp's and vLLM's names for the text."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    messages: Annotated[Any, WithJsonSchema(MESSAGES_SCHEMA)] = None
    prompt: str | None = None
    content: str | None = None
    text: str | None = None
    tools: list[dict[str, Any]] | None = None
    min_pixels: Positive | None = None
    max_pixels: Positive | None = None
    fps: Annotated[float, Field(gt=0, le=MOST_FPS)] | None = None
    n_frames: Positive | None = None
    max_frames: Positive | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None
    parse_special: bool | None = None

    @property
    def plain(self) -> str | None:
        """Text that is to be counted as it stands, or None for a conversation.

        Raises:
            RequestError: Nothing is to be counted, or several things are.
        """
        given = [text for text in (self.prompt, self.content, self.text) if text is not None]
        if len(given) + (self.messages is not None) != 1:
            raise RequestError("expected one of messages, prompt, content and text", "messages")
        return given[0] if given else None

    def to_call(self, settings: Settings, served: str) -> Call:
        """The conversation as the engine understands it.

        Raises:
            UnknownModel: Another model is asked for.
            RequestError: A field that is not supported.
            PromptError: Messages that make no prompt.
        """
        check_model(self.model, settings, served)
        if self.parse_special:
            raise RequestError(
                "parse_special is not supported; special tokens in text are text", "parse_special"
            )
        if self.plain is not None:
            return Call(text=self.plain)
        tools = Tools.of(self.tools, None, None, settings)
        with blaming("messages"):
            messages = admit(parse_messages(self.messages), settings)
        return Call(
            messages=tools.told(messages),
            options={
                "min_pixels": self.min_pixels,
                "max_pixels": self.max_pixels,
                "fps": self.fps,
                "n_frames": self.n_frames,
                "max_frames": self.max_frames,
            },
        )


class DetokenizeRequest(BaseModel):
    """Body of `POST /v1/detokenize`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=2**20)]
