"""The HTTP application: which addresses there are, and what all of them have in common."""

from __future__ import annotations

import re

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from mlx_qwenvl import __version__

from .engine import Engine
from .errors import handle_errors
from .guard import Guard
from .metrics import Counting
from .routes.chat import chat_routes
from .routes.completions import completion_routes
from .routes.count import count_routes
from .routes.docs import add_docs
from .routes.messages import message_routes
from .routes.models import model_routes
from .routes.page import Page
from .routes.responses import response_routes
from .routes.status import status_routes
from .settings import Settings

API = (
    chat_routes,
    completion_routes,
    response_routes,
    message_routes,
    model_routes,
    count_routes,
)


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The application around an engine.

    Args:
        engine: Answers calls.
        settings: The operator's.
    """
    app = FastAPI(
        title="mlx-qwenvl",
        version=__version__,
        docs_url=None,  # FastAPI's page would load its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lose the body
        lifespan=lambda _: engine.running(),
    )
    handle_errors(app)
    for routes in API:
        router = routes(engine, settings)
        # Clients are given the address with or without the version.
        app.include_router(router, prefix="/v1", responses={"4XX": {"description": "Refused"}})
        app.include_router(router, include_in_schema=False)

    add_docs(app)
    app.include_router(status_routes(engine))
    page = Page()
    app.include_router(page.routes(engine))

    app.add_middleware(_OnePath)
    app.add_middleware(Guard, settings=settings, is_open=page.is_asked_for)
    # The last to be added is the first to be met.
    app.add_middleware(Counting, metrics=engine.metrics)
    return app


class _OnePath:
    """Takes `/v1//models/` for `/v1/models`: base addresses come with and without a slash."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = re.sub("/{2,}", "/", scope["path"]).rstrip("/") or "/"
        await self._app(scope, receive, send)
