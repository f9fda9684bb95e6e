"""Advisory 12: model management without authentication (CVE-2025-63389). With keys, every route asks for one."""

from __future__ import annotations

from support.attacks import PUBLIC, operations
from support.servers import server

ADMIN, READER = "admin-key-0123456789", "reader-key-0123456789"
CLOUD = {"/api/me", "/api/user/keys/x", "/api/experimental/web_search", "/api/experimental/web_fetch"}  # for nobody
CHANGES = {"/api/create", "/api/copy", "/api/delete", "/api/pull", "/api/push"}


def test_routes_with_and_without_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"admin {ADMIN}\nreadonly {READER}\n")
    keys.chmod(0o600)
    with server(0, tmp_path, f"server.keys={keys}") as running:
        for method, path in operations():
            statuses = [running.send(method, path, headers) for headers in ({}, *map(bearer, ("x", READER, ADMIN)))]
            if path in PUBLIC:
                assert not {401, 403} & set(statuses), (method, path, statuses)
            elif path not in CLOUD:
                assert statuses[:2] == [401, 401], (method, path, statuses)
                assert statuses[3] not in (401, 403), (method, path, statuses)
            if path in CHANGES:
                assert statuses[2] == 403, (method, path, statuses)
        assert ADMIN not in running.log.read_text()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
