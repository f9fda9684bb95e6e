"""The file that keeps what was measured."""

import json
import os
from pathlib import Path

import pytest

from ollampi.mpiruntime.exchange_plan import BENEATH, SIZES, Choice
from ollampi.mpiruntime.exchange_table import UnfitTable, read_table, write_table

WORLD = {"hosts": [0, 0], "level": 0}
FIGURES = {Choice(BENEATH, 0): dict.fromkeys(SIZES, 1e-5)}


@pytest.mark.parametrize("number", ["1e999", f"1{'0' * 400}"])
@pytest.mark.parametrize("name", ["level", "8192"])
def test_numbers_beyond_all_bounds_are_damage(tmp_path: Path, name: str, number: str) -> None:
    path = tmp_path / "table.json"
    write_table(path, WORLD, FIGURES)
    assert read_table(path, WORLD) == FIGURES
    value = {"level": "0", "8192": "1e-05"}[name]
    before, found, behind = path.read_text().rpartition(f'"{name}": {value}')
    assert found
    path.write_text(f'{before}"{name}": {number}{behind}')
    with pytest.raises(UnfitTable, match="is damaged"):
        read_table(path, WORLD)


def test_what_can_be_no_table_is_not_replaced(tmp_path: Path) -> None:
    folder, pipe, large = tmp_path / "folder", tmp_path / "pipe", tmp_path / "large"
    folder.mkdir()
    os.mkfifo(pipe)
    large.write_bytes(bytes((1 << 20) + 1))
    device = tmp_path / "device"
    device.symlink_to("/dev/null")
    for path in (folder, pipe, large, device, Path("/"), Path(".")):
        before = path.lstat()
        with pytest.raises(UnfitTable, match="is no regular file of less than 1 MiB"):
            read_table(path, WORLD)
        with pytest.raises(OSError, match="it is something else"):
            write_table(path, WORLD, FIGURES)
        assert os.path.samestat(path.lstat(), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["device", "folder", "large", "pipe"]


def test_what_a_link_points_to_is_written(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    write_table(link, WORLD, FIGURES)
    assert link.is_symlink()
    assert json.loads(real.read_text())["world"] == WORLD
