"""Test the loop that starts ranks again, with programs that play mpirun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from support.kept import SOURCE, failing, fronts, rank_0
from support.servers import alive, free_port, wait_until

from ollampi.launcher import keeper
from ollampi.launcher.config import compose_config
from ollampi.launcher.http_process import listen
from ollampi.launcher.keeper import Keeping, keep
from ollampi.mpiruntime.errors import ConfigError, OllampiError

Job = tuple[Sequence[str], Mapping[str, str]]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return where the numbers of the starts are noted; pauses between them are short."""
    monkeypatch.setattr(keeper, "_SHORTEST_S", 0.01)
    return []


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Return the file that says that the keeper knows of a job that is ready."""
    return tmp_path / "mark"


def run(
    starts: list[int], jobs: Callable[[int], Job], restarts: int | None, mark: Path | None = None
) -> tuple[int, list[str]]:
    """Return the exit status, and the URLs that were told to be ready."""

    def build(number: int) -> Job:
        starts.append(number)
        return jobs(number)

    def ready(url: str) -> None:
        urls.append(url)
        if mark is not None:
            mark.touch()

    urls: list[str] = []
    config = compose_config([f"server.port={free_port()}"], {})
    status = keep(build, Keeping(config, restarts, ready))
    with listen(config):  # the port is free again
        return status, urls


def test_three_early_ends_in_a_row_give_up_with_the_first_error(
    starts: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(starts, lambda number: failing(f"ollampi: fault {number}", 7 + number), None) == (7, [])
    assert starts == [0, 1, 2]
    told = capfd.readouterr().err.splitlines()
    assert [line for line in told if "fault" in line] == [f"ollampi: fault {number}" for number in (0, 1, 2, 0)]
    assert told.count("noise") == 3
    assert told[-2:] == [
        "ollampi: the ranks ended 3 times in a row before they were ready; the first time, with status 7:",
        "ollampi: fault 0",
    ]


@pytest.mark.parametrize("restarts", [0, 1])
def test_there_are_so_many_restarts(
    starts: list[int], mark: Path, capfd: pytest.CaptureFixture[str], restarts: int
) -> None:
    assert run(starts, lambda number: rank_0(mark, 3, "ready"), restarts, mark)[0] == 3
    assert starts == list(range(restarts + 1))
    used_up = f"ollampi: the ranks ended with status 3, and all {restarts} restarts are used up"
    assert (used_up in capfd.readouterr().err.splitlines()) == bool(restarts)


def test_a_start_that_was_ready_forgives_those_before(starts: list[int], mark: Path) -> None:
    status, urls = run(starts, lambda number: rank_0(mark, number + 1, *(["ready"] if number == 2 else [])), None, mark)
    assert (status, starts, len(urls)) == (4, [0, 1, 2, 3, 4, 5], 1)


def test_a_job_that_cannot_be_built_has_ended_early(starts: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    def build(number: int) -> Job:
        raise OllampiError(f"no host answers: {number}")

    assert run(starts, build, None)[0] == 1
    assert starts == [0, 1, 2]
    assert capfd.readouterr().err.splitlines()[-1] == "ollampi: no host answers: 0"
    assert run(starts, lambda number: (["/nowhere/mpirun"], {}), None)[0] == 1


def test_a_status_of_0_that_nobody_asked_for_is_a_failure(starts: list[int], mark: Path) -> None:
    """Open MPI's mpirun reports it where another host was lost."""
    assert run(starts, lambda number: rank_0(mark, 0, "ready"), 1, mark)[0] == 1
    assert starts == [0, 1]


def test_a_job_that_was_asked_to_end_is_not_started_again(starts: list[int], mark: Path) -> None:
    status, urls = run(starts, lambda number: rank_0(mark, 0, "ready", "done"), None, mark)
    assert (status, starts) == (0, [0])
    assert [url.startswith("http://127.0.0.1:") for url in urls] == [True]


def test_a_port_in_use_is_said_before_anything_starts(starts: list[int]) -> None:
    config = compose_config([f"server.port={free_port()}"], {})
    with listen(config), pytest.raises(ConfigError, match="Address already in use"):
        keep(lambda number: failing("", 0), Keeping(config, None))


def test_the_folder_of_an_mpirun_that_was_killed_is_removed(starts: list[int], tmp_path: Path) -> None:
    line = ["sh", "-c", "mkdir $TMPDIR/ompi.$$ && touch $TMPDIR/ompi.$$/file $TMPDIR/other; exit 5"]
    assert run(starts, lambda number: (line, {**os.environ, "TMPDIR": str(tmp_path)}), 0)[0] == 5
    assert os.listdir(tmp_path) == ["other"]


