"""/openapi.json, and /docs: the same as a page that needs nothing from anywhere else."""

import asyncio
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from fermata.edges.http.door import Door, public
from fermata.edges.http.errors import json_response

router = APIRouter(route_class=Door, include_in_schema=False)

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); }
h3 { margin: 2rem 0 0; font-size: 1rem; }
code, pre, .path { font-family: ui-monospace, monospace; font-size: .9em; }
.method { display: inline-block; min-width: 4.5em; font-weight: 700; }
table { border-collapse: collapse; margin: .5rem 0; width: 100%; }
td, th { border-bottom: 1px solid var(--line); padding: .2rem .8rem .2rem 0; text-align: left;
  vertical-align: top; }
td:first-child, th:first-child { white-space: nowrap; }
nav a { margin-right: 1em; }
"""


@router.get("/openapi.json")
@public
async def get_openapi(request: Request) -> Response:
    return json_response(await _read(request))


@router.get("/docs")
@public
async def get_docs(request: Request) -> Response:
    page = await asyncio.to_thread(render, await _read(request))
    return HTMLResponse(
        page, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
    )


async def _read(request: Request) -> dict[str, Any]:
    """The document. It takes a second to make the first time, so that happens beside the other requests."""
    document: dict[str, Any] = await asyncio.to_thread(request.app.openapi)
    return document


def render(document: dict[str, Any]) -> str:
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["other"])[0].lower()
            groups.setdefault(tag, []).append(_operation(method, path, operation))
    schemas = document["components"]["schemas"]
    groups["schemas"] = [_schema(name, schema) for name, schema in sorted(schemas.items())]
    title = f"{document['info']['title']} {document['info']['version']}"
    links = "".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in groups)
    sections = "".join(
        f'<h2 id="{escape(tag)}">{escape(tag.capitalize())}</h2>{"".join(items)}'
        for tag, items in groups.items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1>{_text(document['info'].get('description', ''))}"
        f'<p>The same for programs: <a href="/openapi.json">/openapi.json</a></p><nav>{links}</nav>'
        f"{sections}</body></html>"
    )


def _text(text: str) -> str:
    """Paragraphs, with the code in backquotes."""
    paragraphs = []
    for paragraph in text.strip().split("\n\n"):
        pieces = escape(paragraph).split("`")
        paragraphs.append(
            "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
        )
    return "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [
        f'<h3><span class="method">{method.upper()}</span> <span class="path">{escape(path)}</span></h3>',
        _text(operation.get("description") or operation.get("summary", "")),
    ]
    if operation.get("security") == []:
        parts.append("<p>Needs no API key.</p>")
    rows = [
        (
            f"{parameter['name']} ({parameter['in']}{', required' if parameter.get('required') else ''})",
            _type(parameter["schema"]),
            parameter.get("description", ""),
        )
        for parameter in operation.get("parameters", [])
    ]
    body = operation.get("requestBody")
    if body:
        word = "body" if body.get("required") else "body (optional)"
        rows.append((word, _content(body), ""))
    if rows:
        parts.append(_table(("Send", "Type", ""), rows))
    answers = [
        (status, _content(response), response.get("description", ""))
        for status, response in sorted(operation["responses"].items())
    ]
    parts.append(_table(("Answer", "Type", ""), answers))
    return "".join(parts)


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        (f"{field}{'' if field in required else ' (optional)'}", _type(inner), inner.get("description", ""))
        for field, inner in schema.get("properties", {}).items()
    ]
    head = f'<h3 id="schema-{escape(name)}">{escape(name)}</h3>'
    return head + _text(schema.get("description", "")) + _table(("Field", "Type", ""), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    """The middle column is HTML already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><td>{escape(first)}</td><td>{second}</td><td>{escape(third)}</td></tr>"
        for first, second, third in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _content(holder: dict[str, Any]) -> str:
    return ", ".join(
        _type(content["schema"]) if media == "application/json" else escape(media)
        for media, content in holder.get("content", {}).items()
        if "schema" in content
    )


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(word))}</code>" for word in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    if schema.get("type") == "array":
        return f"array of {_type(schema.get('items', {}))}"
    word = schema.get("format") or schema.get("type") or "anything"
    return escape(str(word))
