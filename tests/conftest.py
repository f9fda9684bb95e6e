"""Share the cores where two processes run the tests, and keep the collector of garbage away from what is imported.

OpenMP's threads of two processes would wait for each other.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Generator

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while modules are imported, nor among what they made later: a third of a second each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()
