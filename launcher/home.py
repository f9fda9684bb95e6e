"""Find the user's home, also where HOME is not set, and the model store in it."""

import os
import pwd
from collections.abc import Mapping
from pathlib import Path


def home(environ: Mapping[str, str]) -> Path | None:
    """Return HOME, else the home in the user database; None for a user whom it does not know, as in some containers."""
    try:
        return Path(environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def store_root(given: str | None, environ: Mapping[str, str]) -> Path | None:
    """Return the root of the model store, which need not be there: a given path, else ~/.ollama/models as for Ollama.

    None for a user without a home.
    """
    if given is not None:
        return Path(os.path.abspath(os.path.expanduser(given)))
    own = home(environ)
    return None if own is None else own / ".ollama" / "models"


def cache_folder(environ: Mapping[str, str]) -> Path | None:
    """Return the folder for what was measured of this machine; None for a user without a home."""
    own = home(environ)
    return None if own is None else own / ".cache" / "ollampi"
