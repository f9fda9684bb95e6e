"""Show the models as Anthropic's /v1/models does, to clients that send Anthropic's header; the path is OpenAI's too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import RootModel

from ollampi.api.errors import bad_request, shown
from ollampi.api.model import Model
from ollampi.api.wires.ollama_answers import Answer
from ollampi.api.wires.openai_answers import ServedModel, ServedModels

DEFAULT_LIMIT, MAX_LIMIT = 20, 1000


class ListedModel(Answer):
    """GET /v1/models/MODEL."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str


class ListedModels(Answer):
    """GET /v1/models, a page."""

    data: list[ListedModel]
    first_id: str | None
    last_id: str | None
    has_more: bool


class EitherModel(RootModel[ServedModel | ListedModel]):
    """GET /v1/models/MODEL, as OpenAI or Anthropic has it."""


class EitherModels(RootModel[ServedModels | ListedModels]):
    """GET /v1/models, as OpenAI or Anthropic has it."""


def listed(name: str, model: Model) -> dict[str, Any]:
    """Return a model under the name that its client uses."""
    created = datetime.fromtimestamp(int(model.modified_at), UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": name, "display_name": name, "created_at": created}


def page(models: Sequence[Model], query: Mapping[str, str]) -> dict[str, Any]:
    """Return the page of models that a query asks for with limit, after_id, before_id; raise ApiError (400).

    An id that is not there, as that of a model deleted meanwhile, gives an empty page.
    """
    limit = _limit(query.get("limit", str(DEFAULT_LIMIT)))
    after, before = query.get("after_id", ""), query.get("before_id", "")
    if after and before:
        raise bad_request("after_id and before_id cannot both be given; send one of them")
    names = [model.full_name for model in models]
    if before:
        end = names.index(before) if before in names else 0
        start = max(0, end - limit)
        more = start > 0
    else:
        start = names.index(after) + 1 if after in names else len(names) if after else 0
        end = min(start + limit, len(names))
        more = end < len(names)
    data = [listed(model.full_name, model) for model in models[start:end]]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "first_id": first, "last_id": last, "has_more": more}


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MAX_LIMIT):
        raise bad_request(f"limit is {shown(text)!r}; it must be a number from 1 to {MAX_LIMIT}")
    return int(text)
