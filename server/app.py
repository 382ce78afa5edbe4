"""The HTTP application: one model, one engine thread, OpenAI's chat completions.

Nothing but the engine thread touches MLX. Questions are answered one after another.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from mlx_qwenvl.engine.reply import Chunk, Reply
from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.vlm import QwenVL

from .schemas import ChatRequest

LOCAL_HOSTS = ["127.0.0.1", "localhost", "[::1]", "testserver"]


def create_app(vlm: QwenVL, engine: ThreadPoolExecutor) -> FastAPI:
    """The application around a model.

    Args:
        vlm: A model that was loaded in the engine's thread.
        engine: A pool of one thread.
    """
    app = FastAPI(title="mlx-qwenvl", docs_url="/docs", redoc_url=None)
    # A page in the browser must not reach a local server under a name of its own.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS)

    @app.exception_handler(QwenVLError)
    async def refuse(_: Request, error: QwenVLError) -> JSONResponse:
        return _error(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def refuse_body(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return _error(400, f"{field}: {first['msg']}" if field else str(first["msg"]))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {"id": vlm.name, "object": "model", "created": 0, "owned_by": "mlx-qwenvl"}
        return {"object": "list", "data": [entry]}

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(request: ChatRequest) -> Response:
        request.check()
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": vlm.name,
        }
        chunks = _in_engine(engine, vlm, request)
        # Awaited here, so that a bad request is a status and not a broken stream.
        first = await anext(chunks)
        if request.stream:
            return StreamingResponse(_events(head, first, chunks), media_type="text/event-stream")
        heard = [first] + [chunk async for chunk in chunks]
        return JSONResponse(head | _completion(Reply.of(heard, vlm.name)))

    return app


async def _in_engine(
    engine: ThreadPoolExecutor, vlm: QwenVL, request: ChatRequest
) -> AsyncIterator[Chunk]:
    """Chunks of an answer, each computed in the engine's thread."""
    loop = asyncio.get_running_loop()

    def begin() -> Iterator[Chunk]:
        return vlm.stream(messages=request.messages, **request.options())

    stream = await loop.run_in_executor(engine, begin)
    while (chunk := await loop.run_in_executor(engine, next, stream, None)) is not None:
        yield chunk


async def _events(
    head: dict[str, Any], first: Chunk, rest: AsyncIterator[Chunk]
) -> AsyncIterator[str]:
    yield _event(head, {"role": "assistant", "content": ""}, None)
    yield _event(head, {"content": first.text}, first.finish_reason)
    async for chunk in rest:
        yield _event(head, {"content": chunk.text}, chunk.finish_reason)
    yield "data: [DONE]\n\n"


def _event(head: dict[str, Any], delta: dict[str, str], finish_reason: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    body = head | {"object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _completion(reply: Reply) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    usage = reply.usage
    return {
        "object": "chat.completion",
        "choices": [choice],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
    }


def _error(status: int, message: str) -> JSONResponse:
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": body}, status_code=status)
