"""`/`: a page that says what runs here and how to call it."""

from __future__ import annotations

import html
from string import Template

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from mlx_qwenvl import __version__

from ..engine import Engine
from ..wire import Json

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
VARY = {"Vary": "Accept"}
PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>mlx-qwenvl: $model</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
  body { max-width: 46rem; margin: 3rem auto; padding: 0 1rem }
  pre { overflow-x: auto; padding: 1rem; border: 1px solid; border-radius: .5rem }
</style>
<h1>$model</h1>
<p>mlx-qwenvl $version answers questions about pictures here. State: $state.</p>
<pre>curl $base/chat/completions -H 'Content-Type: application/json' -d '{
  "messages": [{"role": "user", "content": "Hello!"}]}'</pre>
<pre>from openai import OpenAI

client = OpenAI(base_url="$base", api_key="none")
reply = client.chat.completions.create(
    model="$model", messages=[{"role": "user", "content": "Hello!"}])
print(reply.choices[0].message.content)</pre>
<p><a href="/docs">All addresses</a> · <a href="/health">Health</a> ·
<a href="/metrics">Metrics</a></p>
""")


def page_routes(engine: Engine) -> APIRouter:
    """The route.

    Args:
        engine: What runs here.
    """
    router = APIRouter(include_in_schema=False)

    @router.head("/", include_in_schema=False)
    @router.get("/")
    async def page(request: Request) -> Response:
        facts = {"model": engine.name, "version": __version__, "state": engine.state}
        if "application/json" in request.headers.get("accept", ""):
            return Json(facts, headers=VARY)
        # The Host was checked at the door.
        base = f"{request.url.scheme}://{request.headers['host']}/v1"
        safe = {name: html.escape(value) for name, value in (facts | {"base": base}).items()}
        return Response(
            PAGE.substitute(safe),
            media_type="text/html; charset=utf-8",
            headers={"Content-Security-Policy": POLICY, **VARY},
        )

    return router
