"""`/`: the chat page, and what this server is for programs that ask for JSON.

The page is the files of `server/page/` as they stand. Nothing of the server is written into them,
so they may be given to whoever has no key yet; what the page shows it asks for, with a key where
one is set.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath
from typing import Final

from fastapi import APIRouter
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from mlx_qwenvl import __version__
from mlx_qwenvl.inputs.pyav import find_pyav

from ..engine import Engine
from ..wire import Json

# Scripts, styles and requests of our own alone; pictures also where the page made them itself, and
# videos only there. No text becomes HTML or a script anywhere: browsers that know Trusted Types
# refuse it.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX: Final = "index.html"


@dataclass(frozen=True)
class Asset:
    """A file of the page.

    Attributes:
        body: Its bytes.
        media_type: What they are.
        etag: Changes with the bytes.
    """

    body: bytes
    media_type: str
    etag: str


def read_assets() -> dict[str, Asset]:
    """The page's files by the path that they are served under."""
    folder = files(__package__.rpartition(".")[0]) / "page"
    assets = {}
    for file in folder.iterdir():
        kind = TYPES.get(PurePath(file.name).suffix)
        if kind is not None:
            body = file.read_bytes()
            path = "/" if file.name == INDEX else f"/page/{file.name}"
            assets[path] = Asset(body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return assets


class Page:
    """The page's files, read once."""

    def __init__(self) -> None:
        self._assets = read_assets()

    def routes(self, engine: Engine) -> APIRouter:
        """The routes.

        Args:
            engine: What runs here.
        """
        router = APIRouter(include_in_schema=False)

        def give(request: Request) -> Response:
            path = request.scope["path"]
            vary = {"Vary": "Accept"} if path == "/" else {}
            if path == "/" and _wants_json(request.headers):
                return Json(_facts(engine), headers=vary)
            return _answer(self._assets[path], request.headers, vary)

        for path in self._assets:
            router.add_api_route(path, give, methods=["GET", "HEAD"], response_model=None)
        return router

    def is_asked_for(self, scope: Scope) -> bool:
        """Whether a request can be answered with nothing but one of the page's files."""
        if scope["method"] not in ("GET", "HEAD") or scope["path"] not in self._assets:
            return False
        return scope["path"] != "/" or not _wants_json(Headers(scope=scope))


def _facts(engine: Engine) -> dict[str, object]:
    """What runs here, and what of a request is refused without being looked at."""
    settings = engine.settings
    return {
        "model": engine.name,
        "version": __version__,
        "state": engine.state,
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_videos": settings.max_videos,
            "max_video_bytes": settings.max_video_bytes,
            "video_fault": find_pyav().fault or None,
        },
    }


def _wants_json(headers: Headers) -> bool:
    return any("application/json" in value for value in headers.getlist("accept"))


def _answer(asset: Asset, asked: Headers, more: dict[str, str]) -> Response:
    headers = {
        "ETag": asset.etag,
        "Cache-Control": "no-cache",  # asked for each time, so that an update is one at once
        "Content-Security-Policy": POLICY,
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        **more,
    }
    known = [tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")]
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, headers={**headers, "Content-Type": asset.media_type})
