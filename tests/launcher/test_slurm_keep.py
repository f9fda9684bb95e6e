"""Ranks that end are started again, until they are told to end or keep failing; what they print goes on and is seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
from support.servers import wait_until

from ollampi.launcher import slurm_keep
from ollampi.launcher.slurm_keep import Told, keep
from ollampi.launcher.slurm_output import Output
from ollampi.mpiruntime.errors import ConfigError

TERM, USR1 = signal.SIGTERM, signal.SIGUSR1


@dataclass
class Start:
    """How a start goes: whether it served, its status, what it printed, and the signal that came meanwhile."""

    served: bool
    status: int
    printed: str = ""
    port_taken: bool = False
    failed: bool = False
    told: signal.Signals | None = None


@dataclass
class Fake:
    """Ranks that go as they are told, and what is seen of them."""

    starts: list[Start]
    sent: set[signal.Signals] = field(default_factory=set)
    attempts: list[int] = field(default_factory=list)
    is_ready = port_taken = failed = False
    said = ""

    def build(self, attempt: int) -> tuple[Sequence[str], Mapping[str, str]]:
        self.attempts.append(attempt)
        return [], {}

    def begin(self) -> None:
        self.is_ready = self.port_taken = self.failed = False

    def settle(self) -> None:
        """Nothing is under way."""

    def reasons(self) -> str:
        return self.said

    def run(self, line: Sequence[str], environ: Mapping[str, str]) -> int:
        start = self.starts.pop(0)
        self.is_ready, self.port_taken, self.failed = start.served, start.port_taken, start.failed
        self.said = start.printed
        self.sent |= {start.told} if start.told else set()
        return start.status

    def keep(self, all_answer: bool = True) -> int:
        return keep(self.build, cast(Output, self), cast(Told, self), lambda: all_answer)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_keep, "_PAUSE_S", 0.0)


@pytest.mark.parametrize("told", [TERM, USR1])
def test_ranks_that_were_told_to_end_are_not_started_again(told: signal.Signals) -> None:
    ranks = Fake([Start(True, 137), Start(True, 0, told=told)])
    assert ranks.keep() == 0
    assert ranks.attempts == [0, 1]


def test_ranks_that_served_are_started_again_however_often() -> None:
    ranks = Fake([*[Start(True, 137)] * 20, Start(True, 1, told=TERM)])
    assert ranks.keep() == 0
    assert len(ranks.attempts) == 21


def test_status_0_is_an_end_only_where_all_nodes_are_there() -> None:
    assert Fake([Start(True, 0)]).keep() == 0
    gone = Fake([Start(True, 0), Start(True, 0, told=TERM)])
    assert gone.keep(all_answer=False) == 0
    assert gone.attempts == [0, 1]


def test_it_gives_up_after_three_starts_that_never_served_with_the_first_error() -> None:
    early = [Start(False, 137, printed, failed=True) for printed in ("first", "second", "third")]
    with pytest.raises(ConfigError, match=r"ended 3 times before they served, at last with status 137.*\nfirst"):
        Fake([Start(True, 137), *early]).keep()


def test_what_a_user_can_mend_is_not_tried_again() -> None:
    ranks = Fake([Start(False, 1)])
    with pytest.raises(ConfigError, match="refused to start, for the reason above"):
        ranks.keep()
    assert ranks.attempts == [0]


def test_a_port_that_was_taken_meanwhile_is_no_failure() -> None:
    ranks = Fake([*[Start(False, 1, port_taken=True)] * 5, Start(True, 0)])
    assert ranks.keep() == 0
    assert len(ranks.attempts) == 6


def test_a_signal_before_the_first_start_starts_nothing() -> None:
    ranks = Fake([], sent={TERM})
    assert ranks.keep() == 0
    assert ranks.attempts == []


PRINTS = """
import os, subprocess, sys
from ollampi.launcher.slurm_output import Output, say
seen = []
output = Output(lambda: seen.append("ready"))
subprocess.run([sys.executable, "-c", "print('banner'); print('serving at http://127.0.0.1:1')"])
subprocess.run([sys.executable, "-c", "import sys; print('ollampi: cannot listen on x:1: in use', file=sys.stderr)"])
say("of its own")
subprocess.run([sys.executable, "-c", "import sys; print('no end', end='', file=sys.stderr)"])
output.settle()
print()
print(seen, output.is_ready, output.port_taken, output.failed, output.reasons())
output.begin()
print(output.is_ready, output.port_taken, repr(output.reasons()))
output.close()
print("over")
"""


def test_what_children_print_goes_on_and_is_seen() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS], env=env(), check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "banner",
        "serving at http://127.0.0.1:1",
        "ollampi: cannot listen on x:1: in use",
        "ollampi job: of its own",
        "no end",
        "['ready'] True True False ollampi: cannot listen on x:1: in use",
        "False False ''",
        "over",
    ]


TOLD = """
import os, signal, sys
from ollampi.launcher.slurm_keep import Told
told = Told()
script = "trap 'echo got USR1; exit 5' USR1; echo begun; while :; do sleep 0.05; done"
print(told.run(["sh", "-c", script], os.environ), *sorted(told.sent))
"""


def test_a_signal_goes_on_to_what_starts_the_ranks() -> None:
    with subprocess.Popen([sys.executable, "-c", TOLD], env=env(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(USR1)
        assert process.stdout.read() == f"got USR1\n5 {USR1}\n"


STARTS = """
import os, sys
from ollampi.launcher.slurm_keep import Told
Told().run([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"], os.environ)
"""


def test_what_starts_the_ranks_dies_with_this_process() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS], env=env(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{child}"), 30, "the child to end")


def env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
