"""Find the user's home, also where HOME is not set."""

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
