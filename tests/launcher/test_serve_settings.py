"""Settings of a job that show in its processes: the cache's size, the exchange, the cores."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.servers import free_port, run_to_end, server, wait_until

from ollampi.mpiruntime.interface import interface_variables
from ollampi.mpiruntime.world import free_memory


def segments() -> set[str]:
    """Return the names that jobs have in /dev/shm; each has one while it starts."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("ollampi-")}


def test_a_cache_that_nobody_sized_fits_into_the_host_and_takes_no_memory_before_it_is_used(tmp_path: Path) -> None:
    with server(2, tmp_path) as job:
        found = re.search(r"context (\d+) .*, cache of (\d+) tokens in bfloat16", job.log.read_text())
        assert found
        context, tokens = map(int, found.groups())
        assert context <= tokens <= 256 * context
        cache_bytes = tokens * 6 * 2 * 2 * 32 * 2  # layers, keys and values, KV heads, their width, bytes of bf16
        (listed,) = job.request("GET", "/api/ps")[1]["models"]
        assert cache_bytes < listed["size"] < cache_bytes + (32 << 20)
        assert cache_bytes < free_memory()
        for pid in job.ranks():
            status = Path(f"/proc/{pid}/status").read_text()
            assert int(re.findall(r"^VmRSS:\s+(\d+) kB", status, re.M)[0]) < 512 * 1024


def test_the_exchange_is_chosen_and_shown_and_gives_the_same_text(tmp_path: Path) -> None:
    before = segments()
    texts = []
    for wanted, told in (
        ("shared", r"shared memory, as asked for: 8 KiB in \S+ us and 1 MiB in \S+ us \(MPI"),
        ("mpi", "MPI, as asked"),
    ):
        with server(2, tmp_path, f"exchange.link={wanted}", "dtype=float32") as job:
            texts.append(job.generate("import os\n", 60))
            assert re.search(f"^tensors are exchanged through {told}", job.log.read_text(), re.M)
            wait_until(lambda: segments() <= before, 5, "the names in /dev/shm to go")  # jobs beside start, too
    assert texts[0] == texts[1]  # two summands have one sum


def test_codes_in_the_place_of_sums_are_shown_counted_and_kept_for_the_next_start(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    settings = ["communication_strategy=compressed", "compression_level=1", f"table={table}", "interface=lo"]
    for told in (f"; {table} was not there: measured anew and written", f", as {table} has it"):
        with server(2, tmp_path, *[f"exchange.{setting}" for setting in settings]) as job:
            text = job.log.read_text()
            like = r"activations through MPI: 8 bytes in \S+ us, \d+ Mbit/s each way"
            assert re.search(f"^{like}{re.escape(told)}$", text, re.M)
            sums = r"by (?:one step|doubling|scattered) in bf16, \S+ us \(fp32: \S+ us\)"
            assert re.search(f"^sums of 8 KiB {sums}; 256 KiB {sums}; 4 MiB {sums}$", text, re.M)
            assert job.generate("import os\n", 5)
            counted = job.request("GET", "/metrics")[1]
            found = re.findall(r"^ollampi_exchange_wire_bytes_total{.*} (\S+)$", counted, re.M)
            assert len(found) == 4  # two kinds on two ranks
            assert all(float(value) > 0 for value in found)


def test_an_interface_that_is_not_there_is_refused_before_mpi_can_warn_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a launch on another host: the ranks find its variables. Behind is only mpirun's word on the status."""
    for name, value in interface_variables("eth99", {}).items():
        monkeypatch.setenv(name, value)
    status, output = run_to_end(2, f"server.port={free_port()}", "exchange.interface=eth99")
    assert status == 1, output
    assert output.startswith("ollampi: exchange.interface is 'eth99', which")
    assert "btl_tcp" not in output


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two ranks need two cores")
def test_pinned_ranks_keep_to_their_cores_and_the_http_process_does_not(tmp_path: Path) -> None:
    with server(2, tmp_path, "pin=true") as job:
        masks = [os.sched_getaffinity(pid) for pid in job.ranks()]
        assert masks[0].isdisjoint(masks[1])
        assert masks[0] | masks[1] == os.sched_getaffinity(0)
        others = [pid for pid in job.processes() if pid not in job.ranks()]
        assert all(os.sched_getaffinity(pid) == os.sched_getaffinity(0) for pid in others)
        rows = re.findall(r"^ +\d +\S+ +([\d,-]+) +(\d+) ", job.log.read_text(), re.M)
        assert len(rows) == 2
        assert rows[0][0] != rows[1][0]
