"""Hugging Face on loopback: the list of a repository's files, and the files."""

from __future__ import annotations

import hashlib
import json

from support.registry import Registry

COMMIT = "5" * 40


def publish_repository(
    registry: Registry, repo: str, files: dict[str, bytes], large: tuple[str, ...] = (".gguf", ".safetensors")
) -> None:
    """Answer as Hugging Face does for a repository; files with the endings `large` have a SHA-256 in its list.

    The routes and fields are those that huggingface_hub's HfApi.model_info and hf_hub_url use.
    """
    siblings = []
    for path, data in files.items():
        entry = {
            "rfilename": path,
            "size": len(data),
            "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest(),
        }
        if path.endswith(large):
            entry["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 135}
        siblings.append(entry)
        registry.files[f"/{repo}/resolve/{COMMIT}/{path}"] = (data, {"ETag": '"x"', "X-Linked-Size": str(len(data))})
    listed = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
    headers = {"Content-Type": "application/json"}
    registry.files[f"/api/models/{repo}"] = (json.dumps(listed).encode(), headers)
    registry.files[f"/api/models/{repo}/revision/v1"] = (json.dumps(listed).encode(), headers)
