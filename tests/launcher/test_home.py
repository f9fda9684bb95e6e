"""Test that a missing HOME is no surprise."""

import os
import pwd
from pathlib import Path

import pytest

from ollampi.launcher.home import cache_folder, home
from ollampi.launcher.mpi import link_folder
from ollampi.mpiruntime.errors import ConfigError


def test_home_is_the_variable_or_the_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    assert home({"HOME": "/h"}) == Path("/h")
    mine = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert home({}) == home({"HOME": ""}) == mine
    assert link_folder({}).is_relative_to(mine)
    assert cache_folder({"HOME": "/h"}) == Path("/h/.cache/ollampi")


def test_a_user_without_any_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert home({}) is None
    assert cache_folder({}) is None
    with pytest.raises(ConfigError, match="set HOME to a folder"):
        link_folder({})
