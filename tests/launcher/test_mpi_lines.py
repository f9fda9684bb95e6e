"""The line that starts a world, for each MPI and each way to name its hosts and to bind its ranks."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ollampi.launcher.binding import Binding, Bound, chosen_binding, most_on_a_host
from ollampi.launcher.hosts import chosen_hosts, listed
from ollampi.launcher.mpi import Mpi, Vendor, command, environment
from ollampi.mpiruntime.errors import ConfigError

PROGRAM = ["python", "-m", "ollampi", "serve"]
MPIS = {
    "5": (Vendor.OPEN_MPI, (5, 0, 11)),
    "starter": (Vendor.OPEN_MPI, (5,)),
    "4": (Vendor.OPEN_MPI, (4, 1, 4)),
    "mpich": (Vendor.MPICH, (4, 0, 2)),
    "intel": (Vendor.INTEL, (2021, 11)),
}
NEW, OLD = "--map-by :OVERSUBSCRIBE --bind-to none", "--oversubscribe --bind-to none"
OPEN_MPI_FILE, HYDRA_FILE, PLAIN_FILE = "a slots=3\nb slots=1\n", "a:3\nb:1\n", "a\nb\n"
LINES = [  # MPI, --host or the text of a hostfile, what stands before the program
    ("5", None, f"{NEW} -n 4"),
    ("starter", None, f"{NEW} -n 4"),
    ("4", None, f"{OLD} -n 4"),
    ("mpich", None, "-n 4"),
    ("intel", None, "-n 4"),
    ("5", "a:2,b:2", f"{NEW} --host a:2,b:2 -n 4"),
    ("4", "a:2,b:2", f"{OLD} --host a:2,b:2 -n 4"),
    ("mpich", "a:2,b:2", "-hosts a:2,b:2 -n 4"),
    ("intel", "a:2,b:2", "-hosts a,b -ppn 2 -n 4"),
    ("5", "a,b", f"{NEW} --host a,b -n 4"),
    ("mpich", "a,b", "-hosts a,b -n 4"),
    ("intel", "a,b", "-hosts a,b -n 4"),
    ("intel", "a:3,b:1", "-host a -n 3 python -m ollampi serve : -host b -n 1"),
    ("intel", "a:8,b:1", "-host a -n 4"),
    ("5", OPEN_MPI_FILE, f"{NEW} --hostfile FILE -n 4"),
    ("4", OPEN_MPI_FILE, f"{OLD} --hostfile FILE -n 4"),
    ("mpich", OPEN_MPI_FILE, "-hosts a:3,b:1 -n 4"),
    ("intel", OPEN_MPI_FILE, "-host a -n 3 python -m ollampi serve : -host b -n 1"),
    ("5", HYDRA_FILE, f"{NEW} --host a:3,b:1 -n 4"),
    ("4", HYDRA_FILE, f"{OLD} --host a:3,b:1 -n 4"),
    ("mpich", HYDRA_FILE, "-f FILE -n 4"),
    ("intel", HYDRA_FILE, "-machinefile FILE -n 4"),
    ("5", PLAIN_FILE, f"{NEW} --hostfile FILE -n 4"),
    ("mpich", PLAIN_FILE, "-f FILE -n 4"),
    ("intel", PLAIN_FILE, "-f FILE -n 4"),
    ("intel", "a\na\nb\nb\n", "-hosts a,b -ppn 2 -n 4"),
]


@pytest.mark.parametrize(("mpi", "given", "line"), LINES, ids=lambda text: repr(text))
def test_the_line_for_each_mpi_and_way_to_name_hosts(tmp_path: Path, mpi: str, given: str | None, line: str) -> None:
    file = None
    if given is not None and given.endswith("\n"):
        (tmp_path / "hosts").write_text(given)
        file, given = str(tmp_path / "hosts"), None
    found = command(Mpi("mpirun", *MPIS[mpi]), 4, PROGRAM, chosen_hosts(given, file))
    assert found == ["mpirun", *line.replace("FILE", str(file)).split(), *PROGRAM]


@pytest.mark.parametrize(
    ("mpi", "bound", "words"),
    [
        ("5", "core", "--map-by slot:PE=3:OVERSUBSCRIBE --bind-to core"),
        ("5", "numa", "--map-by numa:OVERSUBSCRIBE --bind-to numa:overload-allowed"),
        ("5", "none", "--map-by :OVERSUBSCRIBE --bind-to none"),
        ("4", "core", "--oversubscribe --map-by slot:PE=3 --bind-to core"),
        ("4", "numa", "--oversubscribe --map-by numa --bind-to numa:overload-allowed"),
        ("4", "none", "--oversubscribe --bind-to none"),
        ("mpich", "core", "-bind-to core:3"),
        ("mpich", "numa", "-bind-to numa"),
        ("mpich", "none", "-bind-to none"),
        ("intel", "core", "I_MPI_PIN=on I_MPI_PIN_DOMAIN=auto:compact"),
        ("intel", "numa", "I_MPI_PIN=on I_MPI_PIN_DOMAIN=numa"),
        ("intel", "none", "I_MPI_PIN=off"),
    ],
)
def test_ranks_are_bound_in_the_words_of_each_mpi(mpi: str, bound: str, words: str) -> None:
    one = Mpi("mpirun", *MPIS[mpi])
    binding = Binding(Bound(bound), 3)
    line = command(one, 2, PROGRAM, None, binding)
    added = environment(one, False, {"HOME": "/h"}, None, None, binding)
    told = [f"{name}={value}" for name, value in added.items() if name.startswith("I_MPI")]
    assert shlex.join([*told, *line]) == shlex.join(
        [*words.split(), "mpirun", "-n", "2", *PROGRAM]
        if mpi == "intel"
        else ["mpirun", *words.split(), "-n", "2", *PROGRAM]
    )


def test_what_the_user_set_of_intel_mpi_stays() -> None:
    base = {"HOME": "/h", "I_MPI_PIN": "off"}
    found = environment(Mpi("mpirun", *MPIS["intel"]), False, base, None, None, Binding(Bound.CORE))
    assert found == {"I_MPI_PIN_DOMAIN": "auto:compact"}


SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "3(x2)"}


@pytest.mark.parametrize(
    ("ranks", "hosts", "environ", "most"),
    [
        (4, None, {}, 4),
        (4, "a:2,b:2", {}, 2),
        (4, "a:3,b:3", {}, 3),
        (5, "a,b", {}, 3),
        (1, "a:8,b:8", {}, 1),
        (6, None, SLURM, 3),
    ],
)
def test_cores_are_shared_out_over_the_ranks_of_the_fullest_host(
    ranks: int, hosts: str | None, environ: dict[str, str], most: int
) -> None:
    named = None if hosts is None else listed(hosts)
    assert environ or most_on_a_host(ranks, named) == most
    assert chosen_binding("core", ranks, named, environ, 13) == Binding(Bound.CORE, 13 // most)


def test_other_bindings_ask_for_no_cores() -> None:
    assert chosen_binding(None, 99, None, {}, 1) is None
    assert chosen_binding("none", 99, None, {}, 1) == Binding(Bound.NONE)
    assert chosen_binding("numa", 99, None, {}, 1) == Binding(Bound.NUMA)


def test_too_few_cores_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot give 3 ranks of a host cores of their own: there are 2; use --bind"):
        chosen_binding("core", 6, listed("a:3,b:3"), {}, 2)
