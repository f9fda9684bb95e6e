"""Make hosts out of one machine: namespaces with a network between them that has a rate and a delay.

    with lab(hosts=3, rate_mbit=1000, delay_us=50) as net:
        line, env = net.mpirun([1, 2, 1], program)     1, 2 and 1 ranks, the first on host h1
        net.counted()                                  bytes that each host has sent and received

A host is a process that sleeps in namespaces of its own (network, name of the host, mounts); it dies with the thread
that made it. At the end all that runs there is killed, by a process beside where this one is killed, and the devices go
with the last process. Nothing has a name outside, so laboratories of several processes do not meet. Needs root, `ip`,
`nsenter`, `unshare`; with a rate `tc`, with a delay a C compiler and /dev/net/tun.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ollampi.launcher.mpi import Vendor, detect
from support import netlab_reaper

RELAY = Path(__file__).with_name("netlab_relay.c")
_START = "hostname $0 && mount --bind $1 /etc/hosts && mount -t tmpfs tmpfs /dev/shm && ip link set lo up"
_AGENT = """#!/bin/sh
# mpirun calls this for ssh: [options] ADDRESS command...
while [ "${{1#-}}" != "$1" ]; do shift; done
case $1 in
{cases}
esac
shift
exec nsenter -t "$pid" -n -u -m -- /bin/sh -c "$*"
"""


def missing(delay: bool = False) -> str:
    """Return why there can be no laboratory here, "" where there can; delay: whether packets shall take time."""
    wanted = ["ip", "tc", "nsenter", "unshare", "mount", *(["cc"] if delay else [])]
    absent = [name for name in wanted if shutil.which(name) is None]
    if os.geteuid() != 0:
        return "a network laboratory needs root"
    if absent:
        return f"a network laboratory needs {', '.join(absent)}"
    if delay and not os.path.exists("/dev/net/tun"):
        return "a network laboratory with a delay needs /dev/net/tun"
    if subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "a network laboratory needs namespaces, which this kernel or container refuses"
    return "" if detect(None).vendor is Vendor.OPEN_MPI else "a network laboratory needs Open MPI"


@dataclass(frozen=True)
class Lab:
    """Hosts h1, h2, ... with the addresses 10.77.0.1, 10.77.0.2, ... on eth0; pids: of the processes that hold them.

    switch: the process that holds the switch between them, None where packets are relayed.
    """

    pids: list[int]
    agent: Path
    switch: int | None = None

    def inside(self, host: int, program: Sequence[str]) -> list[str]:
        """Return the line that runs a program on a host; hosts count from 0."""
        return _mortal(["nsenter", "-t", str(self.pids[host]), "-n", "-u", "-m", "--", *program])

    def run(self, host: int, *program: str) -> str:
        """Return what a program prints on a host; raise CalledProcessError."""
        return subprocess.run(self.inside(host, program), check=True, stdout=subprocess.PIPE, text=True).stdout

    def counted(self) -> list[tuple[int, int]]:
        """Return the bytes that each host has sent and received since it was made."""
        return [self._counted(pid) for pid in self.pids]

    def cut(self, host: int) -> None:
        """Take a host from the network."""
        self.run(host, "ip", "link", "set", "eth0", "down")

    def drop(self, host: int) -> None:
        """Let no packet from or to a host pass the switch any more; its interface stays up."""
        port = ["ip", "link", "set", f"p{host + 1}", "nomaster"]
        subprocess.run(["nsenter", "-t", str(self.switch), "-n", *port], check=True)

    def mpirun(self, ranks: Sequence[int], program: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return the line and the environment that run a program, ranks[i] times on host i; started on the first."""
        hosts = ",".join(f"10.77.0.{i + 1}:{count}" for i, count in enumerate(ranks) if count)
        line = [detect(None).mpirun, "--host", hosts, "--bind-to", "none", "-n", str(sum(ranks)), *program]
        return self.inside(0, line), self.environment()

    def environment(self) -> dict[str, str]:
        """Return the environment in which mpirun starts ranks on these hosts, and they talk by the network."""
        mca = {"pml": "ob1", "btl": "self,sm,tcp", "btl_tcp_if_include": "10.77.0.0/24", "mtl": "^ofi", "osc": "^ucx"}
        # Open MPI does not know that the hosts share cores: ranks that wait must let others run
        ours = {f"OMPI_MCA_{name}": value for name, value in {**mca, "mpi_yield_when_idle": "1"}.items()}
        ours |= {"PRTE_MCA_plm_ssh_agent": str(self.agent), "PRTE_MCA_prte_tmpdir_base": "/dev/shm"}
        ours |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return {"HOME": "/", **os.environ, **ours}

    @staticmethod
    def _counted(pid: int) -> tuple[int, int]:
        """Return the bytes that a host has sent and received."""
        rows = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/net/dev").read_text().splitlines() if ":" in row)
        fields = next(row for name, row in rows.items() if name.strip() == "eth0").split()
        return int(fields[8]), int(fields[0])


