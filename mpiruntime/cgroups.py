"""Find the cgroups that limit this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def limiting(controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Iterator[tuple[int, Path]]:
    """Yield version (1 or 2) and folder of this process's own groups of a controller and of those above them."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):  # in a container only the root may be there, which is then the own one
            if number == "0":
                yield 2, root / folder
            elif controller in controllers.split(","):
                yield 1, root / controller / folder
