"""Advisory 5: create reads any path (CVE-2024-39719, -39721, -39722): a client names models and blobs, never files."""

from __future__ import annotations

import os

import pytest

DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def paths(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "there").write_text("x")
    return [*map(str, (tmp_path / "pipe", tmp_path / "link", tmp_path / "there", tmp_path / "missing")), "/dev/zero"]


def test_paths_as_bases(attacked, paths):
    answers = set()
    for path in [*paths, "/etc/passwd", "/dev/random", "file:///etc/passwd", "~/x", "../../etc/passwd"]:
        status, answer = attacked.post("/api/create", model="out", **{"from": path})
        assert status in (400, 404), (path, answer)
        answers.add((status, answer["error"].replace(path, "PATH")))
    assert len(answers) <= 2, "whether a file is there cannot be told"
    there, missing = (attacked.post("/api/create", model="out", **{"from": path})[1] for path in paths[2:4])
    assert there["error"].replace(paths[2], "") == missing["error"].replace(paths[3], "")


def test_paths_as_files(attacked, paths):
    for path in paths:
        for files in ({path: DIGEST}, {"model.gguf": path}, {"model.gguf": f"sha256:{path}"}):
            status, answer = attacked.post("/api/create", model="out", files=files)
            assert status == 400, (files, answer)