@contextmanager
def lab(hosts: int, rate_mbit: float = 0, delay_us: float | None = None, mtu: int = 1500) -> Iterator[Lab]:
    """Give a laboratory until the block ends; rate_mbit: of each host's sending side, 0 for no limit.

    delay_us: of each packet, one way, through a process that relays them, whose own time (some 10 us) is added; None
    for none.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netlab-")))
        table = "".join(f"10.77.0.{i} h{i}\n" for i in range(1, hosts + 1))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{table}")
        held = partial(_held, stack.enter_context(_reaped(folder)), folder / "hosts")
        pids = [stack.enter_context(held(f"h{i}")) for i in range(1, hosts + 1)]
        switch = None
        if delay_us is None:
            switch = stack.enter_context(held("switch"))
            _join(pids, switch, rate_mbit)
        else:
            stack.enter_context(_relayed(pids, folder, rate_mbit, delay_us, mtu))
        cases = "\n".join(f"10.77.0.{i}|h{i}) pid={pid};;" for i, pid in enumerate(pids, 1))
        agent = folder / "agent"
        agent.write_text(_AGENT.format(cases=cases))
        agent.chmod(0o700)
        yield Lab(pids, agent, switch)


@contextmanager
def _reaped(folder: Path) -> Iterator[Callable[[str], None]]:
    """Give what names a network namespace to the process that clears it when this one ends."""
    line = [sys.executable, netlab_reaper.__file__, str(folder)]
    # a session of its own: what kills this process may kill its group
    with subprocess.Popen(line, stdin=subprocess.PIPE, text=True, bufsize=1, start_new_session=True) as reaper:
        assert reaper.stdin is not None
        yield lambda space: print(space, file=reaper.stdin, flush=True)


@contextmanager
def _held(tell: Callable[[str], None], table: Path, name: str) -> Iterator[int]:
    """Give the process that holds a host, with its name and its table of hosts, until the block ends.

    tell: is told its network namespace.
    """
    program = [
        "unshare",
        "--net",
        "--uts",
        "--mount",
        "sh",
        "-c",
        f"{_START} && echo ready && exec sleep infinity",
        name,
        str(table),
    ]
    with _until_ready(program) as process:
        space = os.readlink(f"/proc/{process.pid}/ns/net")
        tell(space)
        try:
            yield process.pid
        finally:
            netlab_reaper.clear(space, process.poll)  # a process that nobody waits for would stay


@contextmanager
def _relayed(pids: list[int], folder: Path, rate_mbit: float, delay_us: float, mtu: int) -> Iterator[None]:
    """Join hosts by a process that relays their packets until the block ends."""
    relay = folder / "relay"
    subprocess.run(["cc", "-std=c11", "-O2", "-o", relay, RELAY], check=True)
    with _until_ready([str(relay), str(delay_us), str(rate_mbit), str(mtu), *map(str, pids)]):
        yield


@contextmanager
def _until_ready(program: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Give a process that has said that it is ready, and end it; it dies with this one too."""
    with subprocess.Popen(_mortal(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"{program[0]} did not start; its messages are above"
            yield process
        finally:
            process.kill()


def _mortal(program: list[str]) -> list[str]:
    """Return the line of a program that is killed when the thread that starts it ends."""
    return [sys.executable, "-c", _DIE_WITH, str(os.getpid()), *program]


_DIE_WITH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""  # prctl(2): PR_SET_PDEATHSIG, which stays over exec


def _join(pids: list[int], switch: int, rate_mbit: float) -> None:
    """Join hosts by a bridge, with a limit on what each sends."""

    def inside(pid: int, *words: str) -> None:
        """Run a program in the network namespace of a process."""
        subprocess.run(["nsenter", "-t", str(pid), "-n", *words], check=True)

    inside(switch, "ip", "link", "add", "br0", "type", "bridge")
    inside(switch, "ip", "link", "set", "br0", "up")
    for i, pid in enumerate(pids, 1):
        ends = ["eth0", "netns", str(pid), "type", "veth", "peer", "name", f"p{i}"]
        inside(switch, "ip", "link", "add", *ends)
        inside(switch, "ip", "link", "set", f"p{i}", "master", "br0", "up")
        inside(pid, "ip", "addr", "add", f"10.77.0.{i}/24", "dev", "eth0")
        inside(pid, "ip", "link", "set", "eth0", "up")
        if rate_mbit:  # small messages feel the limit only with a small bucket; too small a one slows large ones
            bucket = ["rate", f"{rate_mbit}mbit", "burst", "6kb" if rate_mbit <= 1000 else "64kb", "latency", "100ms"]
            inside(pid, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *bucket)
