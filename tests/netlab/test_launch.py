"""`ollampi launch` over hosts: a hostfile in another MPI's form, ranks bound, a request answered, an end in order."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from support.netlab import Lab, lab
from support.netlab_runs import LIMIT_S
from support.servers import wait_until

SRC = Path(__file__).resolve().parent.parent.parent / "src"
PORT = 11434  # the host's own: no other process is in its network
ASK = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}{path}').read().decode())"


def ask(net: Lab, path: str) -> dict[str, list[dict[str, object]]]:
    """Return what the server on the first host answers."""
    answer: dict[str, list[dict[str, object]]] = json.loads(
        net.run(0, sys.executable, "-c", ASK.format(port=PORT, path=path))
    )
    return answer


def test_hosts_of_a_file_that_mpich_would_read_serve_under_open_mpi(tmp_path: Path) -> None:
    hostfile, log = tmp_path / "hosts", tmp_path / "log"
    hostfile.write_text("h1:1 # MPICH's form\nh2:2\n")
    with lab(2, 1000) as net, log.open("w") as out:
        words = ["launch", "--hostfile", str(hostfile), "--bind", "core", "model=demo", f"store={tmp_path / 'store'}"]
        environ = {**net.environment(), "PYTHONPATH": str(SRC)}
        line = net.inside(0, [sys.executable, "-m", "ollampi", *words])
        with subprocess.Popen(line, env=environ, stdout=out, stderr=out) as job:
            try:
                wait_until(lambda: "serving at" in log.read_text() or job.poll() is not None, LIMIT_S, "the server")
                assert job.poll() is None, log.read_text()
                assert re.search(r"slot:PE=\d+:OVERSUBSCRIBE --bind-to core --host h1:1,h2:2 -n 3 ", log.read_text())
                assert [node["host"] for node in ask(net, "/api/cluster/nodes")["nodes"]] == ["h1", "h2", "h2"]
                job.send_signal(signal.SIGTERM)
                assert job.wait(LIMIT_S) == 0, log.read_text()
            finally:
                job.kill()
