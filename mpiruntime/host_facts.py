"""Tell what a host gives a rank: cores, memory, GPUs, limits, and the versions of what is installed."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import ollampi
from ollampi.kernels import native
from ollampi.mpiruntime.cores import usable_cores
from ollampi.mpiruntime.world import free_memory, own_memory, total_memory

Facts = dict[str, Any]
PACKAGES = ("mpi4py", "numpy", "torch", "safetensors", "tokenizers", "llguidance", "gguf", "msgpack")
_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_GPU_S = 20.0  # nvidia-smi takes seconds where no process holds the driver
_ASK = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits")


def host_facts(environ: Mapping[str, str]) -> Facts:
    """Return what this host is like as plain values: sizes in bytes, None where there is no limit. Not collective.

    gpus: those of the driver; torch_gpus: how many torch sees.
    """
    cores = len(os.sched_getaffinity(0))
    shm = _disk(Path("/dev/shm"))
    return {
        "host": socket.gethostname(),
        "cores": cores,
        "usable_cores": usable_cores(environ, cores),
        "all_cores": os.cpu_count() or cores,
        "load": os.getloadavg()[0],
        "memory_total": total_memory(),
        "memory_free": free_memory(),
        "memory_own": own_memory(),
        "gpus": _gpus(),
        "torch_gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "shm_total": shm[0],
        "shm_free": shm[1],
        "open_files": _limit(resource.RLIMIT_NOFILE),
        "locked_memory": _limit(resource.RLIMIT_MEMLOCK),
        "infiniband": os.path.isdir("/dev/infiniband"),
        "ports": _num_ports(),
        "python": platform.python_version(),
        "ollampi": ollampi.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "kernels": "" if native.library() is None else native.LEVEL_NAMES[native.level()],
    }


def parse_gpus(text: str) -> list[dict[str, Any]]:
    """Return the GPUs that nvidia-smi lists, memory in bytes; lines that are none are left out."""
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines()]
    return [
        {"name": name, "memory_total": int(total) << 20, "memory_free": int(free) << 20, "driver": driver}
        for name, total, free, driver in (row for row in rows if len(row) == 4)
        if total.isdigit() and free.isdigit()
    ]


def _gpus() -> list[dict[str, Any]]:
    """Return the GPUs of this host, none where its driver does not tell."""
    if shutil.which(_ASK[0]) is None:
        return []
    try:
        done = subprocess.run(_ASK, capture_output=True, text=True, timeout=_GPU_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpus(done.stdout)


def _disk(folder: Path) -> tuple[int, int]:
    """Return the bytes of a file system and those that are free, zeros where there is none."""
    try:
        found = shutil.disk_usage(folder)
    except OSError:
        return 0, 0
    return found.total, found.free


def _limit(kind: int) -> int | None:
    """Return the soft limit of this process, None for none."""
    soft = resource.getrlimit(kind)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _num_ports() -> int:
    """Return how many ports there are for who listens where it likes, as MPI does; 0 where the kernel does not tell."""
    try:
        first, last = map(int, _PORTS.read_text().split())
    except (OSError, ValueError):
        return 0
    return last - first + 1


def _version(name: str) -> str:
    """Return the version of an installed package, "" for none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
