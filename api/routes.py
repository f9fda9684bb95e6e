"""Hold every route in one table: who may use it, what it reads and answers; the application is made from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response
from pydantic import BaseModel

from ollampi.api.access import Permission
from ollampi.api.guard import json_values
from ollampi.api.wires.body import Body, read_body

NDJSON, EVENTS = "application/x-ndjson", "text/event-stream"


@dataclass(frozen=True)
class Route:
    """One operation of the API.

    view: gets the body, where `body` says what it holds, and the path's variables by name; returns the answer.
    answer: what it returns, as a pydantic model or a JSON schema; None for an empty answer; for what is no JSON its
    content type, "" for text/plain. content: of a body that the view reads itself, OpenAPI's schemas by content type.
    stream: the content type of its answer while it grows, "" where it never does. reasons: statuses besides 200 and
    what is common to all, with what they mean. zstd: whether its body may be compressed so. query: the texts that the
    view reads from the query, which must be there.
    """

    method: str
    path: str
    permission: Permission
    summary: str
    view: Callable[..., Response]
    body: type[Body] | None = None
    answer: type[BaseModel] | dict[str, Any] | str | None = field(default_factory=lambda: {"type": "object"})
    stream: str = ""
    reasons: dict[int, str] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    zstd: bool = False
    query: tuple[str, ...] = ()

    @property
    def endpoint(self) -> str:
        """Return Flask's name for it."""
        return f"{self.method} {self.path}".replace(".", "_")


def install_routes(app: Flask, routes: Sequence[Route]) -> None:
    """Make `app` serve the routes; their permissions are kept under its configuration's ROUTES, by endpoint."""
    app.config["ROUTES"] = {route.endpoint: route for route in routes}
    for route in routes:
        app.add_url_rule(
            route.path, route.endpoint, _view(route), methods=[route.method], provide_automatic_options=False
        )


def _view(route: Route) -> Callable[..., Response]:
    """Return what Flask calls."""
    kind, view = route.body, route.view
    if kind is None:
        return view

    def with_body(**variables: str) -> Response:
        """Read the body and serve the request."""
        return view(read_body(kind, json_values()), **variables)

    return with_body
