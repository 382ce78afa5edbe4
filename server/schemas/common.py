"""Fields that the forms share, and how they become options of a call."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.engine.options import SEED_LIMIT, CallOptions
from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.inputs.messages import Message

from ..errors import RequestError, UnknownModel
from ..media import MediaPolicy
from ..settings import Settings

MAX_STOPS = 16  # texts; OpenAI's own limit is 4
MAX_CHOICES = 128  # OpenAI's limit
ANY_MODEL = "default"  # the name that other local servers give to whatever is loaded

Positive = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-100, le=100)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)]
# Values with which a field of another server changes nothing, and what to do otherwise.
Refusals: TypeAlias = Mapping[str, tuple[Callable[[Any], bool], str]]


def only(*values: object) -> Callable[[Any], bool]:
    """Whether a field has one of the values that change nothing; True is not 1 here."""
    return lambda value: any(type(value) is type(v) and value == v for v in values)


NOT_HERE = "is not supported by this server"
_SAMPLERS = "is not supported; use temperature, top_p, top_k and min_p"

# What llama.cpp, vLLM and mistral.rs know beside OpenAI's fields and what would change the answer.
REFUSED_EVERYWHERE: Refusals = {
    "adapter": (only(), "is not supported; the model is the operator's choice"),
    "adapters": (only([]), "is not supported; the model is the operator's choice"),
    "add_special_tokens": (only(False), NOT_HERE),
    "allowed_token_ids": (only(), "is not supported; use logit_bias or grammar"),
    "bad_words": (only([]), "is not supported; use logit_bias"),
    "dry_multiplier": (only(0, 0.0), "is not supported; use repetition_penalty"),
    "guided_choice": (only(), "is not supported; use grammar"),
    "guided_grammar": (only(), "is not supported; use grammar"),
    "guided_json": (only(), "is not supported; use response_format"),
    "guided_regex": (only(), "is not supported; use grammar"),
    "ignore_eos": (only(False), NOT_HERE),
    "include_stop_str_in_output": (only(False), NOT_HERE),
    "json_schema": (only({}), "is not supported; use response_format"),
    "length_penalty": (only(1, 1.0), NOT_HERE),
    "logits_processors": (only([]), NOT_HERE),
    "media_io_kwargs": (only({}), "is not supported; use fps, n_frames and max_frames"),
    "min_tokens": (only(0), NOT_HERE),
    "mirostat": (only(0), _SAMPLERS),
    "mm_processor_kwargs": (only({}), "is not supported; use min_pixels, max_pixels and fps"),
    "prompt_logprobs": (only(), NOT_HERE),
    "skip_special_tokens": (only(True), NOT_HERE),
    "stop_token_ids": (only([]), "is not supported; use stop"),
    "structured_outputs": (only({}), "is not supported; use response_format or grammar"),
    "truncate_prompt_tokens": (only(), "is not supported; a prompt is never cut"),
    "truncate_sequence": (only(False), "is not supported; a prompt is never cut"),
    "typical_p": (only(1, 1.0), _SAMPLERS),
    "use_beam_search": (only(False), NOT_HERE),
    "xtc_probability": (only(0, 0.0), _SAMPLERS),
}


class StreamOptions(BaseModel):
    """What a stream carries beside the answer."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class AnswerFields(BaseModel):
    """The fields that all forms have: who answers, how tokens are drawn, whether they stream."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    model: str | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Penalty] | None = None
    seed: Annotated[int, Field(ge=-SEED_LIMIT, lt=SEED_LIMIT)] | None = None
    cache_prompt: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, raw: Any) -> Any:
        """A field that is known but not supported is never dropped in silence."""
        if isinstance(raw, Mapping):
            for name, (is_harmless, reason) in cls.refused().items():
                if raw.get(name) is not None and not is_harmless(raw[name]):
                    raise RequestError(f"{name} {reason}", name)
        return raw

    @classmethod
    def refused(cls) -> Refusals:
        """Fields that are refused unless they change nothing."""
        return REFUSED_EVERYWHERE

    def options(
        self, settings: Settings, most: int | None, stop: str | list[str] | None
    ) -> CallOptions:
        """The engine's options.

        Args:
            settings: The operator's.
            most: Tokens of the answer that the request allows, or None.
            stop: Texts before which the answer ends, or None.
        """
        limits = [limit for limit in (most, settings.max_tokens) if limit is not None]
        return {
            "max_tokens": min(limits) if limits else None,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(self.top_k, 0),  # -1 is vLLM's "all"
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": _bias(self.logit_bias),
            "seed": self.seed,
            "stop": stop,
            "kv_bits": settings.kv_bits,
            "cache": self.cache_prompt,
        }


class CompletionFields(AnswerFields):
    """The fields that OpenAI's two completion forms have."""

    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Positive | None = None
    stop: Annotated[str, Field(min_length=1)] | Stops | None = None
    grammar: dict[str, Any] | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def counts_always(self) -> bool:
        """Whether every chunk of a stream carries the counts so far."""
        options = self.stream_options
        return self.includes_usage and bool(options and options.continuous_usage_stats)

    def check(self, settings: Settings, served: str) -> None:
        """Refuse what the form allows and this server does not.

        Args:
            settings: The operator's.
            served: Name of the model that answers.

        Raises:
            UnknownModel: Another model is asked for and the operator wants names to be true.
            RequestError: Fields that contradict each other.
        """
        check_model(self.model, settings, served)
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream: true", "stream_options")


