"""The nodes of a Slurm job, their tasks, and which of them answer."""

from __future__ import annotations

from threading import Event

import pytest

from ollampi.launcher import slurm_nodes
from ollampi.launcher.slurm_nodes import Node, allocation, answering, task_counts
from ollampi.mpiruntime.errors import ConfigError

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]"}


@pytest.mark.parametrize(
    ("environ", "counts"),
    [
        ({"SLURM_NTASKS": "5", "SLURM_TASKS_PER_NODE": "2(x2),1"}, [2, 2, 1]),
        ({"SLURM_NTASKS_PER_NODE": "2", "SLURM_TASKS_PER_NODE": "2(x3)"}, [2, 2, 2]),
        ({"SLURM_TASKS_PER_NODE": "8(x3)"}, [1, 1, 1]),  # of cores, where nobody asked for tasks
    ],
)
def test_each_node_has_the_tasks_that_were_asked_for(environ: dict[str, str], counts: list[int]) -> None:
    made = allocation({**JOB, **environ, "SLURM_CPUS_PER_TASK": "3"})
    assert [node.tasks for node in made.nodes] == counts
    assert (made.ranks, made.cpus_per_task) == (sum(counts), 3)


def test_fewer_slots_than_tasks_are_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"gave 4 slots \(2\(x2\)\) on 2 nodes for 8 tasks; .*--ntasks-per-node"):
        task_counts({"SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "2(x2)"}, 2)


def test_outside_a_job_it_says_how_to_submit_one() -> None:
    with pytest.raises(ConfigError, match="sbatch"):
        allocation({})


def test_nodes_that_do_not_answer_are_left_out_and_what_others_lack_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_nodes, "_OTHERS_S", 0.1)
    nodes = [Node("n1", 2), Node("n2", 2), Node("n3", 1), Node("n4", 1)]

    def ask(name: str, over: Event) -> list[str] | None:
        if name == "n3":
            assert over.wait(60)  # until nobody waits for it any more
        return {"n1": [], "n2": ["/model"]}.get(name)

    found, lacks = answering(nodes, ask)
    assert found == nodes[:2]
    assert lacks == {"n2": ["/model"]}


def test_nodes_are_told_in_their_order_whichever_answers_first() -> None:
    nodes, second_answered = [Node("n1", 1), Node("n2", 1)], Event()

    def ask(name: str, over: Event) -> list[str] | None:
        if name == "n2":
            second_answered.set()
        assert second_answered.wait(60)
        if name == "n1":
            assert not over.wait(0.05)  # the second is taken note of first
        return ["/model"]

    found, lacks = answering(nodes, ask)
    assert found == nodes
    assert list(lacks) == ["n1", "n2"]
