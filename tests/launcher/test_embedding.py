"""Embeddings over HTTP from a job of two ranks: both routes, both poolings, beside answers, cut and refused texts."""

from __future__ import annotations

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from support.checkpoints import reference_hidden
from support.servers import DEMO, Server, server
from tokenizers import Tokenizer

TEXTS = [
    "import os\n",
    "def read(path):\n    return open(path).read()\n" * 60,
    "x",
    "Grüße, 世界 🙂",
    "class A:\n" * 20,
]


def vectors(job: Server, model: str, **fields: object) -> torch.Tensor:
    """Return the embeddings of TEXTS, [5, D]."""
    status, answer = job.request("POST", "/api/embed", {"model": model, "input": TEXTS, **fields})
    assert status == 200, answer
    return torch.tensor(answer["embeddings"])


def test_embeddings_over_http(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "models" / "mean")
    (tmp_path / "models" / "mean" / "1_Pooling").mkdir()
    config = tmp_path / "models" / "mean" / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    hidden = [reference_hidden(DEMO, tokenizer.encode(text).ids) for text in TEXTS]
    last, mean = torch.stack([h[-1] for h in hidden]), torch.stack([h.mean(0) for h in hidden])
    with server(2, tmp_path, "dtype=float32", f"model_folders={tmp_path / 'models'}") as job:
        text = job.generate("import os\n", 40)
        with ThreadPoolExecutor(6) as pool:
            texts = [pool.submit(job.generate, "import os\n", 40) for _ in range(2)]
            found = [pool.submit(vectors, job, model) for model in ("demo", "mean", "demo", "mean")]
            assert [future.result() for future in texts] == [text, text]
            for future, expected in zip(found, (last, mean, last, mean), strict=True):
                unit = expected / expected.norm(dim=1, keepdim=True)
                assert (future.result() - unit).abs().max() <= 1e-4
        short = vectors(job, "mean", dimensions=7)
        assert (short - mean[:, :7] / mean[:, :7].norm(dim=1, keepdim=True)).abs().max() <= 1e-4
        _, raw = job.request("POST", "/api/embeddings", {"model": "demo", "prompt": TEXTS[0]})
        assert (torch.tensor(raw["embedding"]) - last[0]).abs().max() <= 1e-3
        _, answer = job.request("POST", "/api/embed", {"model": "demo", "input": TEXTS})
        assert answer["prompt_eval_count"] == sum(map(len, hidden))
        assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-6) for vector in answer["embeddings"])
        long = {"model": "demo", "input": TEXTS[1], "options": {"num_ctx": 32}}
        _, answer = job.request("POST", "/api/embed", long)
        assert answer["prompt_eval_count"] == 32
        status, answer = job.request("POST", "/api/embed", long | {"truncate": False})
        assert (status, answer) == (400, {"error": "the input length exceeds the context length"})
        status, answer = job.request("POST", "/api/generate", {"model": "mean", "prompt": "x"})
        assert (status, answer) == (400, {"error": '"mean" does not support generate'})
