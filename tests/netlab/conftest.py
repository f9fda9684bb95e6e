"""Skip what needs a laboratory where there can be none."""

from __future__ import annotations

import pytest
from support.netlab import missing


@pytest.fixture(scope="session", autouse=True)
def possible() -> None:
    """Skip where this machine allows no laboratory."""
    if reason := missing(delay=True):
        pytest.skip(reason)
