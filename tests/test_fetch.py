"""inputs/fetch.py against servers on 127.0.0.1 that misbehave; no packet goes anywhere else."""

from __future__ import annotations

import gzip
import ipaddress
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_qwenvl.errors import FetchError, MediaError, OptionError
from mlx_qwenvl.inputs.fetch import FetchLimits, IPAddress, fetch, shown_url
from mlx_qwenvl.inputs.media import MediaLimits, open_image
from tests.golden.record_images import ENCODERS

PNG = ENCODERS["png"](40, 30)
LOCALHOST = ipaddress.ip_address("127.0.0.1")

Answer = Callable[[socket.socket], None]


class Site(socketserver.ThreadingTCPServer):
    """A server whose answers are bytes, or functions that write to the connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.answers: dict[str, bytes | Answer] = {}
        self.heads: list[str] = []  # of the requests, in order
        self.closing = threading.Event()
        self.tls: ssl.SSLContext | None = None
        self.greeting = b""  # sent before any request comes

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def handle_error(self, *_: object) -> None:
        """Says nothing: clients that go away are what is tested."""


class Visit(socketserver.BaseRequestHandler):
    server: Site

    def handle(self) -> None:
        connection: socket.socket = self.request
        if self.server.tls is not None:
            connection = self.server.tls.wrap_socket(connection, server_side=True)
        with connection:
            connection.sendall(self.server.greeting)
            head = b""
            while b"\r\n\r\n" not in head:
                part = connection.recv(65536)
                if not part:
                    return
                head += part
            self.server.heads.append(head.decode("latin-1"))
            path = head.split()[1].decode("latin-1")
            answer = self.server.answers.get(path.partition("?")[0], _response(b"", "404 No"))
            if callable(answer):
                answer(connection)
            else:
                connection.sendall(answer)


def _response(body: bytes, status: str = "200 OK", **headers: object) -> bytes:
    lines = {"Content-Length": len(body), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in lines.items())]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def _redirect(location: str) -> bytes:
    return _response(b"", "302 Found", Location=location)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The only names that resolve, and to what; every question is noted under "asked"."""
    known: dict[str, list[str]] = {"asked": []}
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if ":" in name or _is_numeric(name):
            return real(host, port, *args, **kwargs)
        known["asked"].append(name)
        if name not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [info for ip in known[name] for info in real(ip, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def _is_numeric(host: str) -> bool:
    try:
        socket.inet_aton(host)  # every spelling that the C library takes, as 127.1
    except OSError:
        return False
    return True


def refused(url: str, match: str, **limits: Any) -> None:
    start = time.monotonic()
    with pytest.raises(FetchError, match=match) as caught:
        fetch(url, limits=FetchLimits(**{"deadline_s": 5.0, **limits}))
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 250
    assert "object at" not in message
    assert time.monotonic() - start < limits.get("deadline_s", 5.0) + 1


# --- good answers -------------------------------------------------------------------------------


def test_a_picture_is_fetched_and_opened(site: Site) -> None:
    site.answers["/a.png"] = _response(PNG)
    assert fetch(site.url("/a.png")) == PNG
    assert open_image(site.url("/a.png?size=big")).size == (40, 30)
    head = site.heads[-1]
    assert head.startswith("GET /a.png?size=big HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{site.port}\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head
    assert "Authorization" not in head


def test_chunked_and_unbounded_bodies_are_whole(site: Site) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (PNG[:100], PNG[100:]))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    site.answers["/chunked"] = head + chunks + b"0\r\n\r\n"
    site.answers["/to the end"] = b"HTTP/1.0 200 OK\r\n\r\n" + PNG
    site.answers["/to%20the%20end"] = site.answers["/to the end"]
    assert fetch(site.url("/chunked")) == PNG
    assert fetch(site.url("/to the end")) == PNG


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(PNG)),
        ("GZIP", gzip.compress(PNG)),
        ("deflate", zlib.compress(PNG)),
        ("identity", PNG),
    ],
)
def test_packed_answers_that_nobody_asked_for_are_unpacked(
    site: Site, encoding: str, packed: bytes
) -> None:
    site.answers["/"] = _response(packed, Content_Encoding=encoding)
    assert fetch(site.url()) == PNG


