"""Offer OpenAI's route /v1/responses, without stored answers."""

from __future__ import annotations

from flask import Response

from ollampi.api.access import Permission
from ollampi.api.completion import Completions
from ollampi.api.routes import EVENTS, Route
from ollampi.api.run import started
from ollampi.api.stream import Form, json_answer
from ollampi.api.wires.openai_answers import ResponseObject
from ollampi.api.wires.responses_bodies import ResponsesBody
from ollampi.api.wires.responses_input import chat_body
from ollampi.api.wires.responses_writer import Writer


def responses_routes(completions: Completions) -> list[Route]:
    """Return the route."""

    def respond(body: ResponsesBody) -> Response:
        """Answer POST /v1/responses; raise ApiError, EngineError."""
        run, writer = started(completions.chat(chat_body(body))), Writer(body)
        if body.stream:
            return run.growing(writer.line, Form(EVENTS, writer.failure))
        return json_answer(writer.object(run.whole()))

    path, summary = "/v1/responses", "answer a conversation, as items"
    return [
        Route("POST", path, Permission.USE, summary, respond, ResponsesBody, ResponseObject, EVENTS, zstd=True),
    ]
