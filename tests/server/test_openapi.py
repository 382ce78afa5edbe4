"""Our own OpenAPI document, held against the server by a tool that knows nothing else of it.

Schemathesis draws requests from the document and compares what comes back with it. The requests
are the same in every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from server.settings import Settings
from tests.clients.asking import foreign
from tests.live import Live, serve

schemathesis = foreign("schemathesis")

EXAMPLES = 25  # requests to each operation
ANSWER_TOKENS = 8
REQUEST_S = 30.0  # seconds


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serve(Settings(max_tokens=ANSWER_TOKENS)) as server:
        yield server


@pytest.fixture(scope="module")
def document(live: Live) -> Any:
    return schemathesis.openapi.from_url(f"{live.url}/openapi.json")


documented = schemathesis.pytest.from_fixture("document")


@documented.parametrize()  # type: ignore[untyped-decorator]
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_what_is_documented_is_what_happens(case: Any) -> None:
    known = schemathesis.checks
    checks = [
        known.not_a_server_error,
        known.status_code_conformance,
        known.content_type_conformance,
        known.response_schema_conformance,
    ]
    case.call_and_validate(timeout=REQUEST_S, checks=checks)


def test_every_route_is_documented(live: Live, document: Any) -> None:
    paths = set(document.raw_schema["paths"])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/messages"} <= paths
    assert {"/v1/messages/count_tokens", "/v1/responses", "/health", "/metrics"} <= paths