@pytest.mark.parametrize("location", ["/b.png", "b.png", "//127.0.0.1:{port}/b.png", "{b}"])
def test_redirects_are_followed(site: Site, location: str) -> None:
    where = location.format(port=site.port, b=site.url("/b.png"))
    site.answers = {"/a.png": _redirect(where), "/b.png": _response(PNG)}
    assert fetch(site.url("/a.png")) == PNG


def test_user_and_password_go_to_their_own_origin_only(site: Site, names: dict[str, Any]) -> None:
    names["other.example"] = ["127.0.0.1"]
    site.answers = {
        "/a": _redirect("/b"),
        "/b": _redirect(site.url("/c", "other.example")),
        "/c": _response(PNG),
    }
    assert fetch(site.url("/a").replace("http://", "http://me:p%40ss@")) == PNG
    sent = ["Authorization: Basic bWU6cEBzcw==\r\n" in head for head in site.heads]
    assert sent == [True, True, False]
    assert f"Host: other.example:{site.port}\r\n" in site.heads[-1]


# --- bad answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("404 No <b>way</b>", r"404 \(Not Found\)"),
        ("403 x", r"403 \(Forbidden\)"),
        ("429 x", r"429 \(Too Many Requests\)"),
        ("500 x", r"500 \(Internal Server Error\)"),
        ("799 x", "799$"),
        ("302 no location", r"302 \(Found\)"),
        ("304 x", r"304 \(Not Modified\)"),
    ],
)
def test_bad_statuses_are_named(site: Site, status: str, said: str) -> None:
    site.answers["/"] = _response(b"", status)
    refused(
        site.url("/?key=secret"), rf"^http://127.0.0.1:{site.port}/: the server answered {said}"
    )


def test_html_is_left_to_the_decoder(site: Site) -> None:
    site.answers["/page"] = _response(b"<!doctype html><p>Log in")
    with pytest.raises(MediaError, match=r"127.0.0.1:\d+/page: looks like an HTML page"):
        open_image(site.url("/page"))


def test_bodies_over_the_cap_are_refused(site: Site) -> None:
    sent = []

    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not site.closing.is_set():
            connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
            sent.append(65536)

    site.answers["/endless"] = endless
    site.answers["/honest"] = _response(bytes(100_001))
    site.answers["/fits"] = _response(bytes(100_000))
    site.answers["/lying"] = b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999\r\n\r\nabc"
    too_big = "too big; at most 100000 bytes are read"
    for path in ("/endless", "/honest", "/lying"):
        refused(site.url(path), too_big, max_bytes=100_000)
    assert len(fetch(site.url("/fits"), limits=FetchLimits(max_bytes=100_000))) == 100_000
    assert sum(sent) < 20_000_000  # what the system's buffers swallow


