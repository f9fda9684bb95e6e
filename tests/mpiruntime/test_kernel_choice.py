"""All ranks take the kernels that rank 0 chose, and a machine is measured once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ollampi.kernels import choice, native
from ollampi.kernels.choice import FORMATS, Choice, counts
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.kernel_choice import choose_kernels, machine
from ollampi.mpiruntime.thread_world import run_threads

FOUND = Choice({"float32": 8, "bfloat16": 4, "q8": 512, "q4": 0})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count measurements, which all find the same."""
    calls: list[int] = []

    def measure() -> Choice:
        calls.append(1)
        return FOUND

    monkeypatch.setattr(choice, "measure", measure)
    return calls


def test_a_measurement_tries_every_format() -> None:
    found = choice.measure()
    assert set(found.most) == (set(FORMATS) if native.library() else set())
    assert all(count in (0, *counts(name)) for name, count in found.most.items())


@pytest.mark.parametrize("size", [1, 3])
def test_ranks_agree_and_measure_once(size: int, tmp_path: Path, measured: list[int]) -> None:
    def work(comm: Communicator) -> Choice:
        return choose_kernels(comm, tmp_path / "new" if comm.rank == 0 else None)

    for _ in range(2):
        assert run_threads(size, work) == [FOUND] * size
    assert len(measured) == size
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["kernels.json"]


def test_what_is_known_of_other_machines_stays(tmp_path: Path, measured: list[int]) -> None:
    (tmp_path / "kernels.json").write_text(json.dumps({"another": {"q8": 1}}))
    assert choose_kernels(Single(), tmp_path) == FOUND
    assert json.loads((tmp_path / "kernels.json").read_text()) == {"another": {"q8": 1}, machine(1): FOUND.most}


DAMAGED = ["", "[]", "{", '"x"', "null", "[" * 100_000]
OF_THIS = [[], 3, None, {"q8": -1}, {"q8": "8"}, {"q8": 3}, {"float64": 8}, {"q8": 1e99}, {"q8": None}]


@pytest.mark.parametrize("text", DAMAGED + [json.dumps({machine(1): value}) for value in OF_THIS])
def test_a_damaged_file_is_measured_anew(text: str, tmp_path: Path, measured: list[int]) -> None:
    (tmp_path / "kernels.json").write_text(text)
    assert choose_kernels(Single(), tmp_path) == FOUND
    assert choose_kernels(Single(), tmp_path) == FOUND
    assert len(measured) == 1


@pytest.mark.parametrize("deep", ["[" * 600 + "]" * 600, '{"q8": ' + "[" * 600 + "]" * 600 + "}"])
def test_nonsense_about_other_machines_goes(deep: str, tmp_path: Path, measured: list[int]) -> None:
    (tmp_path / "kernels.json").write_text(f'{{"another": {deep}, "a third": {{"q8": 1}}}}')
    assert choose_kernels(Single(), tmp_path) == FOUND
    assert json.loads((tmp_path / "kernels.json").read_text()) == {"a third": {"q8": 1}, machine(1): FOUND.most}


def test_what_is_no_file_is_not_opened(tmp_path: Path, measured: list[int]) -> None:
    os.mkfifo(tmp_path / "kernels.json")  # opening it would block for ever
    assert choose_kernels(Single(), tmp_path) == FOUND
    assert choose_kernels(Single(), tmp_path) == FOUND
    assert len(measured) == 1


def test_a_folder_that_cannot_be_had_is_no_error(tmp_path: Path, measured: list[int]) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", Path("/proc/none"), None):
        assert choose_kernels(Single(), folder) == FOUND
    assert len(measured) == 3


def test_people_read_where_torch_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is not None:
        assert FOUND.told("bfloat16").endswith(" in steps of up to 4 tokens, by torch's operators in larger ones")
        assert FOUND.told("q8").startswith("native kernels (")
        assert FOUND.told("q8").endswith(")")
        assert FOUND.told("q4").startswith("torch's operators, which are faster")
        assert [FOUND.is_native("bfloat16", count) for count in (1, 4, 5, 999)] == [True, True, False, False]
        assert FOUND.is_native("q8", 10**6)
        assert not FOUND.is_native("q4", 1)
    monkeypatch.setattr(native, "library", lambda: None)
    assert Choice({}).told("q8").startswith("torch's operators (")
    assert not Choice({}).is_native("q8", 1)
