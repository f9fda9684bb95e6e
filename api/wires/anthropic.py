"""Offer Anthropic's routes: messages, and the count of their tokens."""

from __future__ import annotations

from flask import Response, g

from ollampi.api.access import Permission
from ollampi.api.completion import Completions
from ollampi.api.routes import EVENTS, Route
from ollampi.api.run import started
from ollampi.api.store.catalog import Store
from ollampi.api.stream import Form, json_answer
from ollampi.api.wires.anthropic_answers import AnsweredMessage, TokenCount
from ollampi.api.wires.anthropic_bodies import CountBody, MessagesBody
from ollampi.api.wires.anthropic_input import count_body, message_body
from ollampi.api.wires.anthropic_writer import Writer


def anthropic_routes(store: Store, completions: Completions) -> list[Route]:
    """Return Anthropic's routes."""

    def answer(body: MessagesBody) -> Response:
        """Answer POST /v1/messages; raise ApiError, EngineError."""
        run = started(completions.chat(message_body(body, store.find(body.model))))
        writer = Writer(run.ask.name, len(run.prompt.tokens), g.request_id)
        if body.stream:
            return run.growing(writer.line, Form(EVENTS, writer.failure))
        return json_answer(writer.object(run.whole()))

    def count(body: CountBody) -> Response:
        """Answer POST /v1/messages/count_tokens; raise ApiError, ModelError."""
        return json_answer({"input_tokens": completions.count(count_body(body, store.find(body.model)))})

    use, path = Permission.USE, "/v1/messages"
    return [
        Route("POST", path, use, "answer a conversation, as blocks", answer, MessagesBody, AnsweredMessage, EVENTS),
        Route("POST", f"{path}/count_tokens", use, "the tokens of a conversation", count, CountBody, TokenCount),
    ]
