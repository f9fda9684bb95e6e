"""Advisory 3: members of archives that escape their folder (CVE-2024-45436). We unpack none: files come one by one."""

from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

ESCAPES = ["../x", "/etc/x", "a/../../x", "a//../../x", "..", "~/x", "a\\..\\..\\x", "C:\\x", "a/\0"]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_of_files(attacked, name):
    digest = attacked.upload(b"{}")
    for field in ("files", "adapters"):
        status, answer = attacked.post("/api/create", model="out", **{field: {name: digest}})
        assert status == 400, answer
    assert attacked.server.request("GET", "/api/tags")[1]["models"]
    assert "out" not in str(attacked.server.request("GET", "/api/tags")[1])


def test_archives_are_no_models(attacked):
    packed, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../escaped", "x")
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    for name, data in (
        ("model.zip", packed.getvalue()),
        ("model.gguf", packed.getvalue()),
        ("x.tar", tarred.getvalue()),
    ):
        status, answer = attacked.post("/api/create", model="out", files={name: attacked.upload(data)})
        assert status == 400, answer
    assert not list(attacked.store.parent.rglob("escaped"))
