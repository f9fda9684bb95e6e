"""`ollampi verify`: look at the blobs of the model store on disk, without a server."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence

from ollampi.api.names import Name, parse_name
from ollampi.api.store.local import LocalStore
from ollampi.api.store.verify import OK, Finding, verify
from ollampi.launcher.given import chosen
from ollampi.launcher.home import store_root
from ollampi.launcher.words import human_size
from ollampi.mpiruntime.errors import ConfigError, ModelError


def findings(models: Sequence[str], store: str | None = None) -> Iterator[Finding]:
    """Yield what is found of the blobs of some models, or of all; raise ConfigError, ModelError."""
    value = chosen((), os.environ).get("store")
    root = store_root(store or (value if isinstance(value, str) else None), os.environ)
    if root is None:
        raise ConfigError("there is no home to look for a model store in; give --store or set OLLAMA_MODELS")
    if not root.is_dir():
        raise ConfigError(f"there is no model store {root}; give another with --store or OLLAMA_MODELS")
    local = LocalStore(root, is_read_only=True)
    seen: set[Finding] = set()
    names: list[Name | None] = [_name(text) for text in models]
    for name in names or [None]:
        for finding in verify(local, name):
            if finding not in seen:
                seen.add(finding)
                yield finding


def line(finding: Finding, as_json: bool) -> str:
    """Return one line about a finding; of a damaged blob it has both digests and both sizes."""
    if as_json:
        return json.dumps(dataclasses.asdict(finding))
    models = ", ".join(finding.models)
    if finding.digest is None:
        return f"{finding.state}: {finding.text} ({models})"
    if finding.state == OK:
        return f"ok: {finding.digest} {human_size(finding.size)} ({models})"
    found = f", found {finding.found} with {finding.found_size} bytes" if finding.found else ""
    return f"{finding.state}: {finding.digest} with {finding.size} bytes{found}{finding.text}; pull again: {models}"


def _name(text: str) -> Name:
    """Return a name of the command line; raise ModelError."""
    name = parse_name(text)
    if name is None:
        raise ModelError(f"{text!r} is no name of a model; write [host/][namespace/]model[:tag]")
    return name
