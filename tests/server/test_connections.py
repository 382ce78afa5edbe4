"""server/listen.py over real sockets: slow, silent, lying and too many clients."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_qwenvl.errors import OptionError
from server.keys import bind_check, read_keys
from server.logs import redacted
from server.settings import Settings
from tests.server.doors import Echo, error_of, exchanged, listening, received

JSON = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\n"
GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
QUICK = Settings(
    max_body_bytes=100_000,
    head_timeout_s=0.4,
    body_timeout_s=0.4,
    write_timeout_s=0.4,
    max_connections=8,
)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def port(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr("server.listen.KEEP_ALIVE_S", 1)
    monkeypatch.setattr("server.guard.DRAIN_S", 0.5)
    with listening(echo, QUICK) as number:
        yield number


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return b"".join([b"POST / HTTP/1.1\r\n", JSON, *(f + b"\r\n" for f in fields), b"\r\n", body])


def test_requests_on_one_connection_are_answered_in_turn(port: int, echo: Echo) -> None:
    answer = exchanged(port, post(b"Content-Length: 2", body=b"{}") + GET + LAST)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert [body for _, _, body in echo.seen] == [b"{}", b"", b""]


# --- slow clients -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", b"GET", GET[:-2], GET + b"GET / HTTP/1.1\r\n"])
def test_a_head_that_does_not_come_closes_the_connection(port: int, start: bytes) -> None:
    begin = time.monotonic()
    answer = exchanged(port, start)
    assert answer.count(b"HTTP/1.1") == start.count(GET)
    assert 0.2 < time.monotonic() - begin < 8  # after an answer: uvicorn's time between two


def test_a_head_that_drips_gets_no_more_time(port: int) -> None:
    begin = time.monotonic()
    answer = exchanged(port, GET[:-2], *[b"X: y\r\n"] * 50, pause_s=0.02)
    assert (answer, time.monotonic() - begin < 3) == (b"", True)
    # The time of a second head on a connection that lives runs from its own first byte.
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(GET)
        time.sleep(0.5)
        connection.sendall(GET)
        time.sleep(0.1)
        assert connection.recv(65536).count(b"200 OK") == 2
        connection.sendall(GET[:20])
        begin = time.monotonic()
        assert received(connection) == b""
        assert time.monotonic() - begin < 3


@pytest.mark.parametrize("fields", [b"Content-Length: 50", b"Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come_is_a_408(port: int, echo: Echo, fields: bytes) -> None:
    begin = time.monotonic()
    answer = exchanged(port, post(fields))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert error_of(answer)["message"] == "the body did not come within 0.4 s"
    assert b"connection: close" in answer
    assert time.monotonic() - begin < 6
    assert not echo.seen


def test_a_body_that_drips_gets_no_more_time(port: int, echo: Echo) -> None:
    answer = exchanged(port, post(b"Content-Length: 500"), *[b" "] * 50, pause_s=0.02)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert not echo.seen


def test_a_reader_that_stops_reading_is_let_go(port: int, echo: Echo) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert echo.stopped.wait(10)
        received(connection)  # ends: what was in flight, and no more


def test_one_that_hangs_up_is_noticed(port: int, echo: Echo) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        connection.recv(1000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert echo.stopped.wait(10)


# --- bodies that lie ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 100001",
        b"Content-Length: 99999999999999999",
        b"Content-Length: 99999999999999999999",
    ],
)
def test_a_body_over_the_budget_is_refused_before_it_comes(
    port: int, echo: Echo, fields: bytes
) -> None:
    begin = time.monotonic()
    answer = exchanged(port, post(fields, b"Expect: 100-continue"))
    assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
    assert time.monotonic() - begin < 1  # who asks first is not waited for
    assert not echo.seen


def test_who_asks_first_is_told_to_go_on_only_where_the_body_is_wanted(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(post(b"Content-Length: 2", b"Expect: 100-continue"))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{}")
        assert b"200 OK" in connection.recv(1000)


def test_chunks_over_the_budget_are_refused_and_heard(port: int, echo: Echo) -> None:
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    answer = exchanged(port, post(b"Transfer-Encoding: chunked", body=chunk * 200 + b"0\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert "at most 100000 bytes" in error_of(answer)["message"]
    assert not echo.seen


def test_chunks_without_end_are_cut_off(port: int, echo: Echo) -> None:
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(post(b"Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begin < 10:
                connection.sendall(chunk)
    assert time.monotonic() - begin < 8
    assert not echo.seen


def test_a_length_that_lies_small_leaves_a_next_request_that_is_none(port: int, echo: Echo) -> None:
    answer = exchanged(port, post(b"Content-Length: 2", body=b"{} {junk}"))
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.count(b"HTTP/1.1 400 ") == 1
    assert len(echo.seen) == 1


@pytest.mark.parametrize(
    "fields",
    [
        [b"Content-Length: -1"],
        [b"Content-Length: x"],
        [b"Content-Length: 2", b"Content-Length: 3"],
        [b"Transfer-Encoding: gzip"],
        [b"Transfer-Encoding: chunked, chunked"],
        [b"Host: evil.example"],
        [b"No colon"],
        [b"X: a\0b"],
    ],
)
def test_what_is_not_http_is_a_400_and_closed(port: int, echo: Echo, fields: list[bytes]) -> None:
    answer = exchanged(port, post(*fields, body=b"{}") + GET)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert error_of(answer)["message"] == "Invalid HTTP request received."
    assert not echo.seen


def test_both_a_length_and_chunks_smuggle_nothing(port: int, echo: Echo) -> None:
    hidden = b"0\r\n\r\n" + GET
    length = b"Content-Length: %d" % len(hidden)
    answer = exchanged(port, post(length, b"Transfer-Encoding: chunked", body=hidden))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not echo.seen


@pytest.mark.parametrize(
    "fields",
    [
        (b"Origin: https://evil.example", 403),
        (b"Content-Length: 999999", 413),
        (b"Content-Encoding: gzip", 415),
        (b"X: " + b"a" * 60_000, 431),
    ],
    ids=lambda value: str(value[1]),
)
def test_what_follows_a_refused_request_is_never_parsed(
    port: int, echo: Echo, fields: tuple[bytes, int]
) -> None:
    length = [] if fields[1] == 413 else [b"Content-Length: %d" % (len(GET) + 5)]
    answer = exchanged(port, post(fields[0], *length, body=GET * 3))
    assert answer.startswith(b"HTTP/1.1 %d " % fields[1])
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()
    assert not echo.seen


def test_heads_that_are_too_large_are_refused_in_pieces_too(port: int, echo: Echo) -> None:
    field = b"X: " + b"a" * 1000 + b"\r\n"
    answer = exchanged(port, GET[:-2], *[field] * 200)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")) or answer == b""
    fields = b"".join(b"X-%d: a\r\n" % i for i in range(1000))
    answer = exchanged(port, GET[:-2] + fields + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert not echo.seen


# --- very many ----------------------------------------------------------------------------------


def test_more_connections_than_allowed_are_told_so_and_room_comes_back(port: int) -> None:
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    time.sleep(0.1)
    answer = exchanged(port, b"")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in answer
    assert "too many connections" in error_of(answer)["message"]
    time.sleep(0.6)  # none of them has sent a head
    assert b"200 OK" in exchanged(port, LAST)
    for connection in held:
        connection.close()


# --- logs ---------------------------------------------------------------------------------------


def test_no_secret_reaches_the_log_or_an_answer(
    capfd: pytest.CaptureFixture[str], echo: Echo
) -> None:
    key = "key-MARK-of-the-operator"
    settings = Settings(api_keys=frozenset({key}), log_requests=True)
    secrets = (
        b"data:image/png;base64,MARK" + b"A" * 300,
        b"https://me:MARK@pictures.example/a.png?X-Amz-Signature=MARK#MARK",
        b"Bearer MARK",
        b"x-api-key: MARK",
        b"MARK" * 100,
        key.encode(),
    )
    with listening(echo, settings) as port:
        for secret in secrets:
            body = b'"' + secret + b'"'
            for headers in ((b"Authorization: Bearer " + key.encode(),), (b"X-Api-Key: MARK",)):
                head = b"POST /fault?key=MARK HTTP/1.1\r\n" + JSON
                length = b"Content-Length: %d\r\nConnection: close\r\n" % len(body)
                request = head + b"\r\n".join([*headers, length, body])
                assert b"MARK" not in exchanged(port, request)
        exchanged(port, b"MARK MARK\r\n\r\n")
    said = capfd.readouterr().err
    assert said.count("RuntimeError: a fault with") == len(secrets)  # each logged, with its trace
    assert said.count("Traceback") == len(secrets)
    assert said.count("POST /fault 401") == len(secrets)
    assert "MARK" not in said


def test_what_is_no_secret_stays_in_the_log() -> None:
    line = "GET /v1/models 200 from http://127.0.0.1:1234/v1/models data: 5 tokens"
    assert redacted(line) == line


# --- keys and addresses of the operator ---------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.7", "mac.local", "", "evil-localhost"]
)
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(OptionError, match=r"^--host .* needs an API key; set \$MLX_QWENVL_API_KEY"):
        bind_check(Settings(host=host))
    bind_check(Settings(host=host, api_keys=frozenset({"a-long-enough-key"})))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "[::1]"])
def test_this_machine_needs_none(host: str) -> None:
    bind_check(Settings(host=host))


def test_keys_come_from_the_environment_and_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n  first-long-key \n\nsecond-long-key\n")
    file.chmod(0o600)
    keys = read_keys({"MLX_QWENVL_API_KEY": "from-the-env\n"}, file)
    assert keys == {"from-the-env", "first-long-key", "second-long-key"}
    assert read_keys({}, None) == frozenset()
    assert "long" not in repr(Settings(api_keys=keys))


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"long-secret-key", 0o644, "can be read by other users; run chmod 600"),
        (b"long-secret-key", 0o640, "can be read by other users"),
        (b"\n# none\n", 0o600, "holds no key"),
        (b"secret", 0o600, "has 6 characters, expected at least 8"),
        (b"secret secret", 0o600, "expected ASCII"),
        ("secret-schlüssel".encode(), 0o600, "expected ASCII"),
        (b"\xffsecret", 0o600, "cannot be read as text"),
        (None, 0o600, "cannot be read as text"),
    ],
)
def test_files_that_hold_no_good_key_are_refused(
    tmp_path: Path, content: bytes | None, mode: int, says: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
        file.chmod(mode)
    with pytest.raises(OptionError, match=says) as caught:
        read_keys({}, file)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["", "short", "with space in it"])
def test_a_bad_key_in_the_environment_is_refused_not_left_aside(value: str) -> None:
    with pytest.raises(OptionError, match=r"^\$MLX_QWENVL_API_KEY has "):
        read_keys({"MLX_QWENVL_API_KEY": value}, None)
