"""Advisory 10: a registry's token sent to another host (CVE-2025-51471)."""

from __future__ import annotations

import pytest
from support.registry import running_registry


@pytest.mark.parametrize("action", ["realm", "redirect"])
@pytest.mark.parametrize("where", ["manifests", "blobs"])
def test_another_host_sees_nothing(attacked, registry, tmp_path, action, where):
    with running_registry(tmp_path) as other:
        registry.publish("library/pinned:latest", b"y" * 100)
        registry.fail(where, action, f"{other.url}/token", times=10)
        try:
            assert "error" in attacked.pull(f"{registry.host}/library/pinned")[-1]
        finally:
            registry.faults.clear()
        assert other.seen == []
        assert not [headers for _, headers in registry.seen if "Authorization" in headers]
