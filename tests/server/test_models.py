"""Where the API is found, with and without a version or a slash, and what it says of itself."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from tests.server.conftest import HERE, Script, body, ends, says

PATHS = [
    "/v1/chat/completions",
    "/chat/completions",
    "/v1/chat/completions/",
    "/v1//chat/completions",
    "//v1/chat/completions",
]


@pytest.mark.parametrize("path", PATHS)
def test_base_addresses_may_be_written_in_several_ways(script: Script, path: str) -> None:
    client, _ = script(says("Hello"), ends())
    response = client.post(HERE + path, json=body(), follow_redirects=False)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/"])
def test_the_model_is_listed(client: TestClient, path: str, script: Script) -> None:
    listed = client.get(path).json()
    (model,) = listed["data"]
    assert listed["object"] == "list" and model["object"] == "model"
    assert isinstance(model["created"], int) and model["owned_by"] == "mlx-qwenvl"
    assert client.head(path).status_code == 200


def test_a_model_is_found_by_its_name(script: Script) -> None:
    client, engine = script()
    engine.name = "Qwen/Qwen2-VL-2B-Instruct"
    for name in ("Qwen/Qwen2-VL-2B-Instruct", "Qwen%2FQwen2-VL-2B-Instruct", "default"):
        found = client.get(f"/v1/models/{name}")
        assert found.status_code == 200 and found.json()["id"] == "Qwen/Qwen2-VL-2B-Instruct"


@pytest.mark.parametrize(
    "name", ["gpt-4o", "..%2F..%2Fetc%2Fpasswd", "%00", "a/b/c", "https:%2F%2Fexample.com%2Fx", "é"]
)
def test_another_model_is_a_404(client: TestClient, name: str) -> None:
    response = client.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "passwd" not in response.text


def test_the_api_describes_itself(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/tokenize"} <= set(
        described["paths"]
    )
    assert "/chat/completions" not in described["paths"]
    fields = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "temperature", "stop", "tools", "response_format"} <= set(fields)
    answers = described["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert "422" not in answers


def test_the_page_about_the_api_loads_nothing(client: TestClient) -> None:
    response = client.get("/docs")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    for part in ("POST /v1/chat/completions", "max_completion_tokens", "openapi.json"):
        assert part in response.text
    for part in ("<script", "http:", "https:", "<link", "@import"):
        assert part not in response.text
