"""`/metrics`, `/health` and `/`: what programs and people see of a server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mlx_qwenvl import QwenVL
from server.engine import Engine
from server.metrics import METHODS, STATES
from server.settings import Settings
from server.ticket import EngineFailed
from tests.server.conftest import Script, body, connected_to, data_url, events

CHAT = "/v1/chat/completions"
ROUTE = "/chat/completions"  # as a label


@pytest.fixture
def client(served: QwenVL) -> Iterator[TestClient]:
    """One whose server has answered nobody yet."""
    with connected_to(Engine(lambda: served, Settings(), "tiny")) as connected:
        yield connected


def samples(client: TestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All of `/metrics`."""
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(client: TestClient, name: str, **labels: str) -> float:
    return samples(client).get((f"mlx_qwenvl_{name}", frozenset(labels.items())), 0.0)


def test_counts_are_those_of_the_answers(client: TestClient) -> None:
    usages = [
        client.post(CHAT, json=asked).json()["usage"]
        for asked in (body(), body(data_url(), n=2), body(data_url()))
    ]
    answers = 4
    for name, key in (("prompt", "prompt_tokens"), ("completion", "completion_tokens")):
        # Each answer counts its prompt; the two of one call have it in common.
        weights = (1, 2, 1) if name == "prompt" else (1, 1, 1)
        told = sum(w * usage[key] for w, usage in zip(weights, usages, strict=True))
        assert value(client, f"{name}_tokens_total") == told
    assert value(client, "image_tokens_total") == 3 * 9
    assert value(client, "cached_tokens_total") > 0
    for name in ("time_to_first_token", "vision", "prefill", "wait", "decode"):
        assert value(client, f"{name}_seconds_count") == answers
        assert value(client, f"{name}_seconds_bucket", le="+Inf") == answers
    labels = {"route": ROUTE, "method": "POST", "status": "200"}
    assert value(client, "http_requests_total", **labels) == 3
    assert value(client, "model_loads_total") == 1 and value(client, "engine_crashes_total") == 0


def test_gaps_between_tokens_are_counted_once_each(client: TestClient) -> None:
    options = {"include_usage": True}
    asked = body(stream=True, stream_options=options, logprobs=True)
    *_, last, done = events(client.post(CHAT, json=asked).text)
    assert done == "[DONE]" and last["usage"]["completion_tokens"] == 8
    # A piece may hold several tokens, where letters have several.
    assert 1 <= value(client, "inter_token_seconds_count") <= 7


def test_what_is_measured_now_falls_back(client: TestClient) -> None:
    with client.stream("POST", CHAT, json=body(stream=True)) as response:
        response.read()
    seen = samples(client)
    for name in ("open_calls", "queued_jobs", "prefilling_jobs", "running_answers"):
        assert seen[f"mlx_qwenvl_{name}", frozenset()] == 0, name
    assert seen["mlx_qwenvl_step_seconds", frozenset()] == 0
    assert seen["mlx_qwenvl_active_memory_bytes", frozenset()] > 0
    assert seen["mlx_qwenvl_prefix_store_bytes", frozenset()] > 0
    states = {state: seen[f"mlx_qwenvl_is_{state}", frozenset()] for state in STATES}
    assert states == dict.fromkeys(STATES, 0.0) | {"ready": 1.0}


def test_an_error_in_an_answer_counts_by_its_status(script: Script) -> None:
    client, _ = script(EngineFailed("the engine failed"))
    assert client.post(CHAT, json=body()).status_code == 500
    assert value(client, "http_requests_total", route=ROUTE, method="POST", status="500") == 1


@pytest.fixture(scope="module")
def lasting(served: QwenVL) -> Iterator[TestClient]:
    with connected_to(Engine(lambda: served, Settings(), "tiny")) as connected:
        yield connected


TOKEN = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=1, max_size=12)
PATHS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=40).map(lambda text: "/" + text.lstrip("/")),
    st.sampled_from(["/", "/health", "/metrics", "/v1/models", "/v1/models/x/y", CHAT, "//v1//"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(method=st.one_of(TOKEN, st.sampled_from(METHODS)), path=PATHS, host=st.booleans())
def test_no_request_can_make_a_new_label(
    lasting: TestClient, method: str, path: str, host: bool
) -> None:
    from urllib.parse import quote

    headers = {} if host else {"Host": "evil.example"}
    lasting.request(method, quote(path), headers=headers)
    described = lasting.get("/openapi.json").json()["paths"]
    routes = {path.removeprefix("/v1").replace("{name}", "{name:path}") for path in described}
    routes |= {"none", "/", "/docs", "/openapi.json"}
    for name, labels in samples(lasting):
        if name == "mlx_qwenvl_http_requests_total":
            told = dict(labels)
            assert told["route"] in routes, told
            assert told["method"] in (*METHODS, "other")
            assert re.fullmatch("[2345][0-9][0-9]|0", told["status"])


@pytest.mark.parametrize("path", ["/", "/health", "/metrics"])
def test_head_tells_what_get_would(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.headers["content-type"] == get.headers["content-type"]


def test_health_tells_the_state(client: TestClient) -> None:
    told = client.get("/health").json()
    assert told["status"] == "ok" and told["state"] == "ready" and told["open_calls"] == 0


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        ("unloaded", "ok", 200),
        ("loading", "loading", 503),
        ("draining", "draining", 503),
        ("dead", "dead", 503),
    ],
)
def test_health_is_bad_where_no_question_is_answered(
    served: QwenVL, state: str, status: str, code: int
) -> None:
    engine = Engine(lambda: served, Settings(), "tiny")
    with connected_to(engine) as client:
        engine.state = state  # type: ignore[assignment]
        response = client.get("/health")
        assert (response.status_code, response.json()["status"]) == (code, status)
        assert ("retry-after" in response.headers) == (code == 503)
        assert value(client, f"is_{state}") == 1
        engine.state = "ready"


@pytest.mark.parametrize("host", ["127.0.0.1:8000<script>", "evil.example", '127.0.0.1"'])
def test_a_host_that_is_none_of_ours_sees_no_page(client: TestClient, host: str) -> None:
    response = client.get("/", headers={"Host": host})
    assert response.status_code in (400, 403, 421) and "script" not in response.text


def test_programs_are_told_in_json(client: TestClient) -> None:
    response = client.get("/", headers={"Accept": "application/json"})
    assert response.headers["content-type"].startswith("application/json")
    assert response.json()["model"] == "tiny" and response.json()["state"] == "ready"
    assert "accept" in response.headers["vary"].lower()
    assert client.get("/").headers["vary"].lower() == response.headers["vary"].lower()


def test_numbers_do_not_wake_a_model_that_was_let_go() -> None:
    engine = Engine(lambda: SimpleNamespace(), Settings(), "tiny")  # type: ignore[arg-type,return-value]
    assert b"mlx_qwenvl_prefix_store_bytes 0.0" in engine.metrics.text()
    assert engine.load_count == 0
