"""An http(s) URL -> its bytes: the only place that opens a connection for a picture.

One deadline covers everything (names, connections, TLS, headers, body, redirects) and one cap
covers the bytes, on the wire and unpacked, while they arrive. A name is resolved once for each hop
and the connection goes to an address of that answer, so a check of addresses sees what is used.
"""

from __future__ import annotations

import base64
import http
import ipaddress
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import httpcore2
import httpx2

from mlx_qwenvl.errors import FetchError, OptionError
from mlx_qwenvl.inputs.connect import CheckedBackend, Deadline, IPAddress

__all__ = ["FetchLimits", "IPAddress", "fetch", "shown_url"]

HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "image/*,*/*;q=0.1",
    "Accept-Encoding": "identity",  # pictures are packed already
    "User-Agent": "mlx-qwenvl",  # some hosts of pictures answer 403 to none
}
REDIRECTS = {301, 302, 303, 307, 308}
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class FetchLimits:
    """What opening one URL may cost, and where it may lead.

    Attributes:
        deadline_s: For the whole of it, redirects included, in seconds.
        max_bytes: Of the body, as sent and unpacked, in bytes.
        max_redirects: Hops after the first request.
        use_proxy: Whether the proxy settings of the environment and the system hold.
        check_address: Called with every address that a host name resolves to, at every hop; raises
            FetchError to refuse. IPv4 addresses inside IPv6 ones come as IPv4. It needs
            use_proxy=False, because behind a proxy the proxy resolves names. It also has hosts
            refused that only look like addresses, as 127.1 and 0x7f.1 do.
        ports: That may be connected to; None for all.
    """

    deadline_s: float = 30.0  # seconds
    max_bytes: int = 64 * 2**20  # bytes
    max_redirects: int = 3
    use_proxy: bool = True
    check_address: Callable[[IPAddress], None] | None = None
    ports: frozenset[int] | None = None

    def __post_init__(self) -> None:
        """Refuses limits that contradict each other or that no answer can meet."""
        if not self.deadline_s > 0 or self.max_bytes < 1 or self.max_redirects < 0:
            got = f"{self.deadline_s}, {self.max_bytes} and {self.max_redirects}"
            raise OptionError(f"expected positive deadline_s, max_bytes and redirects, got {got}")
        if self.use_proxy and self.check_address is not None:
            raise OptionError("check_address needs use_proxy=False: a proxy resolves names itself")


DEFAULT_LIMITS = FetchLimits()


def fetch(url: str, *, limits: FetchLimits = DEFAULT_LIMITS) -> bytes:
    """Opens a URL within the limits.

    Args:
        url: An http or https URL. A user and password in it are sent to its own origin alone.
        limits: What it may cost and where it may lead.

    Returns:
        The body of the answer, whatever it is.

    Raises:
        FetchError: If the URL, the way to it or the answer is not acceptable; the message names
            the URL without user, password, query and fragment.
    """
    deadline = Deadline(limits.deadline_s)
    name = shown_url(url)
    try:
        target = start = _parse(url)
        for _ in range(limits.max_redirects + 1):
            _check_target(target, limits)
            headers = {**HEADERS, "Host": target.netloc}
            if start.userinfo and _origin(target) == _origin(start):
                headers["Authorization"] = _basic_auth(start)
            with (
                _pool(target, limits, deadline) as pool,
                pool.stream("GET", _core_url(target), headers=headers) as response,
            ):
                answer = {key.lower(): value for key, value in response.headers}
                if response.status not in REDIRECTS or b"location" not in answer:
                    return _body(response, answer, limits)
            target = _parse(answer[b"location"].decode("utf-8", "replace"), target)
    except FetchError as error:
        raise FetchError(f"{name}: {error}") from error.__cause__
    except httpcore2.TimeoutException as error:
        raise FetchError(f"{name}: not finished within {limits.deadline_s:g} s") from error
    except httpcore2.ProxyError as error:
        raise FetchError(f"{name}: the proxy refused the connection") from error
    except httpcore2.ProtocolError as error:
        raise FetchError(f"{name}: the server broke off or does not speak HTTP") from error
    except (httpcore2.NetworkError, OSError) as error:
        raise FetchError(f"{name}: the connection was lost") from error
    raise FetchError(f"{name}: more than {limits.max_redirects} redirects")


