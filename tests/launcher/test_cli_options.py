"""What commands share."""

from __future__ import annotations

import json

from ollampi.launcher.cli_options import json_text


def test_json_can_be_written_whatever_is_in_it() -> None:
    """As a job's name that is no UTF-8: Python has halves of surrogates for such bytes."""
    value = {"name": "a\udcffb", "text": "schön \n"}
    text = json_text(value)
    assert json.loads(text.encode()) == value
    assert "schön" in text
