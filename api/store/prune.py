"""Remove from a store what nothing names any more."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

from ollampi.api.errors import ApiError
from ollampi.api.store.blobs import PARTIAL, Blobs
from ollampi.api.store.digest import Digest, parse_digest
from ollampi.api.store.files import DEAD_S, age_s, is_dead_temporary
from ollampi.api.store.lease import holder_of
from ollampi.api.store.manifest import Manifest
from ollampi.api.store.references import manifest_files, named_digests
from ollampi.api.store.views import Views, view_name
from ollampi.mpiruntime.errors import ModelError

KEEPING = ".keeping-"  # begins the names of leases on blobs that are about to be named
GRACE_S = 3600.0  # for uploaded blobs that a create will name
_TICK_S = 1.0  # some file systems keep whole seconds
_log = logging.getLogger(__name__)


def prune(root: Path, blobs: Blobs, views: Views, freed: set[Digest]) -> None:
    """Remove blobs that no manifest names, and what dead writers left; the caller is the one writer. Raise OSError.

    Blobs that were `freed` just now go at once, others after a grace. None goes that a lease keeps, or that came after
    a lease was taken: its holder may have written it. OLLAMA_NOPRUNE keeps all blobs.
    """
    views.keep_only({_view_of(path) for path in manifest_files(root)})
    if os.environ.get("OLLAMA_NOPRUNE", "").strip().strip("\"'").lower() not in ("", "0", "f", "false"):
        return
    leases = _leases(blobs.root)
    kept = named_digests(root, blobs.root).union(*(digests for _, digests in leases))
    first_taken = min((taken for taken, _ in leases), default=math.inf)
    for path in _files(blobs.root):
        digest = _digest(path.name)
        if digest is not None:
            if digest not in kept and _may_go(path, digest in freed, first_taken):
                path.unlink(missing_ok=True)
                _log.info("removed %s, which no model names", digest)
        elif is_dead_temporary(path) or (path.name.endswith(PARTIAL) and age_s(path) > DEAD_S):
            path.unlink(missing_ok=True)


def _may_go(path: Path, freed: bool, first_taken: float) -> bool:
    """Return whether a blob that nothing names is old enough; times of files are all the file server's."""
    try:
        written = path.stat().st_mtime
    except FileNotFoundError:
        return False
    return written < first_taken - _TICK_S and (freed or age_s(path) > GRACE_S)


def _leases(folder: Path) -> list[tuple[float, set[Digest]]]:
    """Return when live leases were taken and what they keep; remove the leases of dead processes."""
    found = []
    for path in _files(folder):
        holder = holder_of(path) if path.name.startswith(KEEPING) else None
        if holder is not None and holder.is_stale:
            path.unlink(missing_ok=True)
        elif holder is not None:
            kept = {digest for text in holder.content if (digest := _digest(text)) is not None}
            found.append((holder.taken, kept))
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Return what lies in a folder; nothing where it is not there."""
    with contextlib.suppress(FileNotFoundError):
        return iter([Path(entry.path) for entry in os.scandir(folder) if not entry.is_dir()])
    return iter(())


def _view_of(path: Path) -> str:
    """Return the name of a manifest's view; "" for a damaged manifest, whose view can be made again."""
    try:
        return view_name(Manifest.parse(path.read_bytes()))
    except (FileNotFoundError, ModelError):
        return ""


def _digest(text: str) -> Digest | None:
    try:
        return parse_digest(text)
    except ApiError:
        return None