def shown_url(url: str) -> str:
    """Returns a URL as one short line for messages, without user, password, query and fragment."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return "the URL"
    line = f"{parsed.scheme}://{parsed.netloc.decode('ascii')}{parsed.raw_path.decode('ascii')}"
    line = line.partition("?")[0]
    return line if len(line) <= 100 else f"{line[:60]}...{line[-37:]}"


def _parse(url: str, base: httpx2.URL | None = None) -> httpx2.URL:
    # Browsers take a backslash for a slash and other clients do not: they disagree on the host.
    if "\\" in url or not url.isprintable():
        raise FetchError("a URL has no backslash and no control characters")
    try:
        parsed = httpx2.URL(url) if base is None else base.join(url)
    except httpx2.InvalidURL as error:
        raise FetchError("not a valid URL") from error
    if parsed.scheme not in DEFAULT_PORTS:
        raise FetchError(f"leads to a {parsed.scheme}: URL; expected http or https")
    if not parsed.raw_host:
        raise FetchError("the URL has no host")
    if not re.fullmatch(rb"[a-z0-9._:-]+", parsed.raw_host) or (parsed.port or 80) > 65535:
        raise FetchError("not a valid URL")
    return parsed


def _check_target(target: httpx2.URL, limits: FetchLimits) -> None:
    port = DEFAULT_PORTS[target.scheme] if target.port is None else target.port
    if limits.ports is not None and port not in limits.ports:
        allowed = ", ".join(map(str, sorted(limits.ports)))
        raise FetchError(f"leads to port {port}; expected one of {allowed}")
    if limits.check_address is None:
        return
    host = target.raw_host.decode("ascii")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # Resolvers take such names for addresses of many spellings; the internet has none of them.
        if re.fullmatch(r"\d+|0x[0-9a-f]*", host.removesuffix(".").rpartition(".")[2]):
            raise FetchError(
                "the host is neither a name nor an address in its usual form"
            ) from None


def _core_url(url: httpx2.URL) -> httpcore2.URL:
    # The parts as parsed, so that what is checked, connected to and asked for cannot differ.
    return httpcore2.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def _origin(url: httpx2.URL) -> tuple[str, bytes, int]:
    return url.scheme, url.raw_host, url.port or DEFAULT_PORTS[url.scheme]


def _basic_auth(url: httpx2.URL) -> str:
    return "Basic " + base64.b64encode(f"{url.username}:{url.password}".encode()).decode("ascii")


def _body(response: httpcore2.Response, headers: dict[bytes, bytes], limits: FetchLimits) -> bytes:
    """Reads the answer as it arrives, never more than the cap, packed or unpacked."""
    if not 200 <= response.status < 300:
        known = {status.value: f" ({status.phrase})" for status in http.HTTPStatus}
        raise FetchError(f"the server answered {response.status}{known.get(response.status, '')}")
    too_big = f"the answer is too big; at most {limits.max_bytes} bytes are read"
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > limits.max_bytes:
        raise FetchError(too_big)
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"identity", b"", b"gzip", b"x-gzip", b"deflate"):
        raise FetchError("the answer comes in a content-encoding that was not asked for")
    packed = encoding not in (b"identity", b"")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32) if packed else None  # 32: zlib or gzip
    body, received = bytearray(), 0
    for part in response.iter_stream():
        received += len(part)
        try:
            room = limits.max_bytes + 1 - len(body)
            body += unpacker.decompress(part, room) if unpacker else part
        except zlib.error as error:
            raise FetchError("the compressed answer is damaged") from error
        if max(received, len(body)) > limits.max_bytes:
            raise FetchError(too_big)
    if unpacker and not unpacker.eof:
        raise FetchError("the compressed answer is truncated")
    return bytes(body)


def _pool(target: httpx2.URL, limits: FetchLimits, deadline: Deadline) -> httpcore2.ConnectionPool:
    """Returns a pool for one request, through the proxy that is set for the target, if any."""
    backend = CheckedBackend(deadline, limits.check_address)
    try:
        tls = httpcore2.default_ssl_context() if target.scheme == "https" else None
    except OSError as error:
        raise FetchError("the system's TLS certificates cannot be loaded") from error
    proxy = _proxy_for(target) if limits.use_proxy else None
    if proxy is None:
        return httpcore2.ConnectionPool(ssl_context=tls, network_backend=backend)
    return httpcore2.HTTPProxy(
        proxy_url=_core_url(proxy),
        proxy_auth=(proxy.username, proxy.password) if proxy.userinfo else None,
        ssl_context=tls,
        network_backend=backend,
    )


def _proxy_for(target: httpx2.URL) -> httpx2.URL | None:
    # Imported late: a server never asks for proxies.
    from urllib.request import getproxies, proxy_bypass

    proxies = getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(target.netloc.decode("ascii")):
        return None
    try:
        return _parse(proxy if "://" in proxy else f"http://{proxy}")
    except FetchError as error:
        raise FetchError("the proxy that is set is no http or https proxy") from error
