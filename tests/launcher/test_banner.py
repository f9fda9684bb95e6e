"""Test the table that a started server prints."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ollampi.kernels.choice import NATIVE, Choice
from ollampi.launcher.banner import KEY_HEADER, banner
from ollampi.mpiruntime.hosted_model import HostedModel
from ollampi.mpiruntime.request import ModelRef


def hosted(context: int, max_context: int, path: str = "/m", has_head: bool = True) -> HostedModel:
    """Return as much of a model as the banner reads."""
    report = SimpleNamespace(weight_bytes=0, cache_bytes=0, read_bytes=0, heads=(0, 2), kv_heads=(0, 1))
    report.rank, report.unread, report.formats = 0, [], ["float32"]
    config = SimpleNamespace(max_context=max_context, has_head=has_head)
    values: Any = SimpleNamespace(ref=ModelRef("m:latest", path), dtype="float32", context=context, config=config)
    values.synchronization = ""
    values.reports, values.cache_tokens, values.cache_dtype = [report], 8192, "int8"
    values.settings = SimpleNamespace(quantize="none", deterministic=False)
    values.num_streamed = 0
    values.draft = SimpleNamespace(name="small:latest", reports=[SimpleNamespace(weight_bytes=1024, cache_bytes=1024)])
    return cast(HostedModel, values)


@pytest.mark.parametrize(
    ("max_context", "text"),
    [
        (4096, "context 2048, cache of 8192 tokens in int8, Open MPI"),
        (2048, "context 2048 (the model's limit), cache of"),
    ],
)
def test_the_first_line_says_where_the_context_ends(max_context: int, text: str) -> None:
    facts: Any = [SimpleNamespace(rank=0, host="h", cores=[0, 1, 2, 5], threads=4, gpu="")]
    lines = banner(
        hosted(2048, max_context), facts, "Open MPI 5.0.11", "MPI, as asked for", Choice({"float32": 4}), "http://h:1"
    ).splitlines()
    assert lines[0].startswith(f"m:latest in float32, {text}")
    assert "tensors are exchanged through MPI, as asked for" in lines
    assert f"weights in float32 are multiplied by {Choice({'float32': 4}).told('float32')}" in lines
    assert lines[4].split()[:6] == ["0", "h", "0-2,5", "4", "0-1", "0"]
    assert "small:latest drafts for it; weights and cache per rank: 2 KiB" in lines


def test_a_line_says_what_streaming_reads() -> None:
    facts: Any = [SimpleNamespace(rank=0, host="h", cores=[0], threads=1, gpu="")]
    model = hosted(16, 16)
    model.num_streamed, model.config.num_layers, model.reports[0].step_bytes = 3, 8, 5 << 20  # type: ignore[misc]
    lines = banner(model, facts, "no MPI", "", NATIVE, "http://h:1").splitlines()
    assert "3 of 8 layers are streamed: a rank reads 5 MiB in every step" in lines


def test_the_table_has_the_device_of_each_rank_where_there_are_gpus() -> None:
    values: Any = hosted(16, 16)
    values.reports = [SimpleNamespace(**{**vars(values.reports[0]), "rank": rank}) for rank in range(2)]
    facts: Any = [
        SimpleNamespace(rank=rank, host="h", cores=[rank], threads=1, device=f"cuda:{rank}", gpu="NVIDIA H")
        for rank in range(2)
    ]
    lines = banner(values, facts, "no MPI", "NCCL", NATIVE, "http://h:1").splitlines()
    assert lines[2].split()[:4] == ["rank", "host", "device", "cores"]
    assert lines[5].split()[:6] == ["1", "h", "cuda:1", "(NVIDIA", "H)", "1"]
    assert "tensors are exchanged through NCCL" in lines
    assert not any("are multiplied by" in line for line in lines)  # what kernels of CPUs do is of no interest


def test_the_first_request_has_a_key_where_the_server_asks_for_one() -> None:
    facts: Any = [SimpleNamespace(rank=0, host="h", cores=[0], threads=1, gpu="")]
    last = banner(hosted(16, 16), facts, "no MPI", "", NATIVE, "http://h:1", header=KEY_HEADER).splitlines()[-1]
    assert last.startswith('  curl -H "Authorization: Bearer $OLLAMA_API_KEY" http://h:1/api/generate -d ')


@pytest.mark.parametrize(("has_head", "pools"), [(True, False), (True, True), (False, False)])
def test_the_first_request_is_one_that_the_model_can_answer(tmp_path: Path, has_head: bool, pools: bool) -> None:
    if pools:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    facts: Any = [SimpleNamespace(rank=0, host="h", cores=[0], threads=1, gpu="")]
    last = banner(hosted(16, 16, str(tmp_path), has_head), facts, "no MPI", "", NATIVE, "http://h:1").splitlines()[-1]
    if has_head and not pools:
        assert last.startswith('  curl http://h:1/api/generate -d \'{"model": "m", "prompt": ')
    else:
        assert last == """  curl http://h:1/api/embed -d '{"model": "m", "input": "Close the file."}'"""
