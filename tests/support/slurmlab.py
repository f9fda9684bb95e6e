"""Make a Slurm of virtual nodes out of one machine: munged, slurmctld and a slurmd for each node, on loopback.

    with lab() as slurm:
        job = slurm.submit(script, "model=demo")       sbatch, in slurm.folder unless told otherwise
        slurm.kill_node("n3"); slurm.start_node("n3")

Everything lives in a temporary folder, nothing in /etc is read. Laboratories bear others beside them: what was started
in one is known by SLURM_CONF in its environment, and its jobs have numbers of their own, after which MPI names shared
memory. At the end all of it is killed, by a process beside where this one is killed. Needs root and Debian's packages;
no systemd, no cgroups.
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support import slurmlab_reaper
from support.servers import free_port, wait_until

PACKAGES = "munge slurmctld slurmd slurm-client slurm-wlm-basic-plugins libpmix2"
UP_S, ENDED_S = 60.0, 60.0
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"}
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_CONFIGURATION = """\
ClusterName=slurmlab
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a job that is requeued waits until its credential has expired: 120 s otherwise
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
# nodes claim cores and memory that are not there, and each has its own /tmp for the pmix plugin
SlurmdParameters=config_overrides
TmpFS={folder}/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
JobRequeue=1
MinJobAge=3600
KillWait=10
SlurmctldTimeout=30
SlurmdTimeout=20
InactiveLimit=0
Waittime=0
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=500 State=UP OverSubscribe=NO
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 Gres=gpu:2"


def missing() -> str:
    """Return why there can be no laboratory here, "" where there can."""
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"a Slurm laboratory needs {', '.join(absent)}: apt-get install {PACKAGES}"
    return "" if os.geteuid() == 0 else "a Slurm laboratory needs root"


def has_pmix() -> bool:
    """Return whether Slurm's plugin for PMIx finds its library, by the name that only libpmix-dev ships."""
    return Path(f"/usr/lib/{platform.machine()}-linux-gnu/pmix2/lib/libpmix.so").exists()


@dataclass
class Slurm:
    """A cluster of the nodes n1, n2, ...; folder: what belongs to it, and where jobs are submitted."""

    folder: Path
    nodes: list[str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """Return the environment of its commands, which is also what jobs get."""
        name, _, value = slurmlab_reaper.mark(self.folder).partition("=")
        return {**{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}, name: value}

    def run(self, *line: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Return what a command of Slurm prints; raise CalledProcessError."""
        env = {**self.environ, **(environ or {})}
        where = cwd or self.folder / "work"
        return subprocess.run(
            line, check=True, stdout=subprocess.PIPE, text=True, env=env, cwd=where, timeout=60
        ).stdout

    def submit(self, *line: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> int:
        """Return the id of the job that sbatch makes of a line of options, script and arguments."""
        return int(self.run("sbatch", "--parsable", *line, environ=environ, cwd=cwd).split(";")[0])

    def job(self, number: int) -> dict[str, str]:
        """Return what scontrol knows of a job: JobState, ExitCode, BatchHost, Restarts and so on."""
        words = self.run("scontrol", "-o", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: int, within_s: float = ENDED_S) -> dict[str, str]:
        """Return what is known of a job once it is over."""
        wait_until(lambda: self.job(number)["JobState"] in OVER, within_s, f"job {number} to end: {self.job(number)}")
        return self.job(number)

    def processes(self, *marks: str) -> list[int]:
        """Return the processes that were started here, or those of them with one of `marks` in their environment."""
        return list(slurmlab_reaper.processes(self.folder, marks or None))

    def start(self, name: str, line: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        """Start a daemon; it stays in the foreground."""
        env = {**self.environ, **(environ or {})}
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                line, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )

    def start_node(self, node: str, hidden: Path | None = None) -> None:
        """Start the slurmd of a node; hidden: a folder that is empty there."""
        line = ["slurmd", "-D", "-N", node]
        if hidden is not None:
            script = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
            line = ["unshare", "--mount", "sh", "-c", script, str(hidden), *line]
        self.start(node, line, {"SLURMLAB_NODE": node})

    def kill_node(self, node: str) -> None:
        """Kill all that runs on a node, its slurmd included, as where its power fails."""
        daemon = self.daemons.pop(node)
        slurmlab_reaper.clear(self.folder, [f"SLURMLAB_NODE={node}", f"SLURMD_NODENAME={node}"], daemon.poll)
        daemon.wait()

    def wait_for_nodes(self) -> None:
        """Return once jobs can run on all nodes."""

        def are_up() -> bool:
            states = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], capture_output=True, text=True, env=self.environ)
            return states.stdout.split().count("idle") == len(self.nodes)

        wait_until(are_up, UP_S, f"the nodes to be idle; see {self.folder}")

    def close(self) -> None:
        """Kill all that was started here."""
        slurmlab_reaper.clear(self.folder, between=lambda: [each.poll() for each in self.daemons.values()])
        for daemon in self.daemons.values():
            daemon.wait()


@contextmanager
def lab(nodes: int = 3) -> Iterator[Slurm]:
    """Give a Slurm until the block ends."""
    with tempfile.TemporaryDirectory(prefix="slurmlab-") as name, _reaped(Path(name)):
        slurm = Slurm(Path(name), [f"n{i}" for i in range(1, nodes + 1)])
        _write(slurm)
        try:
            key, socket = slurm.folder / "munge.key", slurm.folder / "munge.socket"
            files = [f"--{kind}-file={slurm.folder / f'munge.{kind}'}" for kind in ("pid", "log", "seed")]
            slurm.start("munged", ["munged", "-F", "--force", f"--key-file={key}", f"--socket={socket}", *files])
            wait_until(socket.exists, UP_S, "munged")
            slurm.start("slurmctld", ["slurmctld", "-D"])
            for node in slurm.nodes:
                slurm.start_node(node)
            slurm.wait_for_nodes()
            yield slurm
        finally:
            slurm.close()


def _write(slurm: Slurm) -> None:
    """Write what the daemons need."""
    folder, host = slurm.folder, platform.node().split(".")[0]
    folder.chmod(0o755)
    ports: list[int] = []
    while len(ports) <= len(slurm.nodes):
        ports += [port] if (port := free_port()) not in ports else []
    rows = [_NODE.format(name=node, host=host, port=port) for node, port in zip(slurm.nodes, ports[1:], strict=True)]
    first = 1000 * random.randrange(1, 60000)
    text = _CONFIGURATION.format(host=host, folder=folder, first=first, ports=ports, nodes="\n".join(rows))
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    for number in range(2):  # what stands for a GPU: /dev/null's numbers
        os.mknod(folder / f"gpu{number}", 0o666 | 0o020000, os.makedev(1, 3))
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    for each in ["state", "work", *(f"{kind}.{node}" for kind in ("spool", "tmp") for node in slurm.nodes)]:
        (folder / each).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)


@contextmanager
def _reaped(folder: Path) -> Iterator[None]:
    """Have a process beside that clears up when this one ends."""
    line = [sys.executable, slurmlab_reaper.__file__, str(folder)]
    # a session of its own: what kills this process may kill its group
    with subprocess.Popen(line, stdin=subprocess.PIPE, start_new_session=True):
        yield
