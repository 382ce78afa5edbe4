"""server/guard.py: who gets in, and what is answered to everybody else."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from mlx_qwenvl.errors import OptionError
from server.guard import Guard
from server.settings import Settings
from tests.server.doors import Echo

KEY = "correct-horse-battery"
BASE = "http://127.0.0.1:1234"


@pytest.fixture
def echo() -> Echo:
    return Echo()


def door(echo: Echo, **settings: Any) -> TestClient:
    return TestClient(Guard(echo, Settings(**settings)), base_url=BASE)


@pytest.fixture
def client(echo: Echo) -> Iterator[TestClient]:
    yield door(echo)


def refused(response: httpx2.Response, status: int, says: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"]
    assert response.headers["content-type"] == "application/json"


# --- Host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:1234", "127.0.0.1", "localhost", "LOCALHOST:9", "localhost.", "[::1]", "[::1]:80",
     "[0:0:0:0:0:0:0:1]:80", "mac.local:1234", "Mac.Local"],
)  # fmt: skip
def test_the_servers_own_names_are_served_on_any_port(echo: Echo, host: str) -> None:
    client = door(echo, allowed_hosts=("mac.local",))
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil-localhost",
     "foo.localhost", "169.254.169.254", "0.0.0.0", "192.168.1.7:1234", "[::]", "[fe80::1]",
     "mac.local.evil.example", "xmac.local"],
)  # fmt: skip
def test_other_names_are_refused(echo: Echo, host: str) -> None:
    client = door(echo, allowed_hosts=("mac.local",))
    response = client.get("/", headers={"host": host})
    refused(response, 421, "--allowed-host")
    assert host not in response.text
    assert not echo.seen


@pytest.mark.parametrize(
    "host",
    ["", " ", "a b", "localhost:port", "localhost:123456", "user@localhost", "[::1", "[::1%lo]",
     "localhost/x", "localhost, evil.example", "http://localhost"],
)  # fmt: skip
def test_what_is_no_host_is_refused(client: TestClient, echo: Echo, host: str) -> None:
    refused(client.get("/", headers={"host": host}), 400, "one Host header")
    assert not echo.seen


def test_a_missing_and_a_second_host_are_refused(client: TestClient, echo: Echo) -> None:
    twice = [("host", "127.0.0.1"), ("host", "evil.example")]
    refused(client.get("/", headers=twice), 400, "one Host header")
    for pairs in ([], [(b"host", b"localhost"), (b"host", b"localhost")]):
        assert called(echo, pairs)[0] == 400
    assert not echo.seen


def test_the_address_that_a_connection_came_to_is_a_name_of_ours(echo: Echo) -> None:
    at = {"server": ("192.168.1.7", 1234)}
    assert called(echo, [(b"host", b"192.168.1.7:1234")], host="0.0.0.0", scope=at)[0] == 200
    assert called(echo, [(b"host", b"192.168.1.8:1234")], host="0.0.0.0", scope=at)[0] == 421
    assert called(echo, [(b"host", b"0.0.0.0:1234")], host="0.0.0.0", scope=at)[0] == 421
    assert called(echo, [(b"host", b"10.0.0.9")], host="10.0.0.9")[0] == 200


def called(
    echo: Echo,
    pairs: list[tuple[bytes, bytes]],
    body: bytes = b"",
    scope: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[int, dict[str, Any]]:
    """Status and body of an answer to headers that no client would send."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = {
        "type": "http", "method": "POST" if body else "GET", "path": "/", "raw_path": b"/",
        "query_string": b"", "headers": pairs, "server": ("127.0.0.1", 1), "scheme": "http",
    }  # fmt: skip
    app = Guard(echo, Settings(**settings))
    anyio.run(app, raw | (scope or {}), receive, send)
    answer = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(answer)


# --- Origin -------------------------------------------------------------------------------------

ORIGINS = ["app://obsidian.md", "tauri://localhost", "file://", "capacitor://localhost",
           "vscode-webview://0a1b2c", "vscode-file://vscode-app", "http://localhost:3000",
           "https://localhost", "http://127.0.0.1:1234", "http://[::1]:8080",
           "http://tauri.localhost"]  # fmt: skip
FOREIGN = ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1.nip.io",
           "https://evil.example:1234", "http://localhost:3000.evil.example", "", "localhost",
           "chrome-extension://abc", "https://app", "http://localhost@evil.example",
           "app://a evil", "https://good.example.evil.example"]  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
