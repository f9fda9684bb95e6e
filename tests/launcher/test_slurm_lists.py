"""The lists that Slurm shortens are read as it writes them."""

from __future__ import annotations

import pytest

from ollampi.launcher.slurm_lists import counts_in, names_in
from ollampi.mpiruntime.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,12],gpu1", ["n08", "n09", "n10", "n12", "gpu1"]),
        ("rack[1-2]n[1-2]", ["rack1n1", "rack1n2", "rack2n1", "rack2n2"]),
        ("n[1,3]-ib,m-2", ["n1-ib", "n3-ib", "m-2"]),
    ],
)
def test_the_list_of_nodes_that_slurm_shortens(text: str, names: list[str]) -> None:
    assert names_in({"LIST": text}, "LIST") == names


def test_a_list_of_nodes_that_names_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="SLURM_JOB_NODELIST is '-x,n1', in which '-x' is no name"):
        names_in({"SLURM_JOB_NODELIST": "-x,n1"}, "SLURM_JOB_NODELIST")


@pytest.mark.parametrize(
    ("text", "counts"),
    [("4", [4]), ("2(x3)", [2, 2, 2]), ("2(x2),1", [2, 2, 1]), ("1,3(x2)", [1, 3, 3]), ("", [])],
)
def test_counts_are_read_as_slurm_writes_them(text: str, counts: list[int]) -> None:
    assert counts_in({"LIST": text}, "LIST") == counts


def test_counts_of_another_form_are_refused() -> None:
    with pytest.raises(ConfigError, match="2x3"):
        counts_in({"LIST": "2x3"}, "LIST")
