"""Log lines that begin with the id of the request that they are about."""

from __future__ import annotations

import logging

from flask import g, has_app_context


class _RequestIds(logging.Filter):
    """Gives each record `request`: the id of the request of this thread and a blank, or nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: no record is held back."""
        number = g.get("request_id", "") if has_app_context() else ""
        record.request = f"{number} " if number else ""
        return True


def log_with_ids() -> None:
    """Send what this process logs to stderr, with the time, the level and the request's id."""
    handler = logging.StreamHandler()
    handler.addFilter(_RequestIds())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(request)s%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