def test_desktop_apps_and_pages_of_this_machine_may_call(echo: Echo, origin: str) -> None:
    client = door(echo, api_keys=frozenset({KEY}))
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,openai-beta,x-api-key,"
        "anthropic-version,x-stainless-os,x-stainless-retry-count",
    }
    preflight = client.options("/v1/chat/completions", headers=asked)  # without the key
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    granted = preflight.headers["access-control-allow-headers"]
    assert set(asked["access-control-request-headers"].split(",")) <= set(granted.split(","))
    key = {"origin": origin, "authorization": f"Bearer {KEY}"}
    answer = client.post("/v1/chat/completions", json={}, headers=key)
    wrong = client.post("/v1/chat/completions", json={}, headers={"origin": origin})
    refused(wrong, 401, "API key")
    for response in (preflight, answer, wrong):  # an app can read why it was refused
        assert response.headers["access-control-allow-origin"] == origin
        assert "Origin" in response.headers["vary"]
        assert "access-control-allow-credentials" not in response.headers
    assert [path for _, path, _ in echo.seen] == ["/v1/chat/completions"]


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_foreign_pages_are_refused_and_not_only_left_without_an_answer(
    echo: Echo, origin: str, method: str
) -> None:
    client = door(echo, allowed_origins=("https://good.example",))
    headers = {"origin": origin, "access-control-request-method": "POST"}
    response = client.request(method, "/v1/models", headers=headers)
    refused(response, 403, "--allowed-origin")
    assert "access-control-allow-origin" not in response.headers
    assert not echo.seen


def test_a_second_origin_is_refused(client: TestClient, echo: Echo) -> None:
    twice = [("origin", "http://localhost"), ("origin", "https://evil.example")]
    refused(client.get("/", headers=twice), 403, "--allowed-origin")
    assert not echo.seen


def test_origins_that_the_operator_names_may_call(echo: Echo) -> None:
    names = ("https://good.example:8443/", "chrome-extension://*")
    client = door(echo, allowed_origins=names)
    for origin in ("https://good.example:8443", "chrome-extension://abcdef"):
        assert client.get("/", headers={"origin": origin}).status_code == 200
    for origin in ("https://good.example", "https://goodxexample:8443", "moz-extension://a"):
        refused(client.get("/", headers={"origin": origin}), 403, "--allowed-origin")


