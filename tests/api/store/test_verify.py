"""`verify` reads every byte, and says which models a damaged blob belongs to."""

from __future__ import annotations

import hashlib
import json

import pytest
from click.testing import CliRunner

from ollampi.api.names import parse_name
from ollampi.api.store.verify import verify
from ollampi.launcher.cli import main
from ollampi.mpiruntime.errors import ModelError

LIBRARY = "registry.ollama.ai/library"
WEIGHTS = bytes(range(256)) * 5000


@pytest.fixture
def blob(root, put_model):
    """Return the blob that two models share; a third has blobs of its own but for its config."""
    for name in ("a", "b"):
        put_model(f"{LIBRARY}/{name}/latest", ("model", WEIGHTS), ("system", name.encode()))
    put_model(f"{LIBRARY}/c/latest", ("model", b"c"))
    return root / "blobs" / f"sha256-{hashlib.sha256(WEIGHTS).hexdigest()}"


def test_whole_blobs_are_ok_and_looked_at_once(local, blob):
    findings = list(verify(local))
    assert {finding.state for finding in findings} == {"ok"}
    assert len(findings) == len({finding.digest for finding in findings}) == 5
    assert next(f.models for f in findings if f.size == len(WEIGHTS)) == ("a:latest", "b:latest")
    assert len(list(verify(local, parse_name("A")))) == 3


@pytest.mark.parametrize("damage", ["bit", "zeros", "short", "long", "gone"])
def test_every_damage_is_found(damage, local, blob):
    content = {
        "bit": WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]), "zeros": bytes(len(WEIGHTS)), "short": WEIGHTS[:-1],
        "long": WEIGHTS + b"x", "gone": None,
    }[damage]  # fmt: skip
    if content is None:
        blob.unlink()
    else:
        blob.write_bytes(content)
    states = {"bit": "wrong digest", "zeros": "wrong digest", "short": "wrong size", "long": "wrong size"}
    (finding,) = [finding for finding in verify(local) if finding.state != "ok"]
    assert finding.state == states.get(damage, "missing")
    assert finding.models == ("a:latest", "b:latest")
    assert finding.digest == f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    assert finding.size == len(WEIGHTS)
    assert finding.found_size == (None if content is None else len(content))
    assert finding.found == (None if content is None else f"sha256:{hashlib.sha256(content).hexdigest()}")
    assert all(finding.state == "ok" for finding in verify(local, parse_name("c")))


def test_a_damaged_manifest_is_a_finding_and_an_unknown_name_an_error(local, blob, root):
    (root / "manifests" / LIBRARY / "c" / "latest").write_text("{")
    assert [f.models for f in verify(local) if f.state == "unreadable"] == [("c:latest",)]
    with pytest.raises(ModelError, match="model 'd:latest' not found in the store"):
        list(verify(local, parse_name("d")))


def test_the_command_says_both_digests_and_ends_with_1(root, blob):
    run = CliRunner(env={"OLLAMA_MODELS": str(root)})
    done = run.invoke(main, ["verify"])
    assert (done.exit_code, done.output.count("ok: sha256:")) == (0, 5)
    content = bytes(len(WEIGHTS))
    blob.write_bytes(content)
    done = run.invoke(main, ["verify", "a", "b"])
    assert done.exit_code == 1
    (line,) = [line for line in done.output.splitlines() if not line.startswith("ok")]
    assert line.startswith(f"wrong digest: sha256:{blob.name[7:]} with {len(WEIGHTS)} bytes, found sha256:")
    assert hashlib.sha256(content).hexdigest() in line
    assert line.endswith("pull again: a:latest, b:latest")
    done = CliRunner().invoke(main, ["verify", "--json", "--store", str(root), "b"])
    objects = [json.loads(line) for line in done.output.splitlines()]
    assert sorted(each["state"] for each in objects) == ["ok", "ok", "wrong digest"]
    assert run.invoke(main, ["verify", "../x"]).exit_code == 1
    assert run.invoke(main, ["verify", "d"]).exit_code == 1


def test_an_empty_store_is_whole(tmp_path):
    done = CliRunner(env={"OLLAMA_MODELS": str(tmp_path)}).invoke(main, ["verify"])
    assert (done.exit_code, done.output) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_not_there_is_no_whole_one(tmp_path):
    done = CliRunner(env={"OLLAMA_MODELS": str(tmp_path / "none")}).invoke(main, ["verify"])
    assert done.exit_code == 1
    assert "there is no model store" in done.output
    assert not (tmp_path / "none").exists()
