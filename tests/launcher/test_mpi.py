"""Test how mpirun is called, with faked version texts and tables of environments."""

import os
from pathlib import Path

import pytest
from support.mpi_texts import INTEL, MPICH, OPEN_MPI_4, OPEN_MPI_5

from ollampi.launcher.home import home
from ollampi.launcher.hosts import listed
from ollampi.launcher.mpi import Mpi, Vendor, command, environment, link_folder, link_library, parse_version
from ollampi.mpiruntime.errors import ConfigError

PROGRAM = ["python", "-m", "ollampi", "serve"]


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (OPEN_MPI_5, (Vendor.OPEN_MPI, (5, 0, 11))),
        (OPEN_MPI_4, (Vendor.OPEN_MPI, (4, 1, 4))),
        ("mpirun (Open MPI) 5.1.0rc1\n", (Vendor.OPEN_MPI, (5, 1, 0))),
        ("prterun (PRRTE) 3.0.14\n", (Vendor.OPEN_MPI, (5,))),
        (MPICH, (Vendor.MPICH, (4, 0, 2))),
        (INTEL, (Vendor.INTEL, (2021, 11))),
        ("mpirun: a script of our cluster\n", None),
        ("", None),
    ],
)
def test_parse_version(text: str, known: tuple[Vendor, tuple[int, ...]] | None) -> None:
    assert parse_version(text) == known


@pytest.mark.parametrize("ranks", [0, -1])
def test_command_refuses_an_empty_world(ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot start {ranks} ranks: ask for at least 1"):
        command(Mpi("mpirun", Vendor.MPICH, (5,)), ranks, PROGRAM)


QUIET = {"OMPI_MCA_btl": "^ofi", "OMPI_MCA_osc": "^ucx"}
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.mark.parametrize(
    ("vendor", "root", "hosts", "base", "added"),
    [
        (Vendor.OPEN_MPI, False, None, {}, {**QUIET, "OMPI_MCA_mtl": "^ofi"}),
        (Vendor.OPEN_MPI, True, None, {}, {**QUIET, "OMPI_MCA_mtl": "^ofi", **ROOT}),
        (Vendor.OPEN_MPI, False, None, {"SLURM_JOB_NUM_NODES": "2"}, QUIET),
        (Vendor.OPEN_MPI, False, None, {"SLURM_JOB_NUM_NODES": "1"}, {**QUIET, "OMPI_MCA_mtl": "^ofi"}),
        (Vendor.OPEN_MPI, True, "a:2,b:2", {}, {**QUIET, **ROOT}),
        (Vendor.OPEN_MPI, False, "localhost:4", {}, {**QUIET, "OMPI_MCA_mtl": "^ofi"}),
        (Vendor.OPEN_MPI, False, "a", {"OMPI_MCA_btl": "tcp,self"}, {"OMPI_MCA_osc": "^ucx"}),
        (Vendor.OPEN_MPI, True, "a,b", {**QUIET, **ROOT}, {}),
        (Vendor.MPICH, True, None, {"LD_LIBRARY_PATH": "/opt/lib"}, {}),
        (Vendor.INTEL, True, None, {}, {}),
        (Vendor.INTEL, False, None, {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}, {}),
        (Vendor.INTEL, False, "a:2,b:2", {"SLURM_JOB_ID": "7"}, {"I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "off"}),
        (Vendor.INTEL, False, "a", {"SLURM_JOB_ID": "7", "I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "on"}, {}),
    ],
)
def test_environment(
    vendor: Vendor, root: bool, hosts: str | None, base: dict[str, str], added: dict[str, str]
) -> None:
    named = None if hosts is None else listed(hosts)
    assert environment(Mpi("mpirun", vendor, (5,)), root, {"HOME": "/h", **base}, named) == added


NETWORK = {"OMPI_MCA_btl_tcp_if_include": "eth1", "UCX_NET_DEVICES": "eth1", "FI_TCP_IFACE": "eth1"}


@pytest.mark.parametrize("vendor", [Vendor.MPICH, Vendor.INTEL, Vendor.OPEN_MPI])
def test_the_network_is_named_as_each_mpi_wants_it_unless_the_user_has(vendor: Vendor) -> None:
    base = {"HOME": "/h", **QUIET, "OMPI_MCA_mtl": "^ofi"}
    assert environment(Mpi("mpirun", vendor, (5,)), False, base, None, "eth1") == NETWORK
    base["UCX_NET_DEVICES"] = "mlx5_0:1"
    found = environment(Mpi("mpirun", vendor, (5,)), False, base, None, "eth1")
    assert found == {name: value for name, value in NETWORK.items() if name != "UCX_NET_DEVICES"}


def test_open_mpi_is_given_a_home_where_there_is_none() -> None:
    assert environment(Mpi("mpirun", Vendor.OPEN_MPI, (5,)), False, {})["HOME"] == str(home({}))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "/home/u/.cache/ollampi/mpich"),
        ("/opt/lib:/usr/lib", "/home/u/.cache/ollampi/mpich:/opt/lib:/usr/lib"),
        ("/opt/lib:/home/u/.cache/ollampi/mpich", "/home/u/.cache/ollampi/mpich:/opt/lib"),
    ],
)
def test_environment_lends_debians_mpich_its_name(before: str, after: str) -> None:
    mpi = Mpi("mpirun.mpich", Vendor.MPICH, (4, 0, 2), "/usr/lib/libmpich.so.12")
    base = {"HOME": "/home/u", "LD_LIBRARY_PATH": before}
    assert environment(mpi, True, base) == {"LD_LIBRARY_PATH": after, "MPI4PY_MPIABI": "mpich"}


def test_link_library_makes_renews_and_keeps_the_link(tmp_path: Path) -> None:
    base = {"HOME": str(tmp_path)}
    link = link_folder(base) / "libmpi.so.12"
    for library in ("/old/libmpich.so.12", "/new/libmpich.so.12", "/new/libmpich.so.12"):
        link_library(Mpi("mpirun", Vendor.MPICH, (4,), library), base)
        assert os.readlink(link) == library


def test_link_library_does_nothing_for_others(tmp_path: Path) -> None:
    link_library(Mpi("mpirun", Vendor.MPICH, (5,)), {"HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_link_library_says_what_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match="cannot make the link"):
        link_library(Mpi("mpirun", Vendor.MPICH, (4,), "/x"), {"HOME": str(tmp_path / "home")})