def test_a_page_from_the_server_itself_may_call_it(echo: Echo) -> None:
    client = door(echo, allowed_hosts=("mac.local",))
    named = {"host": "mac.local:1234", "origin": "http://mac.local:1234"}
    assert client.get("/", headers=named).status_code == 200
    refused(client.get("/", headers=named | {"host": "localhost"}), 403, "--allowed-origin")


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://*", "http://*", "https://*.example", "good.example", "", "a://b/c"],
)
def test_origins_that_would_let_everybody_in_are_refused_at_the_start(
    echo: Echo, origin: str
) -> None:
    with pytest.raises(OptionError, match="the allowed origin is"):
        door(echo, allowed_origins=(origin,))


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"x-api-key": KEY},
        {"X-Api-Key": KEY, "authorization": "Bearer something-else"},
        {"authorization": "Bearer second-key-of-ours"},
    ],
)
def test_one_of_the_keys_lets_in(echo: Echo, headers: dict[str, str]) -> None:
    client = door(echo, api_keys=frozenset({KEY, "second-key-of-ours"}))
    assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": ""},
        {"authorization": KEY},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": f"Bearer {KEY},{KEY}"},
        {"authorization": f"Bearer {KEY.upper()}"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Basic dXNlcjpjb3JyZWN0LWhvcnNlLWJhdHRlcnk="},
        {"authorization": "Bearer clé-de-l'été".encode()},
        {"authorization": b"Bearer \xff\xfe"},
        {"x-api-key": ""},
        {"x-api-key": f"Bearer {KEY}"},
        [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
        [("x-api-key", KEY), ("x-api-key", "other")],
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/messages", "/v1/nothing"])
def test_no_route_answers_without_a_key(echo: Echo, headers: Any, path: str) -> None:
    client = door(echo, api_keys=frozenset({KEY}))
    for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
        response = client.request(method, path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert KEY not in response.text
        if method == "POST":
            assert "API key" in response.json()["error"]["message"]
    assert not echo.seen


def test_every_pair_of_digests_is_compared(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("server.callers.hmac.compare_digest", compare)
    client = door(echo, api_keys=frozenset({KEY, "second-key-of-ours", "third-key-of-ours"}))
    for key in (KEY, "x", "y" * 10_000):
        client.get("/", headers={"x-api-key": key})
    assert compared == [(32, 32)] * 9


@pytest.mark.parametrize("key", [None, "anything", "Basic eDp5"])
def test_without_keys_any_key_or_none_passes(client: TestClient, key: str | None) -> None:
    headers = {} if key is None else {"authorization": key, "x-api-key": "sk-no-key"}
    assert client.get("/v1/models", headers=headers).status_code == 200


def test_errors_have_anthropics_form_on_anthropics_routes(echo: Echo) -> None:
    client = door(echo, api_keys=frozenset({KEY}))
    body = client.post("/v1/messages", json={}).json()
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == "authentication_error"
    asked = client.post("/v1/messages", json={}, headers={"x-request-id": "mine"})
    assert asked.json()["request_id"] == asked.headers["request-id"] == "mine"


# --- bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8",
     'application/json; charset="utf-8"', "application/vnd.api+json", "application/json;q=1"],
)  # fmt: skip
def test_json_by_its_own_account_is_read(client: TestClient, kind: str) -> None:
    response = client.post("/", content=b'{"a": 1}', headers={"content-type": kind})
    assert response.json()["bytes"] == 8


@pytest.mark.parametrize(
    "kind",
    [None, "", "text/plain", "text/plain;application/json", "application/x-www-form-urlencoded",
     "multipart/form-data; boundary=x", "application/jsonx", "text/json", "+json",
     "application/json; charset=utf-16", "application/json; charset=latin1"],
)  # fmt: skip
def test_a_body_of_another_kind_is_refused(
    client: TestClient, echo: Echo, kind: str | None
) -> None:
    headers = {} if kind is None else {"content-type": kind}
    refused(client.post("/", content=b"{}", headers=headers), 415, "expected")
    assert not echo.seen


def test_compressed_bodies_and_second_types_are_refused(client: TestClient, echo: Echo) -> None:
    json_type = ("content-type", "application/json")
    for more in (("content-type", "text/plain"), ("content-encoding", "gzip")):
        refused(client.post("/", content=b"{}", headers=[json_type, more]), 415, "")
    assert not echo.seen


def test_a_body_at_the_budget_passes_and_one_byte_more_does_not(echo: Echo) -> None:
    client = door(echo, max_body_bytes=1000)
    body = b'"' + b"a" * 998 + b'"'
    headers = {"content-type": "application/json"}
    assert client.post("/", content=body, headers=headers).json()["bytes"] == 1000
    refused(client.post("/", content=body + b" ", headers=headers), 413, "at most 1000 bytes")

    def chunks() -> Iterator[bytes]:
        yield body
        yield b" "

    response = client.post("/", content=chunks(), headers=headers)
    refused(response, 413, "at most 1000 bytes")
    assert response.headers["connection"] == "close"
    assert len(echo.seen) == 1


@pytest.mark.parametrize("length", [b"99999999999999999999999", b"-1", b"1e3", b"0x10", b"+5", b""])
def test_lengths_that_are_none_are_refused(echo: Echo, length: bytes) -> None:
    pairs = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    status, _ = called(echo, [*pairs, (b"content-length", length)], b"{}")
    assert status == 413
    assert not echo.seen


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b" ", "not JSON: Expecting value at line 1 column 2"),
        (b"{", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1} x', "not JSON: Extra data"),
        (b'{"a": NaN}', "holds NaN, which is not JSON"),
        (b"[Infinity]", "holds Infinity"),
        (b"[-Infinity]", "holds -Infinity"),
        (b"[1e999]", "beyond the range of a double"),
        (b"[" + b"1" * 5000 + b"]", "number that is too long"),
        (b'{"a": 1, "a": 2}', "the key 'a' twice"),
        (b'{"b": {"\\u0061": 1, "a": 2}}', "the key 'a' twice"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'"\xff"', "not UTF-8: byte 1"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"[" * 10_000 + b"]" * 10_000, "nested deeper than 100 levels"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper than 100 levels"),
        (b"[" * 101 + b"]" * 101, "nested deeper than 100 levels"),
        (b"[" * 1_000_000, "not JSON|nested deeper"),
        (b"[" + b"[]," * 600_000 + b"1]", "more than 1000000 values"),
        (b"[" + b'"",' * 2_100_000 + b"1]", "more than 1000000 values"),
        (b'{"' + b'":1,"'.join(b"%d" % i for i in [*range(200_000), 7]) + b'":1}', "'7' twice"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_what_is_no_sound_json_is_a_400(
    client: TestClient, echo: Echo, body: bytes, says: str
) -> None:
    response = client.post("/", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert any(part in message for part in says.split("|")), message
    assert len(message) < 200
    assert not echo.seen


@pytest.mark.parametrize(
    "body",
    [b"\xef\xbb\xbf{}", b'{"a": "\\ud83d\\ude00"}', '{"ä": "日本"}'.encode(), b'"\\u0000"',
     b"[" * 100 + b"]" * 100, b'"' + b"[,{" * 1_000_000 + b'"',
     b'"' + rb"\\,\"[" * 1_000_000 + b'"',
     b"[1e308, -0.0, 12345678901234567890]"],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_sound_json_arrives_as_it_was_sent(client: TestClient, echo: Echo, body: bytes) -> None:
    response = client.post("/", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text
    assert echo.seen == [("POST", "/", body)]


# --- the head -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-123_X.y", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("a" * 20_000, False),
        ("", False),
        ("a b", False),
        ("a\r\nset-cookie: x=1", False),
        ("ä".encode(), False),
        ("http://evil.example/", False),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_sane_request_id_comes_back_and_another_is_replaced(
    echo: Echo, given: str | bytes, kept: bool
) -> None:
    raw = given.encode() if isinstance(given, str) else given
    _, body = called(echo, [(b"host", b"localhost"), (b"x-request-id", raw)])
    assert (body["id"].encode() == raw) is kept
    assert kept or body["id"].startswith("req_")


def test_every_answer_has_a_request_id(client: TestClient) -> None:
    ids = set()
    for headers in ({}, {"host": "evil.example"}, {"origin": "null"}):
        response = client.get("/", headers=headers)
        ids.add(response.headers["x-request-id"])
        assert response.headers["x-content-type-options"] == "nosniff"
    assert len(ids) == 3


def test_large_heads_are_refused(client: TestClient, echo: Echo) -> None:
    many = {f"x-{i}": "a" for i in range(1000)}
    refused(client.get("/", headers=many), 431, "at most 128 header fields")
    refused(client.get("/", headers={"x": "a" * 65536}), 431, "32768 bytes")
    refused(client.get("/?" + "a" * 40_000), 431, "32768 bytes")
    assert not echo.seen


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "A" * 500, "get"])
def test_only_known_methods_get_in(client: TestClient, echo: Echo, method: str) -> None:
    _, body = called(echo, [(b"host", b"localhost")], scope={"method": method})
    assert "this method is not served" in body["error"]["message"]
    assert not echo.seen


def test_websockets_are_closed(client: TestClient, echo: Echo) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/"):
        pass
    assert not echo.seen


# --- faults and logs ----------------------------------------------------------------------------


def test_a_fault_behind_the_door_is_one_trace_and_a_500_without_it(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = client.post("/fault", json={"secret": 1}, headers={"x-request-id": "r-1"})
    refused(response, 500, "a fault of its own")
    assert "secret" not in response.text
    traces = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in traces] == ["request r-1 failed"]


def test_the_access_log_has_no_query_no_key_and_no_line_breaks(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlx_qwenvl.server.access")
    client.get("/a%0d%0ab?key=s3cret", headers={"authorization": "Bearer s3cret"})
    [record] = [r for r in caplog.records if r.name == "mlx_qwenvl.server.access"]
    assert record.getMessage().startswith("GET /a%0d%0ab 200 in 0.")
    assert "s3cret" not in caplog.text


def test_a_client_that_goes_away_in_its_body_reaches_nothing(echo: Echo) -> None:
    sent: list[Any] = []
    parts: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    pairs.append((b"content-length", b"2"))
    raw = {"type": "http", "method": "POST", "path": "/", "headers": pairs, "query_string": b""}
    anyio.run(Guard(echo, Settings()), raw, receive, send)
    assert (sent, echo.seen) == ([], [])
