"""A load for which hosts see different files is refused before anything is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.worlds import load_message

from ollampi.mpiruntime import needed
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.same_files import check_same, digests
from ollampi.mpiruntime.step import Check
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import survey


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
    ranks = [0, 1, 2]
    real = needed.digests

    def of_copy(place: Path, files: Any) -> dict[str, str]:
        copied = real(other, [other / file.name for file in files])
        return {str(folder / Path(path).name): digest for path, digest in copied.items()}

    def check(comm: Communicator) -> str:
        own = Runner(comm, survey(comm))
        load = load_message(folder)
        wanted = Check(0, load.path, load.dtype, 64, 16, 4, most_blocks=16)
        assert own.check(wanted).num_blocks == 16
        comm.collect(b"")
        monkeypatch.setattr(needed, "digests", real)
        comm.collect(b"")
        with monkeypatch.context() as patch:
            if comm.rank == odd:
                patch.setattr(own, "_memory", lambda c: _seeing(own, c, of_copy))
            with pytest.raises(ModelError) as caught:
                own.check(wanted)
        return str(caught.value)

    def _seeing(own: Runner, wanted: Check, seeing: Any) -> Any:
        found = Runner._memory(own, wanted)
        return type(found)(**{**vars(found), "files": seeing(folder, [folder / "model.safetensors"])})

    told = run_threads(len(ranks), check)
    assert len(set(told)) == 1
    assert f"see different files at {folder / 'model.safetensors'}" in told[0]
    assert f"rank {1 if odd == 0 else odd} on" in told[0]
