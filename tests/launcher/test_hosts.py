"""Which hosts ranks shall be on, as people, files of any MPI and Slurm say it, and what is no host."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ollampi.launcher.hosts import (
    Form,
    Host,
    Hosts,
    check_hosts,
    from_file,
    listed,
    num_ranks,
    slurm_cpus,
    slurm_hosts,
    slurm_tasks,
)
from ollampi.mpiruntime.errors import ConfigError


def hosts(*pairs: tuple[str, int | None]) -> tuple[Host, ...]:
    return tuple(Host(name, slots) for name, slots in pairs)


@pytest.mark.parametrize(
    ("text", "each", "slots"),
    [
        ("a:2,b:1", hosts(("a", 2), ("b", 1)), 3),
        ("a, b", hosts(("a", None), ("b", None)), None),
        ("a,a,b", hosts(("a", 2), ("b", 1)), 3),
        ("a:2,b", hosts(("a", 2), ("b", None)), None),
        ("10.77.0.1:4", hosts(("10.77.0.1", 4)), 4),
        ("me@node-1.site_2:2", hosts(("me@node-1.site_2", 2)), 2),
    ],
)
def test_a_list(text: str, each: tuple[Host, ...], slots: int | None) -> None:
    assert listed(text).each == each
    assert listed(text).slots == slots


@pytest.mark.parametrize("text", ["", ",", "a,,b", "-x", "a b", "a;id", "$(id)", "a:2:3", "[::1]", "a/b", "@a"])
def test_a_name_that_can_be_no_host_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--host .*(which can be no host|as a number of ranks|an IPv6 address)"):
        listed(text)


@pytest.mark.parametrize(
    "count", ["0", "-1", "x", "", "1.5", "99999999", "65537", "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT TWO}"]
)
def test_a_count_that_is_none_is_refused(count: str) -> None:
    with pytest.raises(ConfigError, match=f"gives '{count}' as a number of ranks"):
        listed(f"a:{count}")


@pytest.mark.parametrize(
    ("text", "form", "each"),
    [
        ("a slots=2\nb slots=4 max_slots=8\n", Form.OPEN_MPI, hosts(("a", 2), ("b", 4))),
        ("# ours\n\na\tslots = 2 # two\nb max-slots=3\n", Form.OPEN_MPI, hosts(("a", 2), ("b", None))),
        ("a:2\nb:4 ifname=eth1\n", Form.HYDRA, hosts(("a", 2), ("b", 4))),
        ("a\nb\n", Form.PLAIN, hosts(("a", None), ("b", None))),
        ("a\na\nb\n", Form.PLAIN, hosts(("a", 2), ("b", 1))),
        ("a\nb slots=3\n", Form.OPEN_MPI, hosts(("a", None), ("b", 3))),
    ],
)
def test_a_file_in_the_form_of_any_mpi(tmp_path: Path, text: str, form: Form, each: tuple[Host, ...]) -> None:
    (tmp_path / "hosts").write_text(text)
    assert from_file(str(tmp_path / "hosts")) == Hosts(each, str(tmp_path / "hosts"), form)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "which has no hosts"),
        (b"# nothing\n", "which has no hosts"),
        (b"a\n-oProxyCommand=id\n", "line 2 names '-oProxyCommand=id', which can be no host"),
        (b"a slots=two\n", "line 1 gives 'two' as a number of ranks"),
        (b"a 2\n", "line 1 says 'a 2': write a host and its ranks, such as 'node slots=2' or 'node:2'"),
        (b"a:2\nb slots=2\n", "write all in one of these forms"),
        (b"\xff\xfe\n", "cannot be read: it is no text"),
    ],
)
def test_a_file_that_says_no_hosts_is_refused(tmp_path: Path, text: bytes, why: str) -> None:
    (tmp_path / "hosts").write_bytes(text)
    with pytest.raises(ConfigError, match=why):
        from_file(str(tmp_path / "hosts"))


def test_a_count_of_many_digits_is_refused_and_cut_short(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(f"a slots={'9' * 5000}\n")
    with pytest.raises(ConfigError, match=r"line 1 gives '9{200}'\.\.\. \(5000 characters\) as a number of ranks"):
        from_file(str(tmp_path / "hosts"))


@pytest.mark.parametrize("text", ["fe80::1", "fe80::1:2", "a:1:2"])
def test_an_address_of_ipv6_is_told_from_a_count(text: str) -> None:
    with pytest.raises(ConfigError, match="has an IPv6 address, which mpirun does not take: give the name of the host"):
        listed(text)


def test_mpirun_is_given_the_path_of_a_file_in_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hosts").write_text("a slots=2\n")
    assert from_file("~/hosts").file == str(tmp_path / "hosts")
    with pytest.raises(ConfigError, match="--hostfile names ~nosuchuser/hosts, which cannot be read: No such file"):
        from_file("~nosuchuser/hosts")


def test_a_folder_is_no_file_of_hosts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory; give a file of hosts"):
        from_file(str(tmp_path))


def test_names_that_nobody_knows_are_told_together() -> None:
    def resolve(name: str) -> None:
        if name.startswith("no"):
            raise socket.gaierror

    check_hosts(listed("a,user@b"), resolve)
    with pytest.raises(
        ConfigError, match="--host names no1, no2, which are no hosts that can be found: a name must be"
    ):
        check_hosts(listed("a,no1:2,me@no2"), resolve)
    with pytest.raises(ConfigError, match="which is no host that can be found"):
        check_hosts(listed("a" * 70))


@pytest.mark.parametrize(
    ("text", "is_here"), [("localhost:4", True), (socket.gethostname(), True), ("localhost,b", False), ("b", False)]
)
def test_whether_all_ranks_are_here(text: str, is_here: bool) -> None:
    assert listed(text).here is is_here


SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_TASKS_PER_NODE": "2(x2),1"}


def test_slurm_says_nodes_and_tasks() -> None:
    assert slurm_hosts(SLURM) == Hosts(hosts(("n1", 2), ("n2", 2), ("n3", 1)))
    assert slurm_tasks(SLURM) == 5
    assert slurm_tasks({**SLURM, "SLURM_NTASKS": "4"}) == 4
    assert slurm_cpus({"SLURM_JOB_CPUS_PER_NODE": "8(x2),4"}) == 20
    assert slurm_hosts({}) is None
    assert slurm_tasks({"SLURM_NTASKS": "4"}) is None
    assert slurm_hosts({**SLURM, "SLURM_TASKS_PER_NODE": ""}) == Hosts(hosts(("n1", None), ("n2", None), ("n3", None)))


@pytest.mark.parametrize(
    ("listing", "ranks", "environ", "count"),
    [
        (None, None, {}, 1),
        (None, 3, {}, 3),
        ("a:2,b:2", None, {}, 4),
        ("a:2,b:2", 3, {}, 3),
        ("a,b", None, {}, 2),
        ("a,b", 8, {}, 8),
        (None, None, SLURM, 5),
        (None, 8, {**SLURM, "SLURM_JOB_CPUS_PER_NODE": "4(x3)"}, 8),
        ("a:2", None, SLURM, 2),
    ],
)
def test_as_many_ranks_as_asked_for_else_as_there_is_place_for(
    listing: str | None, ranks: int | None, environ: dict[str, str], count: int
) -> None:
    assert num_ranks(None if listing is None else listed(listing), ranks, environ) == count


def test_fewer_slots_than_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="--host has 4 slots for 5 ranks: ask for at most 4, or give hosts more"):
        num_ranks(listed("a:2,b:2"), 5, {})
    with pytest.raises(ConfigError, match="5 tasks and 6 CPUs for 8 ranks: ask for at most 6, or allocate with --nt"):
        num_ranks(None, 8, {**SLURM, "SLURM_JOB_CPUS_PER_NODE": "2(x3)"})
