"""Keep the port and the HTTP process while the ranks end and are started again.

keep             binds the port, starts the HTTP process, then mpirun, again where it ends by itself
rank 0           tells the keeper where it is (keeper_link), when it is ready, and that it was asked to end
HTTP process     asks the keeper where rank 0 is (api.whereabouts); without one it answers 503 itself
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from ollampi.launcher.config import compose_config
from ollampi.launcher.heard import Heard
from ollampi.launcher.http_process import bound_to, end_front, listen, start_front, url
from ollampi.launcher.leftovers import Leftovers, remove_session
from ollampi.launcher.meeting import Meeting, Start
from ollampi.launcher.schema import Config
from ollampi.launcher.supervise import SENT_ON, becoming_mpirun, told
from ollampi.launcher.wake import Wake
from ollampi.mpiruntime.errors import OllampiError

Build = Callable[[int], tuple[Sequence[str], Mapping[str, str]]]

_SHORTEST_S, _LONGEST_S = 0.2, 10.0  # between an end and the next start
_MOST_EARLY = 3  # ends in a row before the ranks were ready
_LINGER_S = 15.0  # from rank 0's end to mpirun's, which waits for ever for a host that is cut off
_LAST_WORDS_S = 0.5


@dataclass(frozen=True)
class Keeping:
    """How ranks are kept. config: of the server; restarts: how many there may be, None for any number.

    ready: called in the main thread with the URL each time that ranks are ready. sent: the signals that the ranks were
    sent, or would have been, are added to it.
    """

    config: Config
    restarts: int | None
    ready: Callable[[str], None] = lambda address: None
    sent: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Ended:
    """How one start ended: mpirun's status, its first words where that was early, and how far the ranks were."""

    status: int
    words: str
    start: Start


def keep(build: Build, settings: Keeping) -> int:
    """Return the exit status of a server whose ranks are started again where they end. Main thread.

    build: returns the line that starts the ranks and its environment; called before each start with its number from 0
    on. Where it raises OllampiError, that counts as an early end. SIGTERM, SIGINT and SIGHUP end all, SIGUSR1 does when
    running requests are done. Raise ConfigError where the port cannot be had.
    """
    with ExitStack() as stack:
        listener = stack.enter_context(listen(settings.config))
        wake = stack.enter_context(Wake(SENT_ON))
        meeting = stack.enter_context(Meeting(bound_to(listener), wake.poke))
        front = start_front(settings.config, listener, meeting.address, kept=True)
        stack.callback(end_front, front)
        return _Keeper(build, settings, wake, meeting, front).run()