def test_an_mpirun_that_stays_is_killed(starts: list[int], mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI's waits for ever for a host that is cut off."""
    monkeypatch.setattr(keeper, "_LINGER_S", 0.1)
    line, environ = rank_0(mark, 0)
    stays = ["sh", "-c", '"$@"; sleep 600', "sh", *line]
    assert run(starts, lambda number: (stays, environ), 0)[0] == 137


def test_what_fails_when_ranks_are_ready_ends_them(starts: list[int], mark: Path, tmp_path: Path) -> None:
    def refuse(url: str) -> None:
        raise OSError(url)

    line, environ = rank_0(mark, 0, "ready")
    config = compose_config([f"server.port={free_port()}"], {})
    noted = tmp_path / "pid"
    stays = ["sh", "-c", f'echo $$ > {noted}; exec "$@"', "sh", *line]
    with pytest.raises(OSError, match="http://127"):
        keep(lambda number: (stays, environ), Keeping(config, None, refuse))
    assert not alive(int(noted.read_text()))


def test_the_end_of_the_http_process_is_that_of_all(starts: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    def kill(number: int) -> Job:
        wait_until(lambda: bool(fronts(os.getpid())), 20, "the HTTP process")
        front = fronts(os.getpid())[0]
        os.kill(front, signal.SIGKILL)
        wait_until(lambda: ") Z " in Path(f"/proc/{front}/stat").read_text(), 20, "its end")  # which is told now
        return ["sleep", "600"], dict(os.environ)

    assert run(starts, kill, None)[0] == 1
    assert starts == [0]
    assert "ollampi: the HTTP process ended with status -9; its messages are above" in capfd.readouterr().err


_PROGRAM = """
import os, sys
from ollampi.launcher.config import compose_config
from ollampi.launcher.keeper import Keeping, keep
config = compose_config([f"server.port={sys.argv[1]}"], {})
sys.exit(keep(lambda number: (sys.argv[2:], os.environ), Keeping(config, None)))
"""


def test_what_nobody_can_read_any_more_ends_nothing(tmp_path: Path) -> None:
    """As where the disk of the log is full, or `| tee` was killed."""
    mark = tmp_path / "mark"
    line = ["sh", "-c", f"echo started >> {mark}; exit 9"]
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with open("/dev/full", "w") as full:
        subprocess.run([sys.executable, "-c", _PROGRAM, str(free_port()), *line], env=environ, stderr=full, timeout=50)
    assert mark.read_text().split() == ["started"] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("moment", ["running", "between"])
def test_a_signal_ends_the_loop(number: signal.Signals, moment: str, tmp_path: Path) -> None:
    mark, port = tmp_path / "mark", free_port()
    rest = "exec sleep 60" if moment == "running" else "exit 1"
    line = ["sh", "-c", f"echo $$ >> {mark}; {rest}"]
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup may have started these tests
    code += "from ollampi.launcher import keeper\nkeeper._SHORTEST_S = 60 if sys.argv[4].endswith('exit 1') else 0.1\n"
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", f"import sys\n{code}{_PROGRAM}", str(port), *line]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        if moment == "between":
            assert "starting them again in 60 s" in process.stderr.readline()
        wait_until(lambda: mark.exists() and mark.read_text() != "", 20, "the job to start")
        process.send_signal(number)
        assert process.wait(20) == 0
        assert len(mark.read_text().split()) == 1
        assert not alive(int(mark.read_text()))


@pytest.mark.parametrize("status", [1, 14, 137, 143])
def test_ranks_that_are_told_to_end_before_they_serve_have_not_failed(tmp_path: Path, status: int) -> None:
    mark = tmp_path / "mark"
    line = ["sh", "-c", f"trap 'exit {status}' USR1; echo started > {mark}; while :; do sleep 0.1; done"]
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen([sys.executable, "-c", _PROGRAM, str(free_port()), *line], env=environ) as process:
        try:
            wait_until(lambda: mark.exists() and mark.read_text() != "", 50, "the job to start")
            process.send_signal(signal.SIGUSR1)
            assert process.wait(50) == 0
        finally:
            process.kill()


_LATE = """
import os, signal, sys, time
from pathlib import Path
from ollampi.launcher.keeper_link import KeeperLink
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
link = KeeperLink("unix:@ollampi-nobody-is-here", os.environ)
Path(sys.argv[1], "started").touch()
while not Path(sys.argv[1], "sent").exists():
    time.sleep(0.01)
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(0))
link.tell("ready")
time.sleep(300)
"""


def test_a_signal_that_was_lost_before_the_ranks_were_there_is_sent_again(tmp_path: Path) -> None:
    """As srun loses those that come before it has started its step."""
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    line = [sys.executable, "-c", _PROGRAM, str(free_port()), sys.executable, "-c", _LATE, str(tmp_path)]
    with subprocess.Popen(line, env=environ) as process:
        try:
            wait_until((tmp_path / "started").exists, 50, "the job to start")
            process.send_signal(signal.SIGUSR1)
            (tmp_path / "sent").touch()
            assert process.wait(50) == 0
        finally:
            process.kill()


def test_without_ranks_the_http_process_answers(tmp_path: Path) -> None:
    port = free_port()
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", _PROGRAM, str(port), "sleep", "60"]

    def answer(path: str) -> tuple[int, str, str | None]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as response:
                return response.status, response.read().decode(), None
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read().decode(), e.headers["Retry-After"]

    with subprocess.Popen(command, env=environ) as process:
        try:
            wait_until(lambda: not _refused(port), 20, "the port")
            starting = "the ranks are starting; try again in a few seconds"
            assert answer("/livez") == (200, '{"status":"alive"}', None)
            status, text, _ = answer("/readyz")
            assert (status, starting in text) == (503, True)
            assert answer("/api/ps") == (503, f'{{"error":"{starting}"}}', "5")
            assert answer("/api/tags")[0] == 200
        finally:
            process.terminate()
        assert process.wait(20) == 0


def _refused(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20).close()
    except urllib.error.URLError:
        return True
    return False
