"""`POST /v1/tokenize` and `/v1/detokenize`: how many tokens something has, pictures included."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from ..engine import Engine
from ..schemas.common import check_model
from ..schemas.count import CountRequest, DetokenizeRequest
from ..settings import Settings
from ..stream import unless_gone
from ..wire import Json


def count_routes(engine: Engine, settings: Settings) -> APIRouter:
    """The routes that count and spell."""
    routes = APIRouter(tags=["Tokens"])

    @routes.post("/tokenize", response_model=None)
    async def tokenize(body: CountRequest, request: Request) -> Json:
        """Tokens of a conversation with its pictures, or of a text."""
        call = body.to_call(settings, engine.name)
        if body.plain is not None:
            # A long text takes its time, which belongs to nobody's stream.
            ids = await asyncio.to_thread(engine.tokenizer.encode, body.plain)
            image_tokens = video_tokens = 0
        else:
            prompt = await unless_gone(request, engine.prompt(call))
            ids, image_tokens = prompt.token_ids.tolist(), prompt.image_tokens
            video_tokens = prompt.video_tokens
        told: dict[str, Any] = {
            "count": len(ids),
            "image_tokens": image_tokens,
            "video_tokens": video_tokens,
            "max_model_len": engine.context,
            "tokens": ids,
        }
        if body.return_token_strs or body.with_pieces:
            pieces = [engine.tokenizer.decode([index]) for index in ids]
            told["token_strs"] = pieces
            if body.with_pieces:  # as llama.cpp gives them
                told["tokens"] = [
                    {"id": index, "piece": piece} for index, piece in zip(ids, pieces, strict=True)
                ]
        return Json(told)

    @routes.post("/detokenize", response_model=None)
    async def detokenize(body: DetokenizeRequest) -> Json:
        """Text of tokens, under vLLM's name and under llama.cpp's."""
        check_model(body.model, settings, engine.name)
        text = await asyncio.to_thread(engine.tokenizer.decode, body.tokens)
        return Json({"prompt": text, "content": text})

    return routes
