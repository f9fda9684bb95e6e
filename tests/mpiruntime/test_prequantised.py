"""FP8, AWQ and GPTQ tensors are read exactly; others are refused by tensor, method and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.packers import Numbers, awq, gptq, random_numbers
from support.sources import Reader, all_rows

from ollampi.mpiruntime.errors import CheckpointError
from ollampi.mpiruntime.prequantised import Prequantised, prequantised_sources
from ollampi.mpiruntime.safetensors_header import read_header

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
WORDS, BYTES = torch.zeros(8, 64, dtype=torch.int32), torch.zeros(64, 32, dtype=torch.uint8)


def opened(folder: Path, config: object, tensors: dict[str, torch.Tensor]) -> Prequantised:
    (folder / "config.json").write_text(json.dumps({"quantization_config": config} if config is not None else {}))
    save_file({f"q.{name}": t.clone() for name, t in tensors.items()}, folder / "model.safetensors")
    return prequantised_sources(folder, read_header(folder / "model.safetensors"), Reader())


def test_an_awq_word_by_hand(tmp_path: Path) -> None:
    """Outputs 0 to 7 have the numbers 0 to 7; their places in a word are 0, 2, 4, 6, 1, 3, 5, 7."""
    word = torch.tensor([[0x75316420]], dtype=torch.int32)
    zeros = torch.tensor([[0x75316420 - 0x11111110]], dtype=torch.int32)  # 0, 0, 1, 2, ... by output: less one
    scales = torch.tensor([[0.5, 1, 2, 3, 4, 5, 6, 7]], dtype=torch.float16)
    config = {**AWQ, "group_size": -1}
    (source,) = opened(tmp_path, config, {"qweight": word, "qzeros": zeros, "scales": scales}).sources.values()
    assert (source.name, source.shape, source.kind, source.bits) == ("q.weight", (8, 1), "AWQ", None)
    assert all_rows(source).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("told", "zeros", "expected"),
    [("gptq", 0x77777777, -8), ("gptq", 0, -1), ("gptq", -1, -16), ("gptq_v2", 0x77777777, -7), ("gptq_v2", 0, 0)],
)
def test_a_gptq_word_by_hand(tmp_path: Path, told: str, zeros: int, expected: int) -> None:
    """Inputs 0 to 7 of each output have the numbers 0 to 7; a zero of the first format is one more than it says."""
    tensors = {
        "qweight": torch.full((1, 8), 0x76543210, dtype=torch.int32),
        "qzeros": torch.full((1, 1), zeros, dtype=torch.int32),
        "scales": torch.full((1, 8), 2.0, dtype=torch.float16),
    }
    config = {**GPTQ, "group_size": 8, "checkpoint_format": told}
    (source,) = opened(tmp_path, config, tensors).sources.values()
    assert all_rows(source)[3].tolist() == [2 * (number + expected) for number in range(8)]


@pytest.mark.parametrize(
    ("byte", "value"), [(0x38, 1.0), (0xB8, -1.0), (0x7E, 448.0), (0x01, 2.0**-9), (0x08, 2.0**-6), (0x80, 0.0)]
)
def test_an_fp8_byte_by_hand(tmp_path: Path, byte: int, value: float) -> None:
    """e4m3: a sign, four bits of exponent less 7, three bits of fraction, and below 2^-6 steps of 2^-9."""
    number = torch.tensor([[byte]], dtype=torch.uint8).view(torch.float8_e4m3fn)
    (source,) = opened(tmp_path, FP8, {"weight": number, "weight_scale": torch.tensor(3.0)}).sources.values()
    assert all_rows(source).item() == 3 * value


@pytest.mark.parametrize("kind", ["awq", "gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("out", "width", "group"), [(64, 96, 32), (40, 256, 128), (24, 64, 64), (16, 160, 128)])
def test_packed_numbers_are_read_exactly(
    tmp_path: Path, kind: str, symmetric: bool, out: int, width: int, group: int
) -> None:
    numbers = random_numbers(out, width, group, symmetric=symmetric)
    told = {"group_size": group, "zero_point": not symmetric, "sym": symmetric, "checkpoint_format": kind}
    tensors = awq(numbers) if kind == "awq" else gptq(numbers, first_format=kind == "gptq")
    found = opened(tmp_path, {**(AWQ if kind == "awq" else GPTQ), **told}, {**tensors, "bias": torch.ones(out)})
    (source,) = found.sources.values()
    assert list(found.rest) == ["q.bias"]
    assert source.bits == (4 if symmetric else 8)
    for piece in (out, 16, 5):
        assert torch.equal(all_rows(source, piece), numbers.weight())
    rows = source.rows(3, 19, Reader()) if out > 19 else source.rows(3, out, Reader())
    assert rows.scales is not None
    assert rows.scales.dtype == torch.float16
    whole = rows.values.unflatten(1, (-1, 32)) / rows.scales.float()[..., None]
    assert torch.equal(whole, whole.round())
    low, high = (-8, 7) if symmetric else (-16, 15)
    assert low <= whole.min() <= whole.max() <= high


@pytest.mark.parametrize(("bits", "shuffled", "group"), [(4, True, 32), (8, False, 32), (8, True, 64), (4, False, 8)])
def test_numbers_that_our_format_has_no_room_for_come_as_floats(
    tmp_path: Path, bits: int, shuffled: bool, group: int
) -> None:
    numbers = random_numbers(48, 128, group, bits, shuffled=shuffled)
    config = {**GPTQ, "bits": bits, "group_size": group, "desc_act": shuffled}
    (source,) = opened(tmp_path, config, gptq(numbers, bits)).sources.values()
    assert source.bits is None
    assert torch.equal(all_rows(source, 7), numbers.weight())
    assert source.rows(0, 5, Reader()).scales is None


def test_symmetry_that_is_only_told_of_is_looked_after(tmp_path: Path) -> None:
    (source,) = opened(tmp_path, {**GPTQ, "sym": True}, gptq(random_numbers(16, 64, 32))).sources.values()
    assert source.bits == 8


def test_scales_in_bf16_stay_what_they_are(tmp_path: Path) -> None:
    numbers = random_numbers(16, 64, 32)
    scales = torch.from_numpy(numbers.s).bfloat16()
    exact = Numbers(numbers.q, numbers.z, scales.float().numpy(), numbers.group_of)
    (source,) = opened(tmp_path, GPTQ, {**gptq(numbers), "scales": scales}).sources.values()
    assert source.bits is None
    assert torch.equal(all_rows(source), exact.weight())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [[128, 128], [16, 32], None])
@pytest.mark.parametrize("name", ["weight_scale_inv", "weight_scale"])
def test_fp8_in_blocks_is_read_exactly(tmp_path: Path, dtype: torch.dtype, block: list[int] | None, name: str) -> None:
    tall, wide = block or (128, 128)
    weight = torch.randn(200, 300).to(torch.float8_e4m3fn)
    scales = (torch.rand(-(-200 // tall), -(-300 // wide)) + 0.1).to(dtype)
    config = {"quant_method": "fp8", "weight_block_size": block}
    if name == "weight_scale":
        weights = {"strategy": "block", "block_structure": block}
        config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    (source,) = opened(tmp_path, config, {"weight": weight, name: scales}).sources.values()
    i, j = np.arange(200)[:, None] // tall, np.arange(300)[None] // wide
    expected = weight.float() * scales.float()[i, j]
    for piece in (200, 129, 7):
        assert torch.equal(all_rows(source, piece), expected)
    assert (source.kind, source.bits, source.size_bytes) == ("FP8", None, 60000 + scales.nbytes)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (48,), (48, 1)])
def test_fp8_with_a_scale_for_all_or_for_each_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weight, scales = torch.randn(48, 20).to(torch.float8_e4m3fn), torch.rand(shape)
    rest = {"input_scale": torch.ones(1), "k_scale": torch.ones(1), "bias": torch.ones(48)}
    found = opened(tmp_path, {"quant_method": "fbgemm_fp8"}, {"weight": weight, "weight_scale": scales, **rest})
    (source,) = found.sources.values()
    expected = weight.float() * (scales.view(-1, 1) if scales.numel() > 1 else scales.view(()))
    assert torch.equal(all_rows(source, 9), expected)
    assert list(found.rest) == ["q.bias"]


def test_the_file_is_read_once_however_many_pieces_are_asked_for(tmp_path: Path) -> None:
    (source,) = opened(tmp_path, AWQ, awq(random_numbers(64, 96, 32))).sources.values()
    reader = Reader()
    for first in range(0, 64, 8):
        source.rows(first, first + 8, reader)
    assert reader.bytes_read == source.size_bytes == 96 * 8 * 4 + 3 * 8 * 4 + 3 * 64 * 2


SMALL = random_numbers(64, 64, 32)
WRONG: list[tuple[dict[str, Any], dict[str, torch.Tensor], str]] = [
    ({**AWQ, "group_size": 64}, awq(SMALL), r"'q.qzeros'.*\[2, 8\].*wanted.*\[1, 8\].*quantization_config"),
    (AWQ, {**awq(SMALL), "scales": torch.ones(2, 32).half()}, r"'q.scales'.*\[2, 32\].*\[2, 64\]"),
    (AWQ, {**awq(SMALL), "scales": torch.ones(2, 64).int()}, r"'q.scales'.*I32"),
    ({**GPTQ, "bits": 8}, gptq(SMALL), "'q.qzeros'|'q.g_idx'"),
    (GPTQ, {**gptq(SMALL), "g_idx": torch.full((64,), 2, dtype=torch.int32)}, "'q.g_idx' names group 2"),
    (GPTQ, {**gptq(SMALL), "g_idx": torch.full((64,), -1, dtype=torch.int32)}, "'q.g_idx' names group -1"),
    (GPTQ, {**gptq(SMALL), "g_idx": torch.zeros(63, dtype=torch.int32)}, r"'q.g_idx'.*\[63\].*\[64\]"),
    (AWQ, {**awq(SMALL), "weight": torch.ones(64, 64)}, "'q.weight' is there plain and quantised"),
    (
        FP8,
        {"weight": torch.zeros(64, 64).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(2, 1)},
        r"'q.weight_scale_inv'.*\[2, 1\].*\[1, 1\]",
    ),
    (
        FP8,
        {"weight": torch.zeros(64, 64).to(torch.float8_e4m3fn), "weight_scale": torch.ones(1).double()},
        "'q.weight_scale' has dtype F64",
    ),
]


@pytest.mark.parametrize(("config", "tensors", "told"), WRONG)
def test_parts_that_do_not_fit_are_refused(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], told: str
) -> None:
    with pytest.raises(CheckpointError, match=told) as caught:
        opened(tmp_path, config, tensors)
    assert str(tmp_path) in str(caught.value)


REFUSED: list[tuple[object, dict[str, torch.Tensor], str, str]] = [  # config, tensors, the one named, what is told
    (None, awq(SMALL), "qweight", "AWQ or GPTQ"),
    ({**AWQ, "bits": 3}, awq(SMALL), "qweight", "AWQ"),
    ({**AWQ, "version": "gemv"}, awq(SMALL), "qweight", "AWQ"),
    ({**AWQ, "group_size": 0}, awq(SMALL), "qweight", "AWQ"),
    ({**AWQ, "group_size": True}, awq(SMALL), "qweight", "AWQ"),
    ({**GPTQ, "bits": 3}, gptq(SMALL), "g_idx", "GPTQ"),
    ({**GPTQ, "bits": [4]}, gptq(SMALL), "g_idx", "GPTQ"),
    ({**GPTQ, "checkpoint_format": "marlin"}, gptq(SMALL), "g_idx", "GPTQ"),
    ({**GPTQ, "checkpoint_format": {}}, gptq(SMALL), "g_idx", "GPTQ"),
    (GPTQ, {"qweight": WORDS, "scales": torch.ones(2, 64).half()}, "qweight", "GPTQ"),
    (FP8, {"weight": torch.zeros(64, 64).to(torch.float8_e4m3fn)}, "weight", "FP8"),
    (None, {"weight": torch.zeros(64, 64).to(torch.float8_e5m2)}, "weight", "FP8"),
    ({"quant_method": "bitsandbytes"}, {"weight": BYTES, "weight.absmax": torch.ones(64)}, "weight", "bitsandbytes"),
    (None, {"weight": BYTES.to(torch.int8), "SCB": torch.ones(64)}, "SCB", "bitsandbytes"),
    ({"quant_method": "compressed-tensors"}, {"weight_packed": WORDS}, "weight_packed", "compressed-tensors"),
    (None, {"gate_up_proj_blocks": BYTES, "gate_up_proj_scales": BYTES}, "gate_up_proj_blocks", "MXFP4"),
    ({"quant_method": "aqlm"}, {"codes": BYTES}, "codes", "aqlm"),
]


@pytest.mark.parametrize(("config", "tensors", "named", "told"), REFUSED)
def test_others_are_refused_by_tensor_method_and_remedy(
    tmp_path: Path, config: object, tensors: dict[str, torch.Tensor], named: str, told: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path, config, tensors)
    for text in (str(tmp_path), f"'q.{named}", f"({told})", "quantize=q8 or quantize=q4"):
        assert text in str(caught.value)


@pytest.mark.parametrize("config", [{"quant_method": m} for m in ("bitsandbytes", 5, "", {}, None)] + [5, [], "fp8"])
def test_a_method_told_beside_plain_weights_is_no_hindrance(tmp_path: Path, config: object) -> None:
    found = opened(tmp_path, config, {"weight": torch.ones(4, 4), "position_ids": torch.ones(3)})
    assert sorted(found.rest) == ["q.position_ids", "q.weight"]
    assert not found.sources


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "F6_E2M3", "I4"])
def test_a_dtype_that_is_not_known_is_refused_with_the_remedy(tmp_path: Path, dtype: str) -> None:
    header = json.dumps({"x.weight": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=rf"'x.weight'.*{dtype}.*take .* BF16, F16 or F32"):
        prequantised_sources(tmp_path, read_header(tmp_path / "model.safetensors"), Reader())
