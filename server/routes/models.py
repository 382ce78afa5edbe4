"""`GET /v1/models`: the one model that is served here."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from ..engine import Engine
from ..errors import UnknownModel
from ..schemas.common import ANY_MODEL
from ..settings import Settings


def model_routes(engine: Engine, settings: Settings) -> APIRouter:
    """The routes that say which model answers."""
    routes = APIRouter(tags=["OpenAI"])
    begin = int(time.time())

    def entry() -> dict[str, Any]:
        """The model in OpenAI's form, and with the names that Anthropic's clients read."""
        return {
            "id": engine.name,
            "object": "model",
            "created": begin,
            "owned_by": "mlx-qwenvl",
            "max_model_len": engine.context,
            "type": "model",
            "display_name": engine.name,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(begin)),
        }

    @routes.get("/models", response_model=None)
    @routes.head("/models", include_in_schema=False)
    async def models() -> dict[str, Any]:
        """The model that is served, as a list of one."""
        return {
            "object": "list",
            "data": [entry()],
            "has_more": False,
            "first_id": engine.name,
            "last_id": engine.name,
        }

    @routes.get("/models/{name:path}", response_model=None)
    @routes.head("/models/{name:path}", include_in_schema=False)
    async def model(name: str) -> dict[str, Any]:
        """One model by its name."""
        if name not in (engine.name, ANY_MODEL):
            raise UnknownModel(f"this server has no such model; it serves {engine.name}", "model")
        return entry()

    return routes
