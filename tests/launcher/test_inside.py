"""The inside view of a real server: a scrape over HTTP, and the trace that a drained job leaves."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from support.servers import free_port, run_to_end, server, wait_until

from ollampi.api.metrics import FAMILIES


def test_a_scrape_and_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with server(2, tmp_path, f"trace={path}") as job:
        job.generate("import os", 5)
        status, text = job.request("GET", "/metrics")
        assert status == 200
        found = {family.name: family for family in text_string_to_metric_families(text)}
        assert len(found) == len(FAMILIES)
        generated = found["ollampi_generated_tokens"].samples
        assert [(s.labels, s.value) for s in generated] == [({"model": "demo:latest"}, 5)]
        steps = [s for s in found["ollampi_step_seconds"].samples if s.name.endswith("_count")]
        assert [(s.labels["rank"], s.value) for s in steps] == [("0", 5), ("1", 5)]
        job.signal(signal.SIGUSR1)
        wait_until(lambda: job.process.poll() is not None, 30, "the job to drain")
        assert f"the trace of 2 ranks is in {path}" in job.log.read_text()
    events = json.loads(path.read_text())["traceEvents"]
    assert [e["pid"] for e in events if e["name"] == "forward" and "tokens" in e["args"]] == [1] * 5 + [2] * 5


def test_a_trace_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    status, output = run_to_end(2, f"server.port={free_port()}", f"trace={tmp_path}/no/trace.json")
    assert status == 1
    assert output.count(f"ollampi: trace is '{tmp_path}/no/trace.json'; it must be a file") == 1
    assert "Traceback" not in output
