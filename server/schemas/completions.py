"""OpenAI's older completions: bare text goes on, without a dialogue."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from mlx_qwenvl.engine.options import MAX_TOP_LOGPROBS
from mlx_qwenvl.errors import PromptError

from ..call import Call
from ..errors import RequestError
from ..settings import Settings
from .common import (
    MAX_CHOICES,
    REFUSED_EVERYWHERE,
    CompletionFields,
    Refusals,
    only,
    read_form,
)

DEFAULT_TOKENS = 16  # of an answer where the request sets no limit; this form's own default

REFUSED: Refusals = {
    **REFUSED_EVERYWHERE,
    "images": (only([]), "is not supported; use /v1/chat/completions for pictures"),
    "messages": (only(), "belongs to /v1/chat/completions; expected prompt"),
    "suffix": (only(""), "is not supported; this model was not taught to fill gaps"),
}

TokenIds = list[Annotated[int, Field(ge=0, lt=2**31)]]


class CompletionRequest(CompletionFields):
    """Body of `POST /v1/completions`."""

    prompt: str | list[str] | TokenIds | list[TokenIds]
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: dict[str, Any] | None = None

    @classmethod
    def refused(cls) -> Refusals:
        """Fields that are refused unless they change nothing."""
        return REFUSED

    def to_calls(self, settings: Settings, served: str) -> list[Call]:
        """The request as the engine understands it: one call a prompt.

        Args:
            settings: The operator's.
            served: Name of the model that answers.

        Raises:
            UnknownModel: Another model is asked for.
            RequestError: Fields that contradict each other.
            PromptError: There is no prompt, or there are too many.
        """
        self.check(settings, served)
        n = self.n or 1
        if self.best_of not in (None, n):
            raise RequestError("best_of differs from n, which is not supported", "best_of")
        if self.echo and self.logprobs is not None:
            raise RequestError("echo with logprobs is not supported", "echo")
        prompts = self.prompts
        if not prompts or not all(prompts):
            raise PromptError("the prompt is empty; expected some text", "prompt")
        if len(prompts) * n > MAX_CHOICES:
            raise PromptError(
                f"{len(prompts)} prompts with {n} answers each were asked for, "
                f"at most {MAX_CHOICES} answers pass",
                "prompt",
            )
        options = self.options(settings, self.max_tokens or DEFAULT_TOKENS, self.stop)
        if self.logprobs is not None:
            options["logprobs"], options["top_logprobs"] = True, self.logprobs
        form = read_form(self.response_format, self.grammar, settings)
        return [Call(text=prompt, options=options, n=n, grammar=form) for prompt in prompts]

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, one or many."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [part for part in self.prompt if isinstance(part, str)]
        ids = [part for part in self.prompt if isinstance(part, int)]
        many = [tuple(part) for part in self.prompt if isinstance(part, list)]
        return [tuple(ids)] if ids else [*texts, *many]
