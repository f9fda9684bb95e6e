"""Answer the routes that need Ollama's cloud, which this server does not use, and speech, which no model here hears."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Any

from flask import Response, request
from werkzeug.datastructures import MultiDict
from werkzeug.formparser import FormDataParser

from ollampi.api.access import Permission
from ollampi.api.errors import ApiError, bad_request, shown
from ollampi.api.guard import whole_body
from ollampi.api.routes import Route
from ollampi.api.store.catalog import Store
from ollampi.api.stream import json_answer

MAX_FIELD_BYTES = 64 << 10
MAX_PARTS = 1000
_STATUS = {"cloud": {"disabled": True, "source": "config"}}
_STRING, _YES = {"type": "string"}, {"type": "boolean"}
_STATUS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "cloud": {
            "type": "object",
            "properties": {"disabled": _YES, "source": {"enum": ["none", "env", "config", "both"]}},
            "required": ["disabled", "source"],
        }
    },
    "required": ["cloud"],
}
_RECOMMENDATIONS: dict[str, Any] = {
    "type": "object",
    "properties": {"recommendations": {"type": "array", "items": {"type": "object"}}},
    "required": ["recommendations"],
}
_SPEECH: dict[str, Any] = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"model": _STRING, "file": {"type": "string", "format": "binary"}},
            "required": ["model", "file"],
        }
    }
}
_NO_CLOUD = "this server does not use Ollama's cloud; search and fetch with tools of the client"


def cloud_routes(store: Store) -> list[Route]:
    """Return the routes; models are looked up in `store`."""
    read, use, manage = Permission.READ, Permission.USE, Permission.MANAGE
    experimental, signed_out = "/api/experimental", {401: "nobody is signed in"}
    return [
        Route("GET", "/api/status", read, "whether the cloud is used", status, answer=_STATUS_SCHEMA),
        Route("POST", "/api/me", read, "who is signed in to the cloud", nobody, reasons=signed_out),
        Route("POST", "/api/signout", manage, "sign out of the cloud", done, answer=None),
        Route("DELETE", "/api/user/keys/<key>", manage, "sign out of the cloud", done, answer=None),
        Route("POST", f"{experimental}/web_search", use, "search in the cloud", no_cloud),
        Route("POST", f"{experimental}/web_fetch", use, "fetch a page through the cloud", no_cloud),
        Route(
            "GET", f"{experimental}/model-recommendations", read, "models of the cloud", none, answer=_RECOMMENDATIONS
        ),
        Route("POST", "/v1/audio/transcriptions", use, "speech to text", _speech(store), content=_SPEECH),
    ]


def status() -> Response:
    """Answer GET /api/status."""
    return json_answer(_STATUS)


def nobody() -> Response:
    """Answer POST /api/me; raise ApiError (401)."""
    raise ApiError(401, "unauthorized")


def done(**variables: str) -> Response:
    """Answer a request to sign out: nobody is signed in."""
    return Response(status=200, content_type="text/plain; charset=utf-8")


def no_cloud() -> Response:
    """Raise ApiError (403)."""
    raise ApiError(403, _NO_CLOUD)


def none() -> Response:
    """Answer GET /api/experimental/model-recommendations."""
    return json_answer({"recommendations": []})


def _speech(store: Store) -> Callable[[], Response]:
    """Return the view of POST /v1/audio/transcriptions."""

    def transcriptions() -> Response:
        """Raise ApiError (400, 404), ModelError."""
        name = _form(whole_body()).get("model", "")
        if not name:
            raise bad_request("model is required")
        model = store.find(name)
        raise bad_request(f"{shown(model.name.full)} does not support audio")

    return transcriptions


def _form(body: bytes) -> MultiDict[str, str]:
    """Return the fields of a form; what is no form has none. Raise HTTPException (413) where one is too long."""
    parser = FormDataParser(_in_memory, max_form_memory_size=MAX_FIELD_BYTES, max_form_parts=MAX_PARTS)
    return parser.parse(io.BytesIO(body), request.mimetype, len(body), request.mimetype_params)[1]


def _in_memory(
    total_content_length: int | None,
    content_type: str | None,
    filename: str | None,
    content_length: int | None = None,
) -> IO[bytes]:
    """Return where a file of a form goes, of which nothing is read; the names are Werkzeug's."""
    return io.BytesIO()
