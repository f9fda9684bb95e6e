"""Records of a sweep are found again by their keys, whatever a killed writer left."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweep_points import Load, Point, Server
from sweep_records import Record, Records, Repeat, merged, of_sweep, record_of

from ollampi.mpiruntime.errors import ConfigError

REPEAT = Repeat(2.0, [0.5, 0.6], [0.1, 0.2], 20, [1.0], [0.25], 0.1)
RECORD = Record(
    "k1", "demo", "abc", Point(Server(2, level="1"), Load(2, 8, 10)), [REPEAT], [[0, 1]], [10, 11], [20, 21]
)


def test_a_record_is_read_as_it_was_written() -> None:
    assert record_of(RECORD.line()) == RECORD


def test_records_of_all_writers_are_found(tmp_path: Path) -> None:
    other = replace(RECORD, key="k2")
    Records(tmp_path).add(RECORD)
    Records(tmp_path, "job").add(other)
    known = Records(tmp_path).read()
    assert known == {"k1": RECORD, "k2": other}
    assert of_sweep(known, ["k2", "k3", "k1"]) == [other, RECORD]


def test_nothing_is_known_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert Records(tmp_path / "nowhere").read() == {}


def test_a_line_that_was_cut_off_is_no_record_and_spoils_none(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.add(RECORD)
    path = tmp_path / "sweep.jsonl"
    path.write_text(path.read_text() + replace(RECORD, key="k2").line()[:-20])
    assert list(records.read()) == ["k1"]
    records.add(replace(RECORD, key="k3"))
    assert list(records.read()) == ["k1", "k3"]
    path.write_text(path.read_text() + '{"key": "k4"}\n[]\n"point"\n{"point": {"shards": 1}}\n')
    assert list(records.read()) == ["k1", "k3"]


def test_a_success_wins_over_failures_and_the_latest_of_them_counts(tmp_path: Path) -> None:
    records = Records(tmp_path)
    failed = Record("k1", "demo", "abc", RECORD.point, error="no")
    records.add(failed)
    records.add(replace(failed, error="still no"))
    assert records.read()["k1"].error == "still no"
    records.add(RECORD)
    records.add(failed)
    assert records.read() == {"k1": RECORD}


def test_a_record_is_whole_where_the_disk_takes_it_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:100]))
    Records(tmp_path).add(RECORD)
    assert Records(tmp_path).read() == {"k1": RECORD}


def test_one_sweep_at_a_time_measures_for_a_file(tmp_path: Path) -> None:
    with Records(tmp_path).alone():
        refused = f"another sweep is measuring in {tmp_path}; wait .* another folder=PATH"
        with pytest.raises(ConfigError, match=refused), Records(tmp_path).alone():
            pass
        with Records(tmp_path, "job").alone():
            Records(tmp_path).add(RECORD)
    with Records(tmp_path).alone():
        assert Records(tmp_path).read() == {"k1": RECORD}


def test_records_of_several_starts_are_one_with_all_repeats() -> None:
    def at(start: int, **changes: Any) -> Record:
        return replace(RECORD, key=f"k{start}", point=RECORD.point.at_start(start), **changes)

    other = replace(REPEAT, wall_s=3.0)
    assert record_of(at(1).line()) == at(1)
    assert merged([at(0), at(1, repeats=[other])]) == [replace(RECORD, key="k0", repeats=[REPEAT, other])]
    failed = at(1, repeats=[], error="no")
    assert merged([at(0), failed]) == [at(0)]
    assert merged([failed, at(2)]) == [replace(RECORD, key="k2")]
    assert [found.error for found in merged([failed, replace(failed, error="nor this")])] == ["no"]
