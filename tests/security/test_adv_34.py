"""Advisory 34: media URLs make the server fetch (SSRF): none is fetched."""

from __future__ import annotations

import socket

import pytest


@pytest.mark.parametrize("scheme", ["http", "https", "file", "ftp"])
def test_nothing_is_fetched(attacked, scheme):
    with socket.create_server(("127.0.0.1", 0)) as canary:
        url = f"{scheme}://127.0.0.1:{canary.getsockname()[1]}/x.png"
        parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]
        source = {"type": "url", "url": url}
        for path, body in (
            ("/api/generate", {"prompt": "x", "images": [url]}),
            ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [url]}]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]}),
            (
                "/v1/messages",
                {"max_tokens": 2, "messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]},
            ),
            ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
        ):
            assert attacked.post(path, **body)[0] == 400, path
        canary.settimeout(0.2)
        with pytest.raises(TimeoutError):
            canary.accept()