def test_the_picture_limit_caps_the_download_too(site: Site) -> None:
    site.answers["/"] = _response(PNG)
    with pytest.raises(FetchError, match="at most 99 bytes are read"):
        open_image(site.url(), limits=MediaLimits(max_bytes=99))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bombs_are_refused(site: Site, encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(64)) + packer.flush()
    assert len(bomb) < 100_000
    site.answers["/"] = _response(bomb, Content_Encoding=encoding)
    tracemalloc.start()
    refused(site.url(), "too big; at most 100000 bytes", max_bytes=100_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20  # never the 64 MiB that are packed


@pytest.mark.parametrize(
    ("encoding", "body", "match"),
    [
        ("br", b"\x8b\x02\x80PNG\x03", "content-encoding that was not asked for"),
        ("gzip, gzip", gzip.compress(gzip.compress(PNG)), "not asked for"),
        ("gzip", b"no gzip at all", "compressed answer is damaged"),
        ("gzip", gzip.compress(PNG)[:-20], "compressed answer is truncated"),
        ("gzip", b"", "compressed answer is truncated"),
    ],
)
def test_bad_encodings_are_refused(site: Site, encoding: str, body: bytes, match: str) -> None:
    site.answers["/"] = _response(body, Content_Encoding=encoding)
    refused(site.url(), match)


def test_a_content_length_that_lies_small_gives_a_truncated_picture(site: Site) -> None:
    site.answers["/"] = _response(PNG, Content_Length=len(PNG) // 2)
    with pytest.raises(MediaError, match=r"PNG data of .* truncated"):
        open_image(site.url())


def test_a_content_length_that_lies_large_is_an_error(site: Site) -> None:
    site.answers["/"] = _response(PNG, Content_Length=len(PNG) + 1)
    refused(site.url(), "the server broke off")


def test_connections_that_are_reset_are_errors(site: Site) -> None:
    def reset(connection: socket.socket) -> None:
        connection.sendall(_response(PNG)[:200])
        # Lingering for 0 seconds makes close() send a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    site.answers["/reset"] = reset
    site.answers["/silent"] = lambda connection: None
    refused(site.url("/reset"), "connection was lost|broke off")
    refused(site.url("/silent"), "broke off")


@pytest.mark.parametrize(
    "answer",
    [b"220 mail.example ESMTP\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, b"\0" * 100],
    ids=["not HTTP", "headers of 200 kB", "zeros"],
)
def test_answers_that_are_not_http_are_errors(site: Site, answer: bytes) -> None:
    site.answers["/"] = answer
    refused(site.url(), "broke off or does not speak HTTP")


# --- the deadline -------------------------------------------------------------------------------


def _drip(site: Site, start: bytes, drop: bytes) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        while not site.closing.wait(0.02):
            connection.sendall(drop)

    return answer


def test_one_deadline_holds_for_slow_bodies_and_headers(site: Site) -> None:
    site.answers["/body"] = _drip(site, b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x")
    site.answers["/headers"] = _drip(site, b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n")
    site.answers["/hints"] = _drip(site, b"", b"HTTP/1.1 100 Continue\r\n\r\n")
    site.answers["/silence"] = _drip(site, b"", b"")
    for path in ("/body", "/headers", "/hints", "/silence"):
        refused(site.url(path), r"not finished within 0.3 s", deadline_s=0.3)


def test_one_deadline_holds_over_all_redirects(site: Site) -> None:
    def slowly(connection: socket.socket) -> None:
        site.closing.wait(0.2)
        connection.sendall(_redirect("/"))

    site.answers["/"] = slowly
    refused(site.url(), r"not finished within 0.3 s", deadline_s=0.3, max_redirects=9)


def test_the_deadline_holds_for_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*args: object, **kwargs: object) -> None:
        release.wait(5)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    refused("http://slow.example/", r"not finished within 0.2 s", deadline_s=0.2, use_proxy=False)
    release.set()


def test_the_deadline_holds_for_a_server_that_does_not_accept(site: Site) -> None:
    # A full queue of connections: the next one hangs while it connects.
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        waiting = []
        for _ in range(3):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(address)
            waiting.append(connection)
        url = f"http://127.0.0.1:{address[1]}/"
        refused(url, r"not finished within|cannot be reached", deadline_s=0.3)
        for connection in waiting:
            connection.close()


# --- where a URL may lead -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("file:///etc/passwd", "leads to a file: URL; expected http or https"),
        ("ftp://example.com/a.png", "leads to a ftp: URL"),
        ("gopher://example.com/", "leads to a gopher: URL"),
        ("/etc/passwd", "expected http or https"),
        ("http://", "no host"),
        ("http:///a.png", "no host"),
        ("http://example.com:99999/", "not a valid URL"),
        ("http://[::1/", "not a valid URL"),
        ("http://good.example\\@127.0.0.1/", "no backslash"),
        ("http://good.example/\r\nHost: evil.example", "control characters"),
        ("http://nul\0.example/", "control characters"),
        ("http://xn--a/", "not a valid URL|does not resolve"),
        ("http://" + "a" * 70_000, "not a valid URL"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_other_urls_are_refused(names: dict[str, Any], url: str, match: str) -> None:
    refused(url, match, use_proxy=False)


def test_a_name_that_does_not_resolve_is_said_so(names: dict[str, Any]) -> None:
    refused("http://nowhere.example/a.png", "the host name does not resolve", use_proxy=False)
    assert names["asked"] == ["nowhere.example"]


def test_a_server_that_is_not_there_is_said_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        refused(url, "the server cannot be reached", use_proxy=False)


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("file:///etc/passwd", "leads to a file: URL"),
        ("ftp://127.0.0.1/", "leads to a ftp: URL"),
        ("http://good.example\\@127.0.0.1/", "no backslash"),
        ("http://[", "not a valid URL"),
        ("/", "more than 3 redirects"),
    ],
)
def test_redirects_are_checked_like_first_urls(site: Site, location: str, match: str) -> None:
    site.answers["/"] = _redirect(location)
    refused(site.url(), match)
    assert len(site.heads) == (4 if location == "/" else 1)


def test_the_number_of_redirects_is_a_limit(site: Site) -> None:
    site.answers = {"/0": _redirect("/1"), "/1": _redirect("/2"), "/2": _response(PNG)}
    assert fetch(site.url("/0"), limits=FetchLimits(max_redirects=2)) == PNG
    refused(site.url("/0"), "more than 1 redirects", max_redirects=1)
    refused(site.url("/0"), "more than 0 redirects", max_redirects=0)


def _checked(allowed: set[str], seen: list[str]) -> Callable[[IPAddress], None]:
    def check(address: IPAddress) -> None:
        seen.append(str(address))
        if str(address) not in allowed:
            raise FetchError(f"the address {address} is not public")

    return check


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("[::ffff:7f00:1]", "127.0.0.1"),
        ("[64:ff9b::7f00:1]", "64:ff9b::7f00:1"),
        ("169.254.169.254", "169.254.169.254"),
        ("127。0。0。1", "127.0.0.1"),
        ("inside.example", "10.0.0.7"),
        ("both.example", "10.0.0.7"),
    ],
)
def test_check_address_sees_what_would_be_connected_to(
    site: Site, names: dict[str, Any], host: str, address: str
) -> None:
    names |= {"inside.example": ["10.0.0.7"], "both.example": ["93.184.215.14", "10.0.0.7"]}
    seen: list[str] = []
    check = _checked({"93.184.215.14"}, seen)
    url = site.url("/", host)
    refused(url, f"the address {address} is not public", use_proxy=False, check_address=check)
    assert seen[-1] == address
    assert not site.heads


@pytest.mark.parametrize(
    "host",
    ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0x7f000001", "0", "1.2.3.0x", "127.0.0.1."],
)
def test_odd_spellings_of_an_address_are_refused_where_addresses_are_checked(
    names: dict[str, Any], host: str
) -> None:
    seen: list[str] = []
    check = _checked(set(), seen)
    odd = "nor an address in its usual form|not a valid URL"
    refused(f"http://{host}/", odd, use_proxy=False, check_address=check)
    assert (seen, names["asked"]) == ([], [])


def test_only_the_allowed_ports_are_connected_to(site: Site) -> None:
    site.answers = {"/a": _redirect("https://127.0.0.1:1/"), "/b": _response(PNG)}
    own = frozenset({site.port})
    assert fetch(site.url("/b"), limits=FetchLimits(ports=own)) == PNG
    refused(site.url("/a"), f"leads to port 1; expected one of {site.port}", ports=own)
    refused(site.url("/b"), "expected one of 80, 443", ports=frozenset({80, 443}))
    assert len(site.heads) == 2


def test_addresses_are_checked_again_after_a_redirect(site: Site, names: dict[str, Any]) -> None:
    names |= {"good.example": ["127.0.0.1"], "inside.example": ["10.0.0.7"]}
    site.answers["/"] = _redirect("http://inside.example/latest/meta-data")
    seen: list[str] = []
    check = _checked({"127.0.0.1"}, seen)
    url = site.url("/", "good.example")
    refused(url, "address 10.0.0.7 is not public", use_proxy=False, check_address=check)
    assert seen == ["127.0.0.1", "10.0.0.7"]


def test_the_connection_goes_to_the_address_that_was_checked(
    site: Site, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.answers["/"] = _response(PNG)
    names["pictures.example"] = ["127.0.0.1"]
    connected: list[Any] = []
    real = socket.create_connection

    def create_connection(address: Any, *args: Any, **kwargs: Any) -> socket.socket:
        connected.append(address)
        return real(address, *args, **kwargs)

    def check(address: IPAddress) -> None:
        assert address == LOCALHOST
        names["pictures.example"] = ["10.0.0.7"]  # what a second question would be answered

    monkeypatch.setattr(socket, "create_connection", create_connection)
    limits = FetchLimits(use_proxy=False, check_address=check)
    assert fetch(site.url("/", "pictures.example"), limits=limits) == PNG
    assert names["asked"] == ["pictures.example"]
    assert connected == [("127.0.0.1", site.port)]
    assert f"Host: pictures.example:{site.port}\r\n" in site.heads[0]


def test_a_dead_address_does_not_hide_a_living_one(site: Site, names: dict[str, Any]) -> None:
    site.answers["/"] = _response(PNG)
    names["two.example"] = ["::1", "127.0.0.1"]  # the server listens on the second only
    assert fetch(site.url("/", "two.example")) == PNG


# --- proxies ------------------------------------------------------------------------------------


def test_a_proxy_is_used_when_it_is_set(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:pw@127.0.0.1:{site.port}")
    site.answers["http://pictures.example/a.png"] = _response(PNG)
    assert fetch("http://pictures.example/a.png") == PNG
    assert "Proxy-Authorization: Basic bWU6cHc=\r\n" in site.heads[0]
    assert "Host: pictures.example\r\n" in site.heads[0]


def test_proxies_are_left_aside_when_told(
    site: Site, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["pictures.example"] = ["127.0.0.1"]
    site.answers["/"] = _response(PNG)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    url = site.url("/", "pictures.example")
    refused(url, "cannot be reached")
    assert fetch(url, limits=FetchLimits(use_proxy=False)) == PNG
    monkeypatch.setenv("no_proxy", "pictures.example")
    assert fetch(url) == PNG


def test_proxies_of_other_kinds_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1080")
    refused(site.url(), "the proxy that is set is no http or https proxy")


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture
def tls_site(site: Site, tmp_path: Path) -> Site:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=pictures.example"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-addext", "subjectAltName=DNS:pictures.example"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    site.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    site.tls.load_cert_chain(certificate, key)
    return site


def test_tls_keeps_the_name_while_the_address_is_pinned(
    tls_site: Site, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names |= {"pictures.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    asked_for: list[str] = []
    assert tls_site.tls is not None
    tls_site.tls.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    tls_site.answers["/"] = _response(PNG)
    limits = FetchLimits(use_proxy=False, check_address=_checked({"127.0.0.1"}, []))
    url = tls_site.url("/", "pictures.example").replace("http:", "https:")
    assert fetch(url, limits=limits) == PNG
    assert asked_for == ["pictures.example"]
    refused(url.replace("pictures", "other"), "TLS certificate is not trusted")


def test_certificates_that_are_not_trusted_are_refused(
    tls_site: Site, names: dict[str, Any]
) -> None:
    names["pictures.example"] = ["127.0.0.1"]
    url = tls_site.url("/", "pictures.example").replace("http:", "https:")
    refused(url, "the server's TLS certificate is not trusted")
    assert not tls_site.heads


def test_a_server_without_tls_is_said_so(site: Site) -> None:
    site.greeting = b"220 mail.example ESMTP\r\n"
    refused(site.url().replace("http:", "https:"), "the TLS handshake failed")


# --- messages and limits ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:pw@example.com/a.png?key=1#x", "https://example.com/a.png"),
        ("HTTP://EXAMPLE.com:8080", "http://example.com:8080/"),
        ("https://müller.example/ä.png", "https://xn--mller-kva.example/%C3%A4.png"),
        ("http://[::1", "the URL"),
        ("https://example.com/" + "x" * 200, f"https://example.com/{'x' * 40}...{'x' * 37}"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_impossible_limits_are_refused() -> None:
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(OptionError, match="expected positive"):
            FetchLimits(deadline_s=seconds)
    with pytest.raises(OptionError, match="expected positive"):
        FetchLimits(max_bytes=0)
    with pytest.raises(OptionError, match="expected positive"):
        FetchLimits(max_redirects=-1)
    with pytest.raises(OptionError, match="check_address needs use_proxy=False"):
        FetchLimits(check_address=lambda address: None)
