"""Our own OpenAPI document, held against the server by a tool that knows nothing else of it.

Schemathesis draws requests from the document and compares what comes back with it. The requests
are the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from server.settings import Settings
from tests.clients.asking import foreign
from tests.live import Live, serve

schemathesis = foreign("schemathesis")
requests = foreign("requests")

EXAMPLES = 25  # requests to each operation
ANSWER_TOKENS = 8
REQUEST_S = 30.0  # seconds
OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/tokenize"),
    ("POST", "/v1/detokenize"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serve(Settings(max_tokens=ANSWER_TOKENS)) as server:
        yield server


@pytest.fixture(scope="module")
def document(live: Live) -> Any:
    found = httpx2.get(f"{live.url}/openapi.json", trust_env=False).raise_for_status()
    return schemathesis.openapi.from_dict(found.json())


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_is_documented_is_what_happens(
    live: Live, document: Any, method: str, path: str
) -> None:
    known = schemathesis.checks
    checks = [
        known.not_a_server_error,
        known.status_code_conformance,
        known.content_type_conformance,
        known.response_schema_conformance,
    ]

    @given(document[path][method].as_strategy())
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        case.call_and_validate(live.url, session=session, timeout=REQUEST_S, checks=checks)

    with requests.Session() as session:
        session.trust_env = False  # no proxy
        ask()


def test_every_operation_of_the_document_is_asked(document: Any) -> None:
    paths = document.raw_schema["paths"].items()
    assert sorted(OPERATIONS) == sorted((m.upper(), path) for path, made in paths for m in made)
