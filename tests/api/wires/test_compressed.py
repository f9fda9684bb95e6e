"""Bodies that are compressed: taken by one route, and no larger than they may be."""

from __future__ import annotations

import json

import pytest
import zstandard

PATH = "/v1/responses"
BODY = {"model": "chatty", "input": "hi"}


def post_zstd(client, data, path=PATH):
    return client.post(path, data=data, headers={"Content-Encoding": "zstd"})


def test_compressed_bodies(client, models_folder, make_client):
    data = zstandard.compress(json.dumps(BODY).encode())
    assert post_zstd(client, data).json["output"][0]["content"][0]["text"] == "Hello, world"
    half = zstandard.compress(b'{"model": "chatty", ')
    assert post_zstd(client, half + zstandard.compress(b'"input": "hi"}')).status_code == 200
    for path in ("/v1/chat/completions", "/api/chat", "/v1/nope"):
        assert post_zstd(client, data, path).status_code == 415
    assert client.post(PATH, data=data, headers={"Content-Encoding": "gzip"}).status_code == 415
    for broken in (b"x" * 100, data[:-9], data[4:], b""):
        assert post_zstd(client, broken).status_code == 400
    small = make_client(models_folder, max_body_bytes=1000)
    assert post_zstd(small, zstandard.compress(json.dumps(BODY | {"user": "x" * 1000}).encode())).status_code == 413


@pytest.mark.parametrize("level", [1, 19])
def test_bombs(client, level):
    fits = json.dumps(BODY | {"user": "x" * ((20 << 20) - 100)}).encode()
    assert post_zstd(client, zstandard.compress(fits, level)).status_code == 200
    bomb = zstandard.compress(bytes(64 << 20), level)
    assert len(bomb) < 10_000
    answer = post_zstd(client, bomb * 16)
    assert (answer.status_code, answer.json["error"]["type"]) == (413, "api_error")


def test_windows_that_are_too_large(client):
    settings = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    data = compressor.compress(bytes(1 << 20)) + compressor.flush()
    assert post_zstd(client, data).status_code == 400