def check_model(asked: str | None, settings: Settings, served: str) -> None:
    """Refuse another model's name where the operator wants names to be true.

    Raises:
        UnknownModel: It is another.
    """
    if settings.strict_model and asked not in (None, "", ANY_MODEL, served):
        raise UnknownModel(f"this server answers as {served} and has no other model", "model")


def admit(messages: list[Message], settings: Settings) -> tuple[Message, ...]:
    """Messages that the operator's bounds allow; nothing is opened.

    Raises:
        PromptError: Too many of something, or a picture from where none may come.
    """
    return MediaPolicy(settings).admit(messages)


@contextmanager
def blaming(param: str) -> Iterator[None]:
    """Names the field in errors that do not know it."""
    try:
        yield
    except QwenVLError as error:
        error.param = error.param or param
        raise


def read_form(
    response_format: Mapping[str, Any] | None,
    grammar: Mapping[str, Any] | None,
    settings: Settings,
    where: str = "response_format",
) -> Grammar | None:
    """What the answer has to look like, from OpenAI's field or mistral.rs's.

    Args:
        response_format: OpenAI's; a schema may stand beside its type.
        grammar: mistral.rs's.
        settings: The operator's.
        where: What the request calls the first one.

    Raises:
        RequestError: Both, or neither's form, or larger than the operator allows.
    """
    with blaming(where):
        asked = None if response_format is None else _response_format(response_format, where)
    if grammar is not None:
        if asked is not None:
            raise RequestError("give either response_format or grammar, not both", "grammar")
        with blaming("grammar.value"):
            asked = _grammar(grammar)
    if (
        asked is not None
        and len(asked.source.encode("utf-8", "replace")) > settings.max_schema_bytes
    ):
        raise RequestError(
            f"the form of the answer has {len(asked.source)} characters, "
            f"at most {settings.max_schema_bytes} bytes pass",
            where if grammar is None else "grammar",
        )
    return asked


def _response_format(raw: Mapping[str, Any], where: str) -> Grammar | None:
    kind = raw.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = raw.get("schema")  # as llama.cpp takes it
        return Grammar("json_object") if schema is None else _schema(schema, where)
    if kind == "json_schema":
        if "schema" in raw and "json_schema" not in raw:  # as the later forms have it
            return _schema(raw["schema"], f"{where}.schema")
        named = raw.get("json_schema")
        if isinstance(named, Mapping) and "schema" in named:
            return _schema(named["schema"], f"{where}.json_schema.schema")
        raise RequestError(f"{where}.json_schema has no schema", f"{where}.json_schema")
    raise RequestError(
        f"{where}.type is not one of text, json_object, json_schema", f"{where}.type"
    )


def _grammar(raw: Mapping[str, Any]) -> Grammar:
    kind, value = raw.get("type"), raw.get("value")
    if kind == "json_schema":
        return _schema(value, "grammar.value")
    if kind == "llguidance" and isinstance(value, Mapping):
        return Grammar("llguidance", json.dumps(value))
    if kind in ("regex", "lark", "llguidance"):
        if not isinstance(value, str):
            raise RequestError("grammar.value is no text", "grammar.value")
        return Grammar(kind, value)
    raise RequestError(
        "grammar.type is not one of regex, lark, json_schema, llguidance", "grammar.type"
    )


def _schema(schema: object, where: str) -> Grammar:
    if isinstance(schema, str):
        return Grammar("json_schema", schema)
    if not isinstance(schema, (Mapping, bool)):
        raise RequestError(f"{where} is no JSON schema", where)
    return Grammar("json_schema", json.dumps(schema))


def _bias(raw: Mapping[str, float] | None) -> dict[int, float] | None:
    if raw is None:
        return None
    for key in raw:
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise RequestError("logit_bias has a key that is no token id", "logit_bias")
    return {int(key): bias for key, bias in raw.items()}
