"""Manifests as Ollama writes them, and such that could do harm."""

from __future__ import annotations

import hashlib
import json

import pytest

from ollampi.api.store.manifest import Manifest
from ollampi.mpiruntime.errors import ModelError

# What a registry answers for a small model; the bytes are the manifest's, to the last one.
OLLAMA = (
    b'{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":'
    b'"application/vnd.docker.container.image.v1+json","digest":"sha256:'
    + b"a1" * 32
    + b'","size":487},"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:'
    + b"b2" * 32
    + b'","size":4683074048,"from":"base:latest"},{"mediaType":"application/vnd.ollama.image.license","digest":"sha256:'
    + b"c3" * 32
    + b'","size":11343},{"mediaType":"application/vnd.ollama.image.tensor","digest":"sha256:'
    + b"d4" * 32
    + b'","size":8,"name":"model.embed_tokens.weight"}]}\n'
)
VALUES = json.loads(OLLAMA)


def changed(**changes):
    """Return the manifest with other values; a name such as layers_0_size reaches a field of a layer."""
    values = json.loads(OLLAMA)
    for path, value in changes.items():
        *parents, last = path.split("_")
        place = values
        for parent in parents:
            place = place[int(parent) if parent.isdigit() else parent]
        place[last] = value
    return json.dumps(values).encode()


def test_bytes_of_ollama_are_read_and_written_unchanged():
    manifest = Manifest.parse(OLLAMA)
    model, license_, tensor = manifest.layers
    assert manifest.config.digest.file_name == "sha256-" + "a1" * 32
    assert (model.size, model.origin, model.name) == (4683074048, "base:latest", "")
    assert (license_.size, tensor.name) == (11343, "model.embed_tokens.weight")
    assert manifest.encode() == OLLAMA
    assert Manifest(manifest.config, manifest.layers).encode() == OLLAMA  # built anew, they are what Go would write
    assert manifest.digest == f"sha256:{hashlib.sha256(OLLAMA).hexdigest()}"


def test_a_config_without_media_type_and_unknown_fields_are_read():
    values = {**VALUES, "config": {"digest": "sha256:" + "0" * 64, "size": 0}, "annotations": {}}
    assert Manifest.parse(json.dumps(values, indent=2).encode()).config.size == 0


HARMFUL = {
    "no-json": b"\0", "empty": b"", "list": b"[]", "deep": b"[" * 100_000, "not-utf8": b'{"schemaVersion":2,"\xff":1}',
    "twice": OLLAMA.replace(b'"size":487', b'"size":487,"size":488'),
    "version": changed(schemaVersion=1), "kind": changed(mediaType="text/html"),
    "no-layers": changed(layers=[]), "layers-null": changed(layers=None), "layers-object": changed(layers={}),
    "many-layers": changed(layers=[VALUES["layers"][1]] * 10_000),
    "no-config": changed(config=None),
    "size-negative": changed(layers_0_size=-1), "size-huge": changed(layers_0_size=2**63),
    "size-float": changed(layers_0_size=1.5), "size-text": changed(layers_0_size="1"),
    "size-bool": changed(layers_0_size=True),
    "digest-up": changed(layers_0_digest="sha256:../../../../tmp/x"), "digest-null": changed(layers_0_digest=None),
    "digest-short": changed(layers_0_digest="sha256:" + "a" * 63),
    "type-number": changed(layers_0_mediaType=5), "type-empty": changed(layers_0_mediaType=""),
    "type-line": changed(layers_0_mediaType="a\nb"), "type-none": changed(layers_0_mediaType=None),
    "name-up": changed(layers_2_name="../../x"), "name-in": changed(layers_2_name="a/../../x"),
    "name-absolute": changed(layers_2_name="/etc/passwd"), "name-dot": changed(layers_2_name="./x"),
    "name-backslash": changed(layers_2_name="..\\x"), "name-nul": changed(layers_2_name="a\0b"),
    "name-slash": changed(layers_2_name="a/"), "name-long": changed(layers_2_name="a" * 5000),
    "name-number": changed(layers_2_name=5),
    "two-sizes": changed(layers_1_digest=VALUES["layers"][0]["digest"]),
    "model-twice": changed(layers=[VALUES["layers"][0]] * 2),
    "name-twice": changed(layers=[VALUES["layers"][2], {**VALUES["layers"][2], "digest": "sha256:" + "e" * 64}]),
    "too-long": OLLAMA + b" " * (5 << 20),
}  # fmt: skip


@pytest.mark.parametrize("raw", HARMFUL.values(), ids=HARMFUL)
def test_harmful_manifests_are_refused_in_a_line(raw):
    with pytest.raises(ModelError, match="manifest") as caught:
        Manifest.parse(raw)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
