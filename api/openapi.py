"""Describe the API as an OpenAPI 3.1 document, made from the table of routes; and a page that shows it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cached_property
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, request
from pydantic import BaseModel

from ollampi.api.access import Permission
from ollampi.api.docs_page import CONTENT_POLICY, docs_page
from ollampi.api.openapi_schemas import JSON, Components
from ollampi.api.routes import NDJSON, Route
from ollampi.api.stream import encode, text_answer
from ollampi.api.wires.ollama import OLLAMA_VERSION

_TEXT = "text/plain"
_VARIABLE = re.compile(r"<(?:\w+:)?(\w+)>")
_ABOUT = (
    "Ollama's API, and OpenAI's and Anthropic's. Bodies are read as JSON whatever their content type; fields that are"
    " not named here are ignored, and null counts as absent. HEAD works wherever GET does. Keys are asked for only"
    " where the server was given some (server.keys)."
)
_REASONS = {
    400: "the body, a field or the name of a model is not as it must be",
    401: "no key of this server was sent",
    403: "the key's role may not do this, or Host or Origin is not allowed (then without a body)",
    404: "there is no such model",
    413: "the body is too large",
    415: "the body is compressed",
    503: "busy, stopping, or the engine is away; try again",
    504: "the request's time was over",
}
_SCHEMES: JSON = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}


def openapi_document(routes: Iterable[Route], with_keys: bool) -> JSON:
    """Return the document; where the server asks for keys, routes that are not public say so."""
    components, paths = Components(), dict[str, JSON]()
    for route in routes:
        path = _VARIABLE.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, components, with_keys)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Ollampi", "version": OLLAMA_VERSION, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": dict(sorted(components.schemas.items())), "securitySchemes": _SCHEMES},
    }


def _operation(route: Route, components: Components, with_keys: bool) -> JSON:
    """Return what the document says of one route."""
    operation: JSON = {
        "operationId": re.sub(r"\W+", "_", route.endpoint).strip("_").lower(),
        "summary": route.summary,
        "x-permission": str(route.permission),
        "responses": _responses(route, components),
    }
    if places := [*((name, "path") for name in _VARIABLE.findall(route.path)), *((n, "query") for n in route.query)]:
        string = {"type": "string", "minLength": 1}
        operation["parameters"] = [{"name": n, "in": where, "required": True, "schema": string} for n, where in places]
    if route.body is not None:
        content: JSON = {"application/json": {"schema": components.of(route.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    elif route.content:
        operation["requestBody"] = {"required": True, "content": route.content}
    if with_keys and route.permission is not Permission.PUBLIC:
        operation["security"] = [{name: []} for name in _SCHEMES]
    return operation


def _responses(route: Route, components: Components) -> JSON:
    """Return the answers of a route by status."""
    fine = {"description": "the answer"} | ({"content": content} if (content := _content(route, components)) else {})
    responses: JSON = {"200": fine}
    for status, text in (dict.fromkeys(_common(route), "") | route.reasons).items():
        text = text or _REASONS.get(status, HTTPStatus(status).phrase.lower())
        responses[str(status)] = {"description": text}
        if status >= 400 and route.method != "HEAD":
            error: JSON = {"application/json": {"schema": components.error(route.path)}}
            if status == 404 and "<" in route.path:  # a variable that makes another path
                error[_TEXT] = {"schema": {"type": "string"}}
            responses[str(status)]["content"] = error
    return dict(sorted(responses.items()))


def _common(route: Route) -> list[int]:
    """Return the statuses of errors that a route has for what it is."""
    found = [403]
    if route.body is not None or route.content:
        found += [400, 413, 415]
    if route.permission is not Permission.PUBLIC:
        found += [401]
    if route.permission is Permission.USE:
        found += [404, 503, 504]
    if "<" in route.path or route.query:
        found += [400, 404]
    return found


def _content(route: Route, components: Components) -> JSON:
    """Return the content types of a route's answer with their schemas."""
    answer = route.answer
    if answer is None or route.method == "HEAD":
        return {}
    if isinstance(answer, str):
        return {answer or _TEXT: {"schema": {"type": "string"}}}
    schema = components.of(answer) if isinstance(answer, type) and issubclass(answer, BaseModel) else answer
    content: JSON = {"application/json": {"schema": schema}}
    if route.stream:
        content[route.stream] = {"schema": {"type": "string", "description": "the answer while it grows"}}
    if route.stream == NDJSON:  # what OpenAPI 3.2 calls itemSchema
        content[NDJSON]["x-itemSchema"] = {"anyOf": [schema, components.error(route.path)]}
    return content


class Documents:
    """The document and the page of one application, made when they are first asked for."""

    def __init__(self, app: Flask, with_keys: bool) -> None:
        self._app = app
        self._with_keys = with_keys

    def openapi(self) -> Response:
        """Answer GET /api/openapi.json."""
        text = encode(self._document)
        return _tagged(text_answer(text), text)

    def page(self) -> Response:
        """Answer GET /api/docs."""
        response = Response(self._page, content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = CONTENT_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return _tagged(response, self._page)

    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi_document(self._app.config["ROUTES"].values(), self._with_keys)

    @cached_property
    def _page(self) -> str:
        return docs_page(self._document)


def _tagged(response: Response, text: str) -> Response:
    """Return the response, or 304 where its client has the same text."""
    response.set_etag(hashlib.sha256(text.encode()).hexdigest()[:32])
    response.make_conditional(request)
    return response


def openapi_routes(app: Flask, with_keys: bool) -> list[Route]:
    """Return the routes of the document and its page, which are for everybody."""
    documents, public = Documents(app, with_keys), Permission.PUBLIC
    same = {304: "it has not changed"}
    return [
        Route("GET", "/api/openapi.json", public, "this document", documents.openapi, reasons=same),
        Route("GET", "/api/docs", public, "this document to read", documents.page, answer="text/html", reasons=same),
    ]
