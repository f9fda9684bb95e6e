"""Give a Slurm to the tests, or skip them where there can be none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.slurmlab import Slurm, lab, missing


@pytest.fixture(scope="package")
def slurm() -> Iterator[Slurm]:
    """Give a Slurm of three nodes, which tests leave as they found it; starting it takes longer than many of them."""
    if reason := missing():
        pytest.skip(reason)
    with lab() as made:
        yield made
