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
    environ = {}
    prepare(environ)
    assert not set(environ) & set(interface_variables("x", {}))


def test_mpi_hears_nothing_of_a_name_that_is_refused_once_it_has_started() -> None:
    for launched in ({}, interface_variables("eth99", {})):
        environ = {**launched}
        prepare(environ, "eth99")
        assert not set(environ) & set(interface_variables("x", {}))
    environ = {"UCX_NET_DEVICES": "mlx5_0:1", "FI_TCP_IFACE": "eth99"}
    prepare(environ, "eth99")
    assert environ["UCX_NET_DEVICES"] == "mlx5_0:1"
    assert "FI_TCP_IFACE" not in environ
