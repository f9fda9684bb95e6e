"""The exchange of tensors is chosen by all ranks alike, and said with its reason."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ollampi.kernels import native
from ollampi.mpiruntime import measuring
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.compressed import Compressed
from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.exchange import LARGE_BYTES, Exchange, choose_exchange
from ollampi.mpiruntime.exchange_plan import SIZES, Choice
from ollampi.mpiruntime.exchange_settings import ExchangeSettings
from ollampi.mpiruntime.hierarchical import Hierarchical
from ollampi.mpiruntime.measuring import Sum
from ollampi.mpiruntime.shared_memory import SharedMemory
from ollampi.mpiruntime.thread_world import run_threads
from ollampi.mpiruntime.world import survey

needs_native = pytest.mark.skipif(native.library() is None, reason="the native kernels were not built")


def choose(wanted: str, folder: Path) -> list[tuple[bool, str]]:
    """Return what three ranks of one host chose: whether it is shared memory, and the words."""

    def work(comm: Communicator) -> tuple[bool, str]:
        chosen = choose_exchange(comm, survey(comm), ExchangeSettings(link=wanted), True, folder)
        assert chosen.sums is chosen.comm
        total = chosen.comm.all_reduce(torch.ones(3))
        assert isinstance(total, Tensor)
        assert torch.equal(total, torch.full((3,), 3.0))
        return isinstance(chosen.comm, SharedMemory), chosen.told

    found = run_threads(3, work)
    assert list(folder.iterdir()) == []
    return found


@needs_native
@pytest.mark.parametrize(
    ("ours", "theirs", "wins"),
    [
        ((1e-6, 1e-3), (2e-6, 1e-3), True),
        ((1e-6, 1.1e-3), (2e-6, 1e-3), True),
        ((1e-6, 2e-3), (2e-6, 1e-3), False),
        ((2e-6, 1e-3), (1e-6, 9e-3), False),
    ],
)
def test_auto_takes_what_is_faster_on_the_slowest_rank(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ours: tuple[float, float],
    theirs: tuple[float, float],
    wins: bool,
) -> None:
    def timed(choice: Choice, sum_: Sum, x: Tensor, calls: int = 1) -> float:
        return (ours if choice.algorithm == "shared memory" else theirs)[x.nbytes == LARGE_BYTES]

    monkeypatch.setattr(measuring, "_timed", timed)
    found = choose("auto", tmp_path)
    first, second = [f"8 KiB in {s * 1e6:.1f} us and 1 MiB in {b * 1e6:.0f} us" for s, b in (ours, theirs)]
    told = f"shared memory: {first} (MPI: {second}); not compressed"
    if not wins:
        told = f"MPI: {second} (shared memory: {first}; taken where it wins both); not compressed"
    assert found == [(wins, told)] * 3


@needs_native
def test_shared_memory_is_measured_also_where_it_is_asked_for(tmp_path: Path) -> None:
    found = choose("shared", tmp_path)
    figures = r"8 KiB in [\d.]+ us and 1 MiB in [\d.]+ us"
    assert re.fullmatch(rf"shared memory, as asked for: {figures} \(MPI: {figures}\); not compressed", found[0][1])
    assert found == [found[0]] * 3
    assert found[0][0]


def test_mpi_where_it_is_asked_for_or_nothing_else_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("mpi", tmp_path) == [(False, "MPI, as asked for; not compressed")] * 3
    monkeypatch.setattr("ollampi.mpiruntime.shared_memory.library", lambda: None)
    told = "MPI, since there is no shared memory: the native kernels were not built; not compressed"
    assert choose("auto", tmp_path) == [(False, told)] * 3
    with pytest.raises(
        ConfigError, match=r"^exchange\.link=shared cannot be had: the native kernels were not built; use"
    ):
        choose("shared", tmp_path)


def test_a_table_that_is_not_used_is_named(tmp_path: Path) -> None:
    settings = ExchangeSettings(link="mpi", table="/x/table.json")
    told = run_threads(2, lambda comm: choose_exchange(comm, survey(comm), settings, True, tmp_path).told)
    assert told == ["MPI, as asked for; not compressed; /x/table.json is not used"] * 2


def test_a_world_of_one_has_nothing_to_exchange(tmp_path: Path) -> None:
    comm = Single()
    for wanted in ("auto", "shared", "mpi"):
        settings = ExchangeSettings(link=wanted, communication_strategy="compressed")
        assert choose_exchange(comm, survey(comm), settings, False, tmp_path) == Exchange(comm, comm, "")


# What sums take, for each of SIZES, at level 0 and at any other, in microseconds. doubling is best for the first ones,
# scattered for the others; codes pay clearly from 64 KiB on.
TIMES = {
    ("beneath", 0): (40, 60, 310, 1300, 5000, 20_000),
    ("one_step", 0): (30, 55, 400, 2300, 9000, 36_000),
    ("doubling", 0): (25, 50, 350, 1500, 6000, 24_000),
    ("scattered", 0): (70, 80, 300, 1100, 4000, 16_000),
    ("one_step", 2): (28, 48, 200, 760, 3000, 12_000),
    ("doubling", 2): (24, 46, 285, 600, 2000, 8000),
    ("scattered", 2): (60, 70, 280, 500, 1500, 6000),
}


def plan(monkeypatch: pytest.MonkeyPatch, hosts: str, folder: Path, **fields: Any) -> list[Exchange]:
    """Return what the ranks of a thread world choose where sums take TIMES; hosts: a letter for the host of each."""

    def timed(choice: Choice, sum_: Sum, x: Tensor, calls: int = 1) -> float:
        """Return the time after the sum was made, lest ranks differ in what they call."""
        sum_(x)
        if (choice.algorithm, choice.level) not in TIMES:
            return 1e-3
        return 30e-6 if x.nbytes == 8 else TIMES[choice.algorithm, choice.level][SIZES.index(x.nbytes)] * 1e-6

    def work(comm: Communicator) -> Exchange:
        facts = [dataclasses.replace(fact, host=hosts[fact.rank]) for fact in survey(comm)]
        chosen = choose_exchange(comm, facts, ExchangeSettings(**fields), True, folder)
        for count in (1, 2048, 70_001):
            x = torch.full((count,), 127.0 * (comm.rank + 1))
            for world in (chosen.comm, chosen.sums):
                assert torch.allclose(world.all_reduce(x), torch.full_like(x, 127.0 * sum(range(len(hosts) + 1))), 0.02)
            assert (chosen.comm.gather(x[None]) is None) == (comm.rank > 0)
        return chosen

    monkeypatch.setattr(measuring, "_timed", timed)
    monkeypatch.setattr(measuring, "_ROUNDS", 1)
    return run_threads(len(hosts), work)


def choices(exchange: Exchange) -> list[tuple[str, int]]:
    """Return what a plan has for the measured sizes."""
    assert isinstance(exchange.sums, Compressed)
    return [(c.algorithm, c.level) for c in (exchange.sums.plan.of(size) for size in SIZES)]


@pytest.mark.parametrize(
    ("strategy", "level", "wanted"),
    [
        ("none", 2, [("doubling", 0)] * 2 + [("scattered", 0)] * 4),
        ("auto", 0, [("doubling", 0)] * 2 + [("scattered", 0)] * 4),
        ("auto", 2, [("doubling", 0)] * 2 + [("one_step", 2)] + [("scattered", 2)] * 3),
        ("compressed", 2, [("doubling", 2)] * 2 + [("one_step", 2)] + [("scattered", 2)] * 3),
        ("compressed", 0, [("doubling", 0)] * 2 + [("scattered", 0)] * 4),
    ],
)
@pytest.mark.parametrize("hosts", ["ab", "abc"])
def test_codes_are_used_where_they_pay_or_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    hosts: str,
    strategy: str,
    level: int,
    wanted: list[tuple[str, int]],
) -> None:
    found = plan(monkeypatch, hosts, tmp_path, communication_strategy=strategy, compression_level=level)
    for exchange in found:
        assert choices(exchange) == wanted
        assert exchange.told == found[0].told
        assert isinstance(exchange.comm, Compressed)
        assert {choice.level for choice in exchange.comm.plan.choices} == {0}


def test_the_words_name_link_choice_and_what_it_saves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = plan(monkeypatch, "ab", tmp_path)[0].told
    assert told.splitlines() == [
        "MPI between 2 hosts: 8 bytes in 30.0 us, 2097 Mbit/s each way",
        "sums of 8 KiB by doubling in fp32, 50.0 us; 256 KiB by scattered in int8, 500 us (fp32: 1100 us);"
        " 4 MiB by scattered in int8, 6000 us (fp32: 16000 us)",
    ]


@needs_native
def test_hosts_with_several_ranks_add_up_in_memory_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = plan(monkeypatch, "aab", tmp_path)
    assert all(isinstance(exchange.sums, Hierarchical) for exchange in found)
    assert found[0].told.startswith("shared memory in each host and MPI between 2 hosts: 8 bytes in")
    monkeypatch.setattr("ollampi.mpiruntime.shared_memory.library", lambda: None)
    found = plan(monkeypatch, "aab", tmp_path)
    assert all(isinstance(exchange.sums, Compressed) for exchange in found)
    assert "between all ranks on 2 hosts, since host a: the native kernels were not built: 8 bytes" in found[0].told


@needs_native
@pytest.mark.parametrize("link", ["auto", "mpi", "shared"], ids="link_{}".format)  # an id "mpi" would be skipped
def test_one_host_compresses_only_where_it_is_asked_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, link: str
) -> None:
    found = plan(monkeypatch, "aaa", tmp_path, link=link, communication_strategy="compressed", compression_level=2)
    assert choices(found[0]) == [("doubling", 2)] * 2 + [("one_step", 2)] + [("scattered", 2)] * 3
    for strategy in ("auto", "none"):
        found = plan(monkeypatch, "aaa", tmp_path, link=link, communication_strategy=strategy)
        assert not isinstance(found[0].sums, Compressed)


def test_shared_memory_between_hosts_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^exchange\.link=shared cannot be had: the ranks are on 2 hosts; use"):
        plan(monkeypatch, "ab", tmp_path, link="shared")


def test_a_table_is_written_and_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    fields = {"table": str(path), "compression_level": 2}
    first = plan(monkeypatch, "ab", tmp_path, **fields)
    assert f"{path} was not there: measured anew and written" in first[0].told
    table = json.loads(path.read_text())
    for row in table["seconds"]:  # as if this were another machine: nothing is measured
        if row["algorithm"] == "one_step" and row["level"] == 2:
            row["by_bytes"] = dict.fromkeys(row["by_bytes"], 1e-06)
    path.write_text(json.dumps(table))
    for exchange in plan(monkeypatch, "ab", tmp_path, **fields):
        assert choices(exchange) == [("one_step", 2)] * len(SIZES)
    assert list(tmp_path.iterdir()) == [path]
    again = plan(monkeypatch, "ab", tmp_path, **fields)
    assert f", as {path} has it" in again[0].told


@pytest.mark.parametrize(
    "change", [{"compression_level": 3}, {"communication_strategy": "none"}, {"interface": "x"}, {"link": "mpi"}]
)
def test_a_table_of_another_world_is_measured_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any]
) -> None:
    monkeypatch.setitem(TIMES, ("one_step", 3), (1,) * len(SIZES))
    path = tmp_path / "table.json"
    fields: dict[str, Any] = {"table": str(path), "compression_level": 2}
    plan(monkeypatch, "ab", tmp_path, **fields)
    before = path.read_text()
    told = plan(monkeypatch, "ab", tmp_path, **{**fields, **change})[0].told
    assert f"{path} is of another world: measured anew and written" in told
    assert path.read_text() != before
    told = plan(monkeypatch, "abc", tmp_path, **{**fields, **change})[0].told
    assert "is of another world" in told


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: "",
        lambda table: "[" * 100_000,
        lambda table: "[]",
        lambda table: json.dumps({**table, "seconds": 5}),
        lambda table: json.dumps({**table, "seconds": table["seconds"][:1]}),
        lambda table: json.dumps({**table, "seconds": [{**row, "algorithm": "magic"} for row in table["seconds"]]}),
        lambda table: json.dumps({**table, "seconds": [{**row, "level": 9} for row in table["seconds"]]}),
        lambda table: json.dumps({**table, "seconds": [{**row, "by_bytes": {"8192": -1}} for row in table["seconds"]]}),
        lambda table: json.dumps(table).replace("5e-05", "NaN"),
        lambda table: json.dumps(table)[:-20],
    ],
)
def test_a_damaged_table_is_said_and_measured_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: Callable[[Any], str]
) -> None:
    path = tmp_path / "table.json"
    plan(monkeypatch, "ab", tmp_path, table=str(path))
    whole = path.read_text()
    assert "5e-05" in whole
    path.write_text(damage(json.loads(whole)))
    told = plan(monkeypatch, "ab", tmp_path, table=str(path))[0].told
    assert f"{path} is damaged: measured anew and written" in told
    assert path.read_text() == whole


def test_a_table_that_cannot_be_kept_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "table.json"
    told = plan(monkeypatch, "ab", tmp_path, table=str(missing))[0].told
    assert f"{missing} was not there: measured anew, but it cannot be written: No such file or directory" in told
    (tmp_path / "folder").mkdir()
    told = plan(monkeypatch, "ab", tmp_path, table=str(tmp_path / "folder"))[0].told
    assert "is no regular file of less than 1 MiB: measured anew, but it cannot be written" in told
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
