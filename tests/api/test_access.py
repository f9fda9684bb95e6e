"""Who may do what: every route has a permission, and keys have roles."""

from __future__ import annotations

import os
import re

import pytest

from ollampi.api.access import Keys, Permission, read_keys, sent_key
from ollampi.api.app import create_app
from ollampi.api.settings import Settings
from ollampi.mpiruntime.errors import ConfigError

ADMIN, USER, READER = "admin-key-0123456789", "user-key-0123456789", "reader-key-0123456789"
ALLOWED = {
    "": {Permission.PUBLIC},
    "Bearer wrong": {Permission.PUBLIC},
    f"Bearer {READER}": {Permission.PUBLIC, Permission.READ},
    f"bearer {USER}": {Permission.PUBLIC, Permission.READ, Permission.USE},
    f"Bearer {ADMIN}": set(Permission),
}


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\nadmin {ADMIN}\n\nuser {USER}\nreadonly  {READER}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def app(engine, store, key_file):
    return create_app(engine, store, Settings(keys=read_keys(key_file)))


def test_every_rule_is_in_the_table_of_routes(app):
    routes = app.config["ROUTES"]
    assert {rule.endpoint for rule in app.url_map.iter_rules()} == set(routes)
    public = {route.path for route in routes.values() if route.permission is Permission.PUBLIC}
    assert public <= {"/", "/api/version", "/api/openapi.json", "/api/docs", "/livez", "/readyz"}


@pytest.mark.parametrize("authorization", ALLOWED)
def test_roles(app, authorization):
    client, headers = app.test_client(), {"Authorization": authorization}
    for route in app.config["ROUTES"].values():
        path = re.sub("<[^>]+>", "x", route.path)
        response = client.open(path, method=route.method, headers=headers, data=b"broken {")
        if route.permission in ALLOWED[authorization]:
            if response.status_code in (401, 403):  # for another reason: what needs Ollama's cloud
                assert "key" not in response.text, (route.method, path)
        else:  # before anything looks at the body
            refused = 403 if READER in authorization or USER in authorization else 401
            assert response.status_code == refused, (route.method, path)
            assert ("WWW-Authenticate" in response.headers) == (refused == 401)
            assert ("Unauthorized access: " in response.text) == (refused == 401 and route.method != "HEAD")


def test_unknown_paths_and_preflights_need_no_key(app):
    assert app.test_client().get("/nope").status_code == 404
    assert app.test_client().options("/api/chat", headers={"Origin": "http://localhost"}).status_code == 204


def test_without_keys_everybody_may_do_everything():
    assert [Keys().check(permission, "") for permission in Permission] == [None] * len(Permission)


def test_anthropics_clients_send_the_key_elsewhere():
    assert sent_key("", ADMIN) == sent_key(f"Bearer {ADMIN}", "") == ADMIN
    assert sent_key("Basic eDp5", ADMIN) == ADMIN
    assert sent_key("", "") == ""


@pytest.mark.parametrize(
    ("text", "what"),
    [("", "has none"), ("root 0123456789abcdef\n", "line 1"), ("admin short\n", "line 1"), ("admin\n", "line 1")],
)
def test_files_that_hold_no_keys(tmp_path, text, what):
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=what):
        read_keys(path)


def test_files_that_others_can_read_are_refused(key_file):
    key_file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_keys(key_file)
    with pytest.raises(ConfigError, match=r"cannot be read.*; name one with server.keys=PATH"):
        read_keys(key_file.with_name("missing"))
    os.mkfifo(key_file.with_name("fifo"), 0o600)
    with pytest.raises(ConfigError, match="must be a plain file"):
        read_keys(key_file.with_name("fifo"))
