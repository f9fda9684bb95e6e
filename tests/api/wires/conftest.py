"""Give the tests of other wires a model that calls tools, beside those of tests/api."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask.testing import FlaskClient

HERMES = (
    "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %} CALL {{ call.id }} {{ call.function.name }}"
    " {{ call.function.arguments | tojson }}{% endfor %}"
    "{% if message.name %} OF {{ message.name }} {{ message.tool_call_id }}{% endif %}"
    "{% if message.thinking %} THOUGHT {{ message.thinking }}{% endif %};{% endfor %}"
)


@pytest.fixture
def hermes(make_model, make_client, tmp_path: Path) -> FlaskClient:
    """Return a client of a server with the models `hermes`, which calls tools, and `sage`, which thinks too."""
    make_model(tmp_path / "hermes", HERMES, 4096)
    make_model(tmp_path / "sage", HERMES + "{# <think> enable_thinking #}", 4096)
    return make_client(tmp_path)


@pytest.fixture
def prompted(engine):
    """Return what makes the text of the prompt that the engine got last."""
    return lambda: engine.tokenizer.decode(engine.requests[-1].prompt, skip_special_tokens=False)
