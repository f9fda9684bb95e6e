"""A registry on loopback: a real server that keeps manifests and blobs in a folder, with faults on demand.

`python -m support.registry FOLDER` runs one in a process of its own and prints its port.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.registry_routes import MANIFEST_TYPE, Fault, Handler

CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MODEL_TYPE = "application/vnd.ollama.image.model"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """The server; `seen` lists the requests as (line, headers)."""

    def __init__(self, folder: Path, token: str | None = None, certificate: Path | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.manifests: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.token = token
        self.uploads: dict[str, Path] = {}
        self.files: dict[str, tuple[bytes, dict[str, str]]] = {}  # path -> body and headers, as of Hugging Face
        self.over = threading.Event()
        self.lock = threading.Lock()
        handler = type("Handler", (Handler,), {"registry": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def path(self, digest: str) -> Path:
        return self.folder / digest.replace(":", "-")

    def add(self, data: bytes) -> dict[str, Any]:
        """Keep a blob; return what a manifest says of it."""
        digest = digest_of(data)
        self.path(digest).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    def publish(self, name: str, *blobs: bytes, config: bytes = b"{}") -> list[str]:
        """Keep a model of these blobs under "namespace/model:tag"; return their digests."""
        layers = [{"mediaType": MODEL_TYPE, **self.add(data)} for data in blobs]
        self.put_manifest(name, layers, {"mediaType": CONFIG_TYPE, **self.add(config)})
        return [layer["digest"] for layer in layers]

    def put_manifest(self, name: str, layers: Any, config: Any = None) -> None:
        config = {"mediaType": CONFIG_TYPE, **self.add(b"{}")} if config is None else config
        values = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
        self.manifests[name] = json.dumps(values).encode()

    def fail(self, pattern: str, action: str, value: Any = 0, times: int = 1, **headers: str) -> None:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        self.faults.append(Fault(pattern, action, value, times, named))

    def fault_for(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None

    def lines(self, pattern: str = "") -> list[str]:
        """Return the request lines that were seen and match."""
        return [line for line, _ in self.seen if re.search(pattern, line)]

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextmanager
def running_registry(folder: Path, **more: Any) -> Iterator[Registry]:
    """Run a registry until the block ends."""
    registry = Registry(folder, **more)
    try:
        yield registry
    finally:
        registry.close()


if __name__ == "__main__":
    print(Registry(Path(sys.argv[1])).port, flush=True)
    threading.Event().wait()
