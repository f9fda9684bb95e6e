"""A load for which hosts see different files is refused before anything is read."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.worlds import lead, load_message

from ollampi.mpiruntime import needed
from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.same_files import check_same, digests
from ollampi.mpiruntime.step import Check
from ollampi.mpiruntime.thread_world import run_threads


def seen(folder: Path) -> list[str]:
    """Return the digests of a folder's files in the order of their names."""
    return list(digests(folder, folder.glob("*.safetensors")).values())


def test_copies_have_the_same_digests_whenever_they_were_made(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=True)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    os.utime(copy / "config.json", (1, 1))
    assert len(seen(folder)) > 3
    assert seen(copy) == seen(folder)


@pytest.mark.parametrize("place", [0, 9, 20_000, -1])
def test_a_file_that_differs_has_another_digest(tmp_path: Path, place: int) -> None:
    folder = write_checkpoint(tmp_path / "m")
    before = seen(folder)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    config, tensors = seen(folder)
    assert (config == before[0], tensors == before[1]) == (True, False)


def test_the_first_rank_and_file_that_differ_are_named() -> None:
    same = {"/m/config.json": "a", "/m/x.safetensors": "b"}
    check_same(["one", "two"], [same, dict(same)])
    with pytest.raises(CheckpointError, match=r"^rank 0 on a and rank 2 on b see different files at /m/x.safetensors"):
        check_same(["a", "a", "b", "b"], [same, same, {**same, "/m/x.safetensors": "c"}, {}])
    with pytest.raises(CheckpointError, match=r"rank 1 on b see different files at /m/y.safetensors"):
        check_same(["a", "b"], [same, {**same, "/m/y.safetensors": "c"}])


@pytest.mark.parametrize("odd", [0, 2])
def test_every_rank_refuses_a_load_for_which_one_sees_other_files(
    tmp_path: Path, odd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = write_checkpoint(tmp_path / "m"), write_checkpoint(tmp_path / "other", seed=1)
    real, plain = needed.digests, Runner._memory

    def of_copy(place: Path, files: Any) -> dict[str, str]:
        copied = real(other, [other / file.name for file in files])
        return {str(folder / Path(path).name): digest for path, digest in copied.items()}

    def seeing_others(own: Runner, wanted: Check) -> Any:
        found = plain(own, wanted)
        files = of_copy(folder, [folder / "model.safetensors"]) if own.comm.rank == odd else found.files
        return replace(found, files=files)

    def check(own: Runner) -> str:
        load = load_message(folder)
        wanted = Check(0, load.path, load.dtype, 64, 16, 4, most_blocks=16)
        assert own.lead_check(wanted).num_blocks == 16
        monkeypatch.setattr(Runner, "_memory", seeing_others)
        with pytest.raises(ModelError) as caught:
            own.lead_check(wanted)
        return str(caught.value)

    told = run_threads(3, lambda comm: lead(comm, check))[0]
    assert told is not None
    assert f"see different files at {folder / 'model.safetensors'}" in told
    assert f"rank {1 if odd == 0 else odd} on" in told
