"""A Hugging Face Hub on this machine that takes uploads, and whatever can go wrong with it.

It speaks the part of the Hub's protocol that an upload needs: repositories made or found, the
card's header checked, small files inside the commit, large ones by LFS before it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

OWNER = "people"
TOKEN = "hf_of_people"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Repository:
    """What people see of a repository.

    Attributes:
        is_private: Whether they do.
        files: The files of its newest commit.
        messages: The commits.
    """

    is_private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class FakeHub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: All there are, by their names.
        stored: Large files that have arrived, by their SHA-256.
        requests: What was asked, as "POST /path".
        received: Bytes of bodies that came in.
        refusals: What is answered to a path that ends so: a status and the Hub's words.
        cuts: Connections that are still to be cut in the middle of a large file.
        stalls: Whether large files are taken and never acknowledged; `stalled` is set then.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.received = bytearray()
        self.refusals: dict[str, tuple[HTTPStatus, str]] = {}
        self.cuts = 0
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

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        hub.requests.append(f"{self.command} {path}")
        if path.startswith("/lfs/") and hub.cuts:
            hub.cuts -= 1
            self.rfile.read(100)
            self.close_connection = True
            return
        body = self._body()
        hub.received += body
        for end, (status, words) in hub.refusals.items():
            if path.endswith(end):
                self._send(status, {"error": words})
                return
        if path.startswith("/lfs/"):  # signed addresses, without a token
            self._take(path.removeprefix("/lfs/"), body)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(HTTPStatus.UNAUTHORIZED, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._check_card(json.loads(body)["content"])
        else:
            self._answer_for_repository(path, body)

    def _answer_for_repository(self, path: str, body: bytes) -> None:
        name = path.removeprefix("/api/models").removesuffix(".git/info/lfs/objects/batch")
        name, action = "/".join(name.split("/")[1:3]), name.split("/")[3:]
        repository = self.server.repositories.get(name)
        if repository is None:
            self._send(HTTPStatus.NOT_FOUND, {"error": "Repository not found"})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            self._send(HTTPStatus.OK, {"objects": [self._instruction(each) for each in objects]})
        elif action == ["preupload", "main"]:
            files = json.loads(body)["files"]
            self._send(HTTPStatus.OK, {"files": [_upload_mode(each["path"]) for each in files]})
        elif action == ["tree", "main"]:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0"}
                for name, data in repository.files.items()
            ]
            self._send(HTTPStatus.OK, entries)
        elif action == ["commit", "main"]:
            self._commit(repository, name, [json.loads(line) for line in body.splitlines()])
        else:
            self._send(HTTPStatus.OK, {"id": name, "private": repository.is_private})

    def _create(self, wanted: dict[str, Any]) -> None:
        hub, owner = self.server, wanted["organization"] or OWNER
        name = f"{owner}/{wanted['name']}"
        if owner != OWNER:
            self._send(HTTPStatus.FORBIDDEN, {"error": f"You may not create models for {owner}"})
            return
        is_new = name not in hub.repositories
        if is_new:
            hub.repositories[name] = Repository(wanted["visibility"] == "private")
        status = HTTPStatus.OK if is_new else HTTPStatus.CONFLICT
        self._send(status, {"url": f"{hub.address}/{name}"})

    def _check_card(self, content: str) -> None:
        if content.startswith("---\n"):
            self._send(HTTPStatus.OK, {"errors": [], "warnings": []})
        else:
            errors = [{"message": "the header is missing"}]
            self._send(HTTPStatus.BAD_REQUEST, {"errors": errors, "warnings": []})

    def _instruction(self, wanted: dict[str, Any]) -> dict[str, Any]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.server.stored:
            return entry
        return entry | {
            "actions": {"upload": {"href": f"{self.server.address}/lfs/{wanted['oid']}"}}
        }

    def _take(self, digest: str, data: bytes) -> None:
        hub = self.server
        if hub.stalls:
            hub.stalled.set()
            hub.released.wait()
        is_whole = hashlib.sha256(data).hexdigest() == digest
        if is_whole:
            hub.stored[digest] = data
        self._send(HTTPStatus.OK if is_whole else HTTPStatus.BAD_REQUEST, {})

    def _commit(self, repository: Repository, name: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                repository.files[value["path"]] = self.server.stored[value["oid"]]
        url = f"{self.server.address}/{name}/commit/{COMMIT}"
        self._send(HTTPStatus.OK, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        body = b""
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if size == 0:
                break
        return body

    def _send(self, status: HTTPStatus, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _upload_mode(path: str) -> dict[str, object]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}
