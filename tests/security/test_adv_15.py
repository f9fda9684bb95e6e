"""Advisory 15: pulls that make the server ask hosts inside its network (CVE-2026-5530)."""

from __future__ import annotations

import pytest
from support.registry import running_registry


def test_hosts_that_are_not_listed(attacked, registry, tmp_path):
    with running_registry(tmp_path) as canary:
        canary.publish("library/m:latest", b"x")
        for host in (
            f"127.0.0.1:{canary.port}",
            f"localhost:{canary.port}",
            f"0.0.0.0:{canary.port}",
            f"[::1]:{canary.port}",
        ):
            for insecure in (True, False):
                assert "error" in attacked.pull(f"{host}/library/m", insecure=insecure)[-1], host
            assert "error" in attacked.pull("m", **{"from": f"http://{host}"})[-1], host
        registry.publish("library/away:latest", b"z" * 50)
        registry.fail("blobs", "redirect", f"{canary.url}/v2/library/m/blobs/x", times=20)
        try:
            assert "error" in attacked.pull(f"{registry.host}/library/away")[-1]
        finally:
            registry.faults.clear()
        assert canary.seen == []


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "10.0.0.1", "192.168.0.1", "127.1", "0x7f000001", "2130706433", "metadata.google.internal"],
)
def test_private_addresses(attacked, host):
    assert "error" in attacked.pull(f"{host}/library/m")[-1]
    assert "error" in attacked.pull("m", **{"from": f"http://{host}:80"})[-1]
