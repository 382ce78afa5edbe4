"""`litellm`: the way of many gateways to a server like ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.asking import GREETED, GREETING, SHOWN, data_url, foreign, said, seen
from tests.live import Live

# LiteLLM imports much of itself with the first question, and Pydantic has remarks on it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Items? .* using the `ReadOnly` qualifier:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def litellm() -> Iterator[Any]:
    """The library, imported without its look for a price list on the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        library = foreign("litellm")
        yield library
        library.in_memory_llm_clients_cache.flush_cache()


def ask(litellm: Any, live: Live, provider: str, messages: list[Any], **fields: Any) -> Any:
    return litellm.completion(
        model=f"{provider}/demo",
        api_base=live.v1,
        api_key="EMPTY",
        messages=messages,
        temperature=0,
        **fields,
    )


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "lm_studio"])
def test_every_provider_of_its_that_fits_is_answered(
    litellm: Any, live: Live, provider: str
) -> None:
    reply = ask(litellm, live, provider, said(GREETING), max_tokens=50)
    assert reply.choices[0].message.content == GREETED
    assert reply.choices[0].finish_reason == "stop" and reply.usage.completion_tokens > 1


def test_a_picture_is_seen(litellm: Any, live: Live) -> None:
    reply = ask(litellm, live, "openai", seen(data_url("shapes.png")))
    assert reply.choices[0].message.content == SHOWN["shapes.png"]


def test_a_stream_says_the_same(litellm: Any, live: Live) -> None:
    options = {"include_usage": True}
    chunks = list(
        ask(
            litellm,
            live,
            "openai",
            seen(data_url("shapes.png")),
            stream=True,
            stream_options=options,
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == SHOWN["shapes.png"] and len(texts) > 3
    assert chunks[-1].usage.completion_tokens > 1


def test_fields_beyond_openais_arrive(litellm: Any, live: Live) -> None:
    body = {"grammar": {"type": "regex", "value": "(yes|no) [0-9]{3}"}}
    reply = ask(litellm, live, "openai", said(GREETING), extra_body=body, max_tokens=50)
    answer, digits = reply.choices[0].message.content.split(" ")
    assert answer in ("yes", "no") and len(digits) == 3 and digits.isdigit()


def test_a_bad_request_is_its_bad_request(litellm: Any, live: Live) -> None:
    with pytest.raises(litellm.BadRequestError, match="top_logprobs"):
        ask(litellm, live, "openai", said(GREETING), logprobs=True, top_logprobs=99)
