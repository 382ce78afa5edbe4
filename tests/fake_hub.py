"""A Hugging Face Hub on this machine: one repository, and whatever can go wrong with it.

It speaks the part of the Hub's protocol that a download needs: what a repository is at a revision,
the list of its files, and the files themselves with their tags, sizes and ranges.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BLOCK_BYTES = 2**16  # written at once


class FakeHub(ThreadingHTTPServer):
    """The server.

    Attributes:
        requests: What was asked for, as "GET /path".
        refusal: A status and headers that every request gets, or None.
        withheld: Files that are listed and then forbidden.
        cuts: Bytes of a file after which its connection is cut, once for each entry of the list.
        ranges: First bytes that were asked for with a range.
        sent: Bytes of each file that were sent.
        knows_ranges: Whether a range that is asked for is all that is sent.
        stalled: Set when a file's last bytes are held back, which they are if `stalls` is true.
    """

    daemon_threads = True

    def __init__(self, repository: str, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository
        self.files = dict(files)
        self.requests: list[str] = []
        self.refusal: tuple[HTTPStatus, Mapping[str, str]] | None = None
        self.withheld: set[str] = set()
        self.cuts: dict[str, list[int]] = {}
        self.ranges: list[int] = []
        self.sent: Counter[str] = Counter()
        self.knows_ranges = True
        self.stalls = False
        self.stalled = threading.Event()
        self.released = threading.Event()

    @property
    def address(self) -> str:
        """What `HF_ENDPOINT` has to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that leave."""


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve until the block ends."""
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        hub.requests.append(f"{self.command} {path}")
        resolve = f"/{hub.repository}/resolve/{COMMIT}/"
        api = f"/api/models/{hub.repository}"
        if hub.refusal is not None:
            self._send(hub.refusal[0], b"{}", hub.refusal[1])
        elif path.removeprefix(resolve) in hub.withheld:
            self._send(HTTPStatus.FORBIDDEN, b"{}", {})
        elif path == f"{api}/revision/main":
            siblings = [{"rfilename": name} for name in hub.files]
            self._send_json({"id": hub.repository, "sha": COMMIT, "siblings": siblings})
        elif path == f"{api}/tree/{COMMIT}":
            self._send_json([self._entry(name) for name in hub.files])
        elif path.startswith(resolve) and path.removeprefix(resolve) in hub.files:
            self._send_file(path.removeprefix(resolve))
        else:
            self._send(HTTPStatus.NOT_FOUND, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _entry(self, name: str) -> dict[str, object]:
        data = self.server.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": _tag(data)}

    def _send_json(self, value: object) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str) -> None:
        hub, data = self.server, self.server.files[name]
        headers = {"ETag": f'"{_tag(data)}"', "X-Repo-Commit": COMMIT}
        status, begin, end = HTTPStatus.OK, 0, len(data)
        if hub.knows_ranges and (wanted := self.headers.get("Range")) is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(end, int(last) + 1) if last else end
            hub.ranges.append(begin)
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        cut = end
        if self.command == "GET" and hub.cuts.get(name):
            cut = hub.cuts[name].pop(0)
            self.close_connection = True
        self._send(status, data[begin:end], headers, cut=cut - begin, file=name)

    def _send(
        self,
        status: HTTPStatus,
        body: bytes,
        headers: Mapping[str, str],
        cut: int | None = None,
        file: str = "",
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        hub = self.server
        if hub.stalls and len(body) > 100_000:
            self.wfile.write(body[: len(body) // 2])
            hub.stalled.set()
            hub.released.wait()
        kept = body[:cut]
        for begin in range(0, len(kept), BLOCK_BYTES):
            self.wfile.write(kept[begin : begin + BLOCK_BYTES])
            hub.sent[file] += len(kept[begin : begin + BLOCK_BYTES])


def _tag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
