"""Give a Slurm to the tests of a file, or skip them where there can be none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.slurmlab import Slurm, lab, missing


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Give a Slurm of three nodes."""
    if reason := missing():
        pytest.skip(reason)
    with lab() as made:
        yield made
