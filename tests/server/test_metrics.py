"""What is counted is what happened, under names and labels that no request can add to."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from mlx_qwenvl import QwenVL
from server.engine import Engine
from server.settings import Settings
from tests.server.conftest import body, connected_to, data_url

CHAT = "/v1/chat/completions"
KEY = "a-key-of-the-operator"


@pytest.fixture
def client(served: QwenVL) -> Iterator[TestClient]:
    """A server that has answered nobody yet, around a model that has."""
    served.stores.make_room(2**63)
    served.stores.features.hits = served.stores.features.misses = 0
    engine = Engine(lambda: served, Settings(), "tiny")
    with connected_to(engine) as connected:
        yield connected


def families(client: TestClient) -> dict[str, Metric]:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def values(client: TestClient) -> dict[str, float]:
    """All samples that have no labels."""
    told = [sample for family in families(client).values() for sample in family.samples]
    return {s.name.removeprefix("mlx_qwenvl_"): s.value for s in told if not s.labels}


def requests(client: TestClient) -> dict[tuple[str, str, str], float]:
    samples = families(client)["mlx_qwenvl_http_requests"].samples
    return {
        (s.labels["method"], s.labels["route"], s.labels["status"]): s.value
        for s in samples
        if s.name.endswith("_total")
    }


def test_an_answer_is_counted_as_its_usage_says(client: TestClient, served: QwenVL) -> None:
    usages = [client.post(CHAT, json=body(data_url())).json()["usage"] for _ in range(2)]
    said = values(client)
    for name, key in (("prompt", "prompt_tokens"), ("completion", "completion_tokens")):
        assert said[f"{name}_tokens_total"] == sum(usage[key] for usage in usages)
    details = [usage["prompt_tokens_details"] for usage in usages]
    assert said["cached_tokens_total"] == sum(one["cached_tokens"] for one in details) > 0
    assert said["image_tokens_total"] == sum(one["image_tokens"] for one in details) > 0
    assert said["prefix_hits_total"] == 1
    assert said["feature_misses_total"] == 1, "the picture was looked at once"
    assert said["prefix_store_bytes"] == served.stores.prefixes.nbytes > 0
    assert said["feature_store_bytes"] == served.stores.features.nbytes > 0
    assert said["active_memory_bytes"] > said["prefix_store_bytes"]
    for name in ("time_to_first_token", "vision", "prefill", "wait", "decode"):
        assert said[f"{name}_seconds_count"] == 2


def test_a_known_picture_behind_other_words_is_a_hit(client: TestClient) -> None:
    first = body(data_url())
    other = first | {"messages": [{"role": "system", "content": "Be brief."}, *first["messages"]]}
    for ask in (first, other):
        assert client.post(CHAT, json=ask).status_code == 200
    said = values(client)
    assert said["feature_misses_total"] == said["feature_hits_total"] == 1


def test_a_model_that_was_let_go_holds_nothing_and_is_well(served: QwenVL) -> None:
    engine = Engine(lambda: served, Settings(idle_unload_s=0), "tiny")
    with connected_to(engine) as client:
        assert client.post(CHAT, json=body(max_tokens=1)).status_code == 200
        end = time.monotonic() + 30
        while client.get("/health").json()["state"] != "unloaded":
            assert time.monotonic() < end
        assert client.get("/health").status_code == 200
        said = values(client)
        assert said["is_unloaded"] == 1 and said["prefix_store_bytes"] == 0
        assert client.post(CHAT, json=body(max_tokens=1)).status_code == 200
        assert values(client)["model_loads_total"] == said["model_loads_total"] + 1


def test_time_between_tokens_is_observed_of_each_answer_for_itself(client: TestClient) -> None:
    ask = body(max_tokens=6, n=3, seed=1, temperature=1, logit_bias={})
    usage = client.post(CHAT, json=ask).json()["usage"]
    said = values(client)
    assert 0 < said["inter_token_seconds_count"] <= usage["completion_tokens"] - 3
    assert said["inter_token_seconds_sum"] <= said["decode_seconds_sum"] + 0.5


def test_answers_are_counted_by_why_they_ended(client: TestClient) -> None:
    reasons = [
        choice["finish_reason"]
        for ask in (body(max_tokens=1), body(max_tokens=2, n=2))
        for choice in client.post(CHAT, json=ask).json()["choices"]
    ]
    samples = families(client)["mlx_qwenvl_answers"].samples
    counted = {s.labels["finish_reason"]: s.value for s in samples if s.name.endswith("_total")}
    assert counted == {reason: reasons.count(reason) for reason in set(reasons)}


def test_requests_are_counted_by_their_routes_and_no_others(client: TestClient) -> None:
    client.post(CHAT, json=body(max_tokens=1))
    client.post("/chat/completions/", json={"messages": 5})
    client.get("/v1/models/another")
    client.get("/v1//models")
    assert requests(client) == {
        ("POST", "/chat/completions", "200"): 1,
        ("POST", "/chat/completions", "400"): 1,
        ("GET", "/models/{name:path}", "404"): 1,
        ("GET", "/models", "200"): 1,
    }


def test_nothing_that_is_sent_becomes_a_label(client: TestClient) -> None:
    for number in range(50):
        client.request(f"M{number}", f"/path/{number}")
        client.get(f"/v1/models/m{number}")
        client.post(CHAT, json=body(model=f"model-{number}", max_tokens=1))
        client.get(f"/health?{number}", headers={"x-request-id": f"id-{number}"})
    assert len(requests(client)) == 4
    response = client.get("/metrics")
    assert not re.search(r"M\d|path/|model-\d|id-\d", response.text)


def test_who_is_turned_away_at_the_door_is_counted(served: QwenVL) -> None:
    settings = Settings(api_keys=frozenset({KEY}))
    with connected_to(Engine(lambda: served, settings, "tiny")) as client:
        assert client.get("/metrics").status_code == 401
        assert client.post(CHAT, json=body(), headers={"host": "evil.example"}).status_code == 421
        client.headers["authorization"] = f"Bearer {KEY}"
        assert requests(client) == {("GET", "none", "401"): 1, ("POST", "none", "421"): 1}
        assert KEY not in client.get("/metrics").text


def test_all_names_are_ours_and_of_their_kinds(client: TestClient) -> None:
    told = families(client)
    assert all(name.startswith("mlx_qwenvl_") for name in told)
    kinds = {name.removeprefix("mlx_qwenvl_"): family.type for name, family in told.items()}
    assert kinds["engine_crashes"] == kinds["model_loads"] == kinds["feature_hits"] == "counter"
    assert kinds["active_memory_bytes"] == kinds["running_answers"] == "gauge"
    assert kinds["time_to_first_token_seconds"] == "histogram"
    assert all(family.documentation for family in told.values())


def test_two_servers_in_one_process_count_apart(client: TestClient, served: QwenVL) -> None:
    with connected_to(Engine(lambda: served, Settings(), "tiny")) as other:
        client.post(CHAT, json=body(max_tokens=1))
        assert values(other)["prompt_tokens_total"] == 0 < values(client)["prompt_tokens_total"]


def test_exactly_one_state_is_true_and_it_is_healths(client: TestClient) -> None:
    said = values(client)
    states = {name: value for name, value in said.items() if name.startswith("is_")}
    assert sorted(states.values()) == [0, 0, 0, 0, 1]
    assert said["is_ready"] == 1 and client.get("/health").json()["state"] == "ready"
    assert said["model_loads_total"] == 1 and said["engine_crashes_total"] == 0
