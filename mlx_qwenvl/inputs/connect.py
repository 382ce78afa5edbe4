"""Connections for `fetch.py`: one deadline over every wait, and only checked addresses."""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import httpcore2

from mlx_qwenvl.errors import FetchError

__all__ = ["CheckedBackend", "Deadline", "IPAddress"]

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Deadline:
    """A point in time that everything must be done by."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Returns the seconds left, which are more than 0."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("deadline")
        return left


class _Stream(httpcore2.NetworkStream):
    """A connection whose every wait ends with the deadline, not with a timeout of its own."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        try:
            left = self._deadline.left()
            return _Stream(
                self._stream.start_tls(ssl_context, server_hostname, left), self._deadline
            )
        except httpcore2.ConnectError as error:
            reason = "the TLS handshake failed"
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                reason = "the server's TLS certificate is not trusted"
            raise FetchError(reason) from error


class CheckedBackend(httpcore2.NetworkBackend):
    """Resolves a name once, has every address checked, and connects to one of those."""

    def __init__(
        self, deadline: Deadline, check_address: Callable[[IPAddress], None] | None
    ) -> None:
        self._deadline = deadline
        self._check_address = check_address

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connects to the first address that answers, once all have passed the check."""
        addresses = _resolve(host, self._deadline)
        if self._check_address is not None:
            for address in addresses:
                self._check_address(address)
        failure: Exception | None = None
        for i, address in enumerate(addresses):
            try:
                # A dead address may not use up the time of those behind it.
                share = self._deadline.left() / (len(addresses) - i)
                stream = httpcore2.SyncBackend().connect_tcp(str(address), port, share)
                return _Stream(stream, self._deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise FetchError("the server cannot be reached") from failure


def _resolve(host: str, deadline: Deadline) -> list[IPAddress]:
    """Returns the addresses of a host. The resolver knows no timeout, so a thread waits for it."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="mlx-qwenvl-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=deadline.left())
    except queue.Empty:
        raise httpcore2.ConnectTimeout("resolver") from None
    if isinstance(answer, Exception):
        raise FetchError("the host name does not resolve") from answer
    addresses = [ipaddress.ip_address(info[4][0]) for info in answer]
    return list(dict.fromkeys(getattr(a, "ipv4_mapped", None) or a for a in addresses))
