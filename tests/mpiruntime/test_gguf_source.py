"""GGUF files hold what the checkpoints did that they were made of: values, names and the order of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.checkpoints import write_checkpoint
from support.gguf_blocks import ALL, blocks, numbers
from support.gguf_files import MODELS, add_value, finish, write_gguf
from torch import Tensor

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.gguf_source import GgufSource, in_llama_cpp, open_gguf


class Reader:
    """Reads bytes as a checkpoint does, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path, offset: int, count: int) -> Tensor:
        self.count += count
        with path.open("rb") as file:
            file.seek(offset)
            return torch.frombuffer(bytearray(file.read(count)), dtype=torch.uint8)


def whole(source: GgufSource) -> Tensor:
    rows = source.shape[0] if len(source.shape) == 1 else int(np.prod(source.shape[:-1]))
    return source.rows(0, rows, Reader()).values.float().view(source.shape)


def assert_holds(path: Path, held: dict[str, Tensor]) -> None:
    sources = open_gguf(path)
    assert set(sources) == set(held)
    for name, values in held.items():
        assert sources[name].name == name
        assert sources[name].shape == tuple(values.shape), name
        assert torch.equal(whole(sources[name]), values), name


@pytest.mark.parametrize("kind", ALL)
def test_every_type_is_read_as_the_gguf_package_reads_it(tmp_path: Path, kind: str) -> None:
    folder = write_checkpoint(tmp_path / "m", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    held = write_gguf(tmp_path / "m.gguf", folder, kind)
    assert_holds(tmp_path / "m.gguf", held)
    assert open_gguf(tmp_path / "m.gguf")["model.layers.0.mlp.down_proj.weight"].kind == kind


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("model", MODELS)
def test_models_are_read_as_they_were(tmp_path: Path, model: str, kind: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **MODELS[model])
    assert_holds(tmp_path / "m.gguf", write_gguf(tmp_path / "m.gguf", folder, kind))


def one_tensor(path: Path, raw: np.ndarray, kind: str, name: str = "blk.0.ffn_up.weight") -> GgufSource:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    finish(writer)
    return next(iter(open_gguf(path).values()))


@pytest.mark.parametrize(("kind", "bits", "least"), [("Q8_0", 8, -127), ("Q4_0", 4, -8)])
def test_scales_make_whole_numbers_of_the_values(tmp_path: Path, kind: str, bits: int, least: int) -> None:
    rng = np.random.default_rng(3)
    raw = blocks(rng.normal(size=(6, 96)).astype(np.float32), kind, rng)
    source = one_tensor(tmp_path / "m.gguf", raw, kind)
    rows = source.rows(1, 5, Reader())
    assert (source.bits, rows.scales.dtype, rows.scales.shape) == (bits, torch.float16, (4, 3))
    codes = rows.values.double() / rows.scales.double().repeat_interleave(32, 1)
    assert torch.equal(codes, codes.round())
    assert least <= codes.min() <= codes.max() <= -least
    assert torch.equal(rows.values, torch.from_numpy(numbers(raw, kind))[1:5])


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1", "Q6_K"])
def test_rows_read_their_own_bytes_only(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    raw = blocks(rng.normal(size=(10, 256)).astype(np.float32), kind, rng)
    source = one_tensor(tmp_path / "m.gguf", raw, kind)
    reader = Reader()
    rows = source.rows(3, 7, reader)
    assert reader.count == 4 * raw.nbytes // 10 == 4 * source.size_bytes // 10
    assert torch.equal(rows.values.float(), torch.from_numpy(numbers(raw, kind))[3:7])


@pytest.mark.parametrize(("first", "last"), [(0, 16), (5, 7), (3, 13), (7, 9), (8, 16)])
def test_of_heads_that_are_in_another_order_whole_heads_are_read(tmp_path: Path, first: int, last: int) -> None:
    folder = write_checkpoint(tmp_path / "m", num_key_value_heads=2, num_attention_heads=8)
    held = write_gguf(tmp_path / "m.gguf", folder, "Q8_0")
    source, reader = open_gguf(tmp_path / "m.gguf")["model.layers.1.self_attn.k_proj.weight"], Reader()
    rows = source.rows(first, last, reader)
    assert torch.equal(rows.values, held[source.name][first:last])
    heads = -(-last // 8) - first // 8
    assert reader.count == heads * 8 * source.row_bytes
    assert rows.scales is not None
    assert rows.scales.shape == (last - first, 2)


def test_an_expert_reads_its_own_rows_only(tmp_path: Path) -> None:
    held = write_gguf(tmp_path / "m.gguf", write_checkpoint(tmp_path / "m", **MODELS["qwen3_moe"]), "Q4_0")
    source, reader = open_gguf(tmp_path / "m.gguf")["model.layers.1.mlp.experts.2.up_proj.weight"], Reader()
    assert torch.equal(source.rows(4, 6, reader).values, held[source.name][4:6])
    assert reader.count == 2 * 64 // 32 * 18
    assert source.size_bytes == 64 * 64 // 32 * 18


def test_one_tensor_for_each_expert_is_read_too(tmp_path: Path) -> None:
    """As files of 2023 have them."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    add_value(writer, "llama.attention.head_count", 2)
    writer.add_tensor("blk.3.ffn_down.5.weight", np.ones((2, 4), np.float32))
    finish(writer)
    assert list(open_gguf(tmp_path / "m.gguf")) == ["model.layers.3.block_sparse_moe.experts.5.w2.weight"]


def test_the_order_of_rows_in_a_head() -> None:
    assert in_llama_cpp(torch.arange(12), 6).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_unknown_tensors_keep_their_names_and_those_of_pictures_go(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gemma3")
    for name in ("v.blk.0.attn_q.weight", "mm.input_projection.weight", "blk.0.{}_exps.weight", "strange{}{0.real}"):
        writer.add_tensor(name, np.ones((1, 4, 4), np.float32))
    finish(writer)
    assert sorted(open_gguf(tmp_path / "m.gguf")) == ["blk.0.{}_exps.weight", "strange{}{0.real}"]


def _vector(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("output_norm.weight", np.zeros(34, np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)


def _flat_experts(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((4, 4), np.float32))


def _odd_heads(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((6, 4), np.float32))


def _twice(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("blk.0.ffn_up.0.weight", np.zeros((4, 4), np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((2, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (_vector, "output_norm.weight.*Q8_0.*must be F32"),
        (_flat_experts, r"ffn_up_exps.weight.*\[4, 4\].*\[experts, rows, width\]"),
        (_odd_heads, "attn_q.weight.*6 rows.*2 heads"),
        (_twice, "ffn_up_exps.weight.*experts.0.w3.weight"),
    ],
)
def test_tensors_that_cannot_be_are_refused(tmp_path: Path, add: Callable[[gguf.GGUFWriter], None], words: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    add_value(writer, "llama.attention.head_count", 2)
    add(writer)
    finish(writer)
    with pytest.raises(CheckpointError, match=words):
        open_gguf(tmp_path / "m.gguf")