class _Keeper:
    """The loop of starts, with what it has open."""

    def __init__(
        self, build: Build, settings: Keeping, wake: Wake, meeting: Meeting, front: subprocess.Popen[bytes]
    ) -> None:
        self._build = build
        self._settings = settings
        self._wake = wake
        self._meeting = meeting
        self._front = front
        self._sent = settings.sent
        self._early: list[_Ended] = []  # in a row
        self._pause_s = _SHORTEST_S
        self._leftovers = Leftovers()

    def run(self) -> int:
        """Return the exit status, once there shall be no ranks any more."""
        number = 0
        while True:
            ended = self._start(number)
            if self._sent and ended.start.ready_at is None:  # killed by signals that they did not take yet
                return 0
            if self._sent or ended.start.is_done:
                return told(ended.status, self._sent)
            if (status := self._front.poll()) is not None:
                _say(f"the HTTP process ended with status {status}; its messages are above")
                return 1
            self._count(ended)
            if (final := self._final(number, ended)) is not None:
                return final
            number += 1
            self._pause(ended.status or 1)
            if self._sent:
                return 0

    def _start(self, number: int) -> _Ended:
        """Start the ranks and return how they ended."""
        added = self._meeting.expect()
        try:
            line, environ = self._build(number)
            self._take(self._wake.wait(0), None)
            if self._sent:
                return _Ended(0, "", self._meeting.start)
            child = subprocess.Popen(
                line,
                env={**environ, **added},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                process_group=0,
                preexec_fn=becoming_mpirun(os.getpid(), environ),
            )
        except (OllampiError, OSError) as e:
            _say(str(e))
            return _Ended(1, f"ollampi: {e}", self._meeting.start)
        assert child.stderr is not None
        heard = Heard(child.stderr)
        try:
            status = self._follow(child)
        except BaseException:
            child.kill()
            child.wait()
            raise
        remove_session(child.pid, environ)
        start = self._meeting.settled(_LAST_WORDS_S)
        words = heard.first(_LAST_WORDS_S) if start.ready_at is None else ""
        return _Ended(status if status >= 0 else 128 - status, words, start)

    def _follow(self, child: subprocess.Popen[bytes]) -> int:
        """Return the status of mpirun when it has ended; pass signals on to it meanwhile."""
        start, is_told, is_ending = self._meeting.start, False, False
        while (status := child.poll()) is None:
            if not is_ending and self._front.poll() is not None:
                is_ending = True
                child.terminate()
            left_s = None if start.left_at is None else start.left_at + _LINGER_S - time.monotonic()
            if left_s is not None and left_s <= 0:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                left_s = 1.0
            self._take(self._wake.wait(left_s), child)
            if start.ready_at is not None and not is_told:
                is_told = True
                if self._sent:
                    # srun may have lost USR1 before they were there; a second TERM would make mpirun leave them
                    self._pass_on(self._sent & {signal.SIGUSR1}, child)
                else:
                    self._settings.ready(url(self._meeting.bound))
        return status

    def _take(self, numbers: set[int], child: subprocess.Popen[bytes] | None) -> None:
        """Note signals, and send them on to mpirun where it is there."""
        for number in numbers:
            self._sent.add(SENT_ON[signal.Signals(number)])
            self._meeting.tell("ended", "the server is ending")
        if child is not None:
            self._pass_on(numbers, child)

    def _pass_on(self, numbers: set[int], child: subprocess.Popen[bytes]) -> None:
        """Send mpirun the signals that stand for some."""
        for number in numbers:
            child.send_signal(SENT_ON[signal.Signals(number)])

    def _count(self, ended: _Ended) -> None:
        """Note whether an end was early, and how long to wait after it."""
        since = ended.start.ready_at
        self._early = [*self._early, ended] if since is None else []
        if since is not None and time.monotonic() - since >= _LONGEST_S:
            self._pause_s = _SHORTEST_S

    def _final(self, number: int, ended: _Ended) -> int | None:
        """Return the exit status where the ranks are not to be started again, after printing why."""
        used_up = self._settings.restarts is not None and number >= self._settings.restarts
        if len(self._early) < _MOST_EARLY and not used_up:
            return None
        first = self._early[0] if self._early else ended
        if len(self._early) > 1:
            times = f"{len(self._early)} times in a row"
            _say(f"the ranks ended {times} before they were ready; the first time, with status {first.status}:")
            _print(first.words)
        elif self._settings.restarts:
            _say(f"the ranks ended with status {ended.status}, and all {self._settings.restarts} restarts are used up")
        return first.status or 1  # whatever mpirun says, nobody asked for this end

    def _pause(self, status: int) -> None:
        """Wait before the next start, less long where it goes well."""
        ended = f"the ranks ended with status {status}"
        self._meeting.tell("restarting", f"{ended} and are being started again; try again in a few seconds")
        _say(f"{ended}; starting them again in {self._pause_s:g} s")
        end = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_S)
        while not self._sent and (left_s := end - time.monotonic()) > 0:
            self._take(self._wake.wait(left_s), None)
        self._leftovers.sweep()


def main() -> None:
    """Keep the server that the JSON argument describes: line, overrides (both lists of text) and restarts."""
    given = json.loads(sys.argv[1])
    try:
        config = compose_config(given["overrides"], os.environ)
        status = keep(lambda number: (given["line"], os.environ), Keeping(config, given["restarts"]))
    except OllampiError as e:
        sys.exit(f"ollampi: {e}")
    sys.exit(status)


def _say(text: str) -> None:
    """Print a line to the operator."""
    _print(f"ollampi: {text}")


def _print(text: str) -> None:
    with suppress(OSError):  # a full disk, or a reader that left, must not end the server
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
