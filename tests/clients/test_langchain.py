"""`langchain-openai`: it renames fields, sends lists of parts and reads streams its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.asking import GREETED, GREETING, SHOWN, data_url, foreign, seen
from tests.live import Live

langchain_openai = foreign("langchain_openai")
openai = foreign("openai")

# LangChain's own uses of what Python and Pydantic deprecate.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:langchain_core"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]


@pytest.fixture
def make(live: Live) -> Iterator[Callable[..., Any]]:
    """Makes models that share one connection."""
    with openai.DefaultHttpxClient(trust_env=False) as connection:

        def made(**fields: Any) -> Any:
            settings = {"model": "demo", "temperature": 0, "max_tokens": 100} | fields
            return langchain_openai.ChatOpenAI(
                base_url=live.v1, api_key="EMPTY", http_client=connection, **settings
            )

        yield made


@pytest.fixture
def model(make: Callable[..., Any]) -> Any:
    return make()


def test_a_question_is_answered_and_its_tokens_are_known(model: Any) -> None:
    reply = model.invoke([("system", "You are a helpful assistant."), ("human", GREETING)])
    assert reply.content == GREETED
    assert reply.usage_metadata["total_tokens"] > reply.usage_metadata["output_tokens"] > 1


def test_its_limit_of_tokens_is_not_lost_under_another_name(make: Callable[..., Any]) -> None:
    reply = make(max_tokens=2).invoke(GREETING)
    assert reply.response_metadata["finish_reason"] == "length"
    assert reply.usage_metadata["output_tokens"] == 2


def test_a_picture_is_seen(model: Any) -> None:
    assert model.invoke(seen(data_url("shapes.png"))).content == SHOWN["shapes.png"]


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_says_the_same(make: Callable[..., Any], usage: bool) -> None:
    model = make(stream_usage=usage)
    pieces = list(model.stream(seen(data_url("shapes.png"))))
    assert "".join(piece.content for piece in pieces) == SHOWN["shapes.png"]
    assert len(pieces) > 3
    whole = sum(pieces[1:], pieces[0])
    assert (whole.usage_metadata is not None) == usage


class Seen(BaseModel):
    """What a picture shows."""

    model_config = ConfigDict(extra="forbid")  # the embedded model would add without end

    shape: Literal["circle", "square"] = Field(description="The first shape")
    count: int = Field(ge=0, le=9)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_its_structured_output_parses(model: Any, method: str) -> None:
    reply = model.with_structured_output(Seen, method=method).invoke(seen(data_url("shapes.png")))
    assert isinstance(reply, Seen) and reply.shape in ("circle", "square")


def test_its_tools_are_called(model: Any) -> None:
    bound = model.bind_tools([Seen], tool_choice="any")
    reply = bound.invoke(seen(data_url("shapes.png")))
    (call,) = reply.tool_calls
    assert call["name"] == "Seen" and call["args"]["shape"] in ("circle", "square")
    pieces = list(bound.stream(seen(data_url("shapes.png"))))
    whole = sum(pieces[1:], pieces[0])
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [("Seen", call["args"])]
