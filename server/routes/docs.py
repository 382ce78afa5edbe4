"""`GET /docs`: the API as a page, made here from what the API says of itself.

The usual pages load their scripts from elsewhere; this one loads nothing and runs nothing.
"""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #8884;"
    "padding:.2em .6em;text-align:left;vertical-align:top}code{font-size:.95em}"
    "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}"
)


def add_docs(app: FastAPI) -> None:
    """Add the page to an application."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(page(app.openapi()), headers=policy)


def page(described: dict[str, Any]) -> str:
    """A page about an OpenAPI description."""
    schemas = described.get("components", {}).get("schemas", {})
    title = escape(f"{described['info']['title']} {described['info']['version']}")
    routes = "".join(
        _route(path, method, operation, schemas)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style><h1>{title}</h1>"
        '<p>The same for programs: <a href="/openapi.json">openapi.json</a></p>'
        f"{routes}</html>"
    )


def _route(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = _resolved(body.get("schema", {}), schemas)
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' *' if name in required else ''}</td>"
        f"<td>{escape(_kind(field, schemas))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    table = f"<table><tr><th>Field</th><th>Value</th></tr>{rows}</table>" if rows else ""
    said = escape(operation.get("description") or operation.get("summary") or "")
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{said}</p>{table}"


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    found: dict[str, Any] = schemas.get(name, {}) if name else schema
    return found


def _kind(field: dict[str, Any], schemas: dict[str, Any]) -> str:
    """What a field takes, in a few words."""
    choices = [each for each in field.get("anyOf", []) if each.get("type") != "null"]
    if choices:
        return " or ".join(dict.fromkeys(_kind(each, schemas) for each in choices))
    if "$ref" in field:
        names = _resolved(field, schemas).get("properties", {})
        return f"object of {', '.join(names)}"
    kind = str(field.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(field.get('items', {}), schemas)}"
    least = field.get("minimum", field.get("exclusiveMinimum"))
    most = field.get("maximum", field.get("exclusiveMaximum"))
    bounds = [f"from {least}"] * (least is not None) + [f"to {most}"] * (most is not None)
    return " ".join([kind, *bounds])
