"""The network interface that is handed to MPI before it starts."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from ollampi.mpiruntime.errors import ConfigError
from ollampi.mpiruntime.interface import check_interface, interface_variables, interfaces
from ollampi.mpiruntime.mpi import prepare


def test_the_interfaces_are_those_of_the_kernel() -> None:
    known = {path.name for path in Path("/sys/class/net").iterdir()} - {"bonding_masters"}
    assert set(interfaces()) == known
    for name in known:
        check_interface(name)


@pytest.mark.parametrize("name", ["eth99", "", "lo lo", "${x}"])
def test_another_name_is_refused_with_those_that_there_are(name: str) -> None:
    text = f"exchange.interface is {name!r}, which {socket.gethostname()} does not have; use one of"
    with pytest.raises(ConfigError, match=f"^{re.escape(text)} .*\\blo\\b.*, or null for MPI's own choice$"):
        check_interface(name)


def test_mpi_is_told_unless_the_user_has_told_it() -> None:
    environ = {"UCX_NET_DEVICES": "mlx5_0:1"}
    prepare(environ, "lo")
    assert environ["OMPI_MCA_btl_tcp_if_include"] == environ["FI_TCP_IFACE"] == "lo"
    assert environ["UCX_NET_DEVICES"] == "mlx5_0:1"
    for name in (None, "eth99"):  # a wrong name is refused once MPI has started: it must not end the job before
        environ = {}
        prepare(environ, name)
        assert not set(environ) & set(interface_variables("x", {}))
