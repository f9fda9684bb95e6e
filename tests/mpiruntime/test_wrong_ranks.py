"""A rank that computes wrong is taken out where others can take over."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.placements import Job, alone, ask
from support.spoiling import flip, raw_bytes
from support.worlds import InStages, place

from ollampi.mpiruntime import runner as runner_module
from ollampi.mpiruntime.checkup import Checkup
from ollampi.mpiruntime.communicator import Communicator
from ollampi.mpiruntime.hosted import Models
from ollampi.mpiruntime.runner import Runner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "a")


@pytest.mark.parametrize(
    ("size", "ranks", "bad", "lies"),
    [
        (3, [[1, 2]], 2, [[0, 1]]),
        (3, [[0, 1]], 0, [[1, 2]]),  # rank 0 still coordinates
        (2, [[0], [1]], 1, [[0]]),
        (2, [[0, 1]], 1, None),
        (1, [[0]], 0, None),
    ],
)
def test_a_rank_that_computes_wrong_is_taken_out(
    folder: Path, size: int, ranks: list[list[int]], bad: int, lies: list[list[int]] | None
) -> None:
    """Its answers end with an error that says so; those that come later are right, and the job is ready again."""
    runners = dict[int, Runner]()
    asked = [ask(1, "a", folder, 9, 10**6), *([ask(2, "a", folder, 9, 10**6)] if len(ranks) > 1 else [])]
    client = InStages([place(100, "a", folder, ranks=ranks)], asked, [ask(3, "a", folder, 9)])
    ticks = itertools.count(1)
    seen: list[list[tuple[int, str]]] = []
    spoilt: list[int] = []

    class Tested(Job):
        def _look(self, runner: Runner, models: Models) -> None:
            super()._look(runner, models)
            self.health.check_s = 1.0
            checkup = self.__dict__.setdefault("checkup", Checkup(runner, models, self.health, lambda: next(ticks)))
            checkup.look()
            seen.append(self.health.reasons(0.0))
            if self.health.tests["passed"] >= 4 and not spoilt and runners[bad]._models:
                spoilt.append(bad)
                held = next(iter(runners[bad]._models.values()))
                flip(next(raw_bytes(held.decoder.head.tensors()[0])), 9)
            over = self.health.tests["failed"] >= 3 or (lies is not None and self.statuses[bad] == "left")
            if over and client.open == {m["id"] for m in asked} & client.open:
                for message in asked:
                    client.messages.put({"op": "cancel", "id": message["id"]})

    plain = runner_module.Runner.__init__

    def noting(self: Runner, comm: Communicator, *given: Any, **named_: Any) -> None:
        plain(self, comm, *given, **named_)
        runners[comm.rank] = self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module.Runner, "__init__", noting)
        job = Tested(size, client)
    fault = "the weights of the output head are not what was loaded: bad memory?"
    assert any((bad, fault) in reasons for reasons in seen)
    if lies is None:
        assert job.lies == {"a": ranks}
        assert any("no rank can take over" in why or "is the last rank" in why for _, why in seen[-1])
        return
    ends = [job.client.last(m["id"]) for m in asked]
    wrong = [end for end in ends if end["kind"] == "error"]
    assert len(wrong) == 1
    assert (wrong[0]["code"], f"rank {bad} computes wrong ({fault})" in wrong[0]["message"]) == ("unavailable", True)
    assert job.client.tokens(3) == alone(folder, 9, 6)
    assert (job.lies, job.statuses[bad]) == ({"a": lies}, "left")
    assert job.health.reasons(0.0) == []  # now: the last look may have been before
