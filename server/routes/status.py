"""`/health` and `/metrics`: how the server is, for programs that watch it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from ..engine import Engine
from ..errors import WAIT
from ..metrics import CONTENT_TYPE
from ..wire import Json


def status_routes(engine: Engine) -> APIRouter:
    """The routes.

    Args:
        engine: What is looked at.
    """
    router = APIRouter(tags=["status"])

    @router.head("/v1/health", include_in_schema=False)
    @router.get("/v1/health", include_in_schema=False)
    @router.head("/health", include_in_schema=False)
    @router.get("/health", responses={503: {"description": "Loading, ending or dead"}})
    async def health() -> Response:
        """Whether questions are answered: 200, or 503 while loading, ending or dead.

        A model that was let go while nobody asked counts as ready: the next question loads it.
        """
        is_well = engine.state in ("ready", "unloaded")
        body = {
            "status": "ok" if is_well else engine.state,
            "state": engine.state,
            "model": engine.name,
            "open_calls": engine.open_calls,
            "step_s": round(engine.step_s, 3),
            "crashes": engine.crash_count,
        }
        return Json(body, 200 if is_well else 503, {} if is_well else dict(WAIT))

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> Response:
        """Counters in Prometheus's text form."""
        return Response(engine.metrics.text(), media_type=CONTENT_TYPE)

    return router
