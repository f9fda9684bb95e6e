"""GGUF files are quantised as llama.cpp quantises them: the same types, errors as small, and memory stays flat."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from support.checkpoints import PROMPT, write_checkpoint
from support.gguf_files import MODELS, write_gguf
from support.worlds import world_logits

from ollampi.mpiruntime.errors import CheckpointError, ModelError
from ollampi.mpiruntime.gguf_header import read_entries, read_gguf
from ollampi.mpiruntime.gguf_quantise import requantise
from ollampi.mpiruntime.gguf_writer import NewTensor, blocks_of, entry
from ollampi.mpiruntime.gguf_writer import write_gguf as write_file

FILE_TYPES = {"q8_0": 7, "q4_K_S": 14, "q4_K_M": 15, "F16": 1, "bf16": 32}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32}


def quiet(done: int, total: int) -> None:
    pass


def held(path: Path) -> dict[str, tuple[str, NDArray[np.float32]]]:
    """Return types and numbers of all tensors as the gguf package reads them."""
    reader = gguf.GGUFReader(path)
    return {
        each.name: (each.tensor_type.name, gguf.quants.dequantize(each.data, each.tensor_type).astype(np.float32))
        for each in reader.tensors
    }


def small(tmp_path: Path, family: str = "llama3", kind: str = "F32", **changes: Any) -> Path:
    folder = write_checkpoint(tmp_path / "m", **{**MODELS[family], **WIDE, **changes})
    write_gguf(tmp_path / "m.gguf", folder, kind, {"general.alignment": 32, "a.list": ["a", "b"], "a.float": 0.5})
    return tmp_path / "m.gguf"


def theirs(source: Path, target: Path, level: str) -> None:
    """Quantise with llama.cpp; skip where it is not installed."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs the peers extra")
    llama_cpp.llama_log_set(_keep_quiet(llama_cpp), ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[level], 1
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0


def _keep_quiet(llama_cpp: Any, kept: list[Any] = []) -> Any:  # noqa: B006, which must outlive the call
    if not kept:
        kept.append(llama_cpp.llama_log_callback(lambda level, text, data: None))
    return kept[0]


CASES = [(name, level) for name in ("llama3", "tied", "qwen3_moe", "gemma3", "phi3") for level in ("q4_K_M", "q4_K_S")]


@pytest.mark.parametrize(("family", "level"), [*CASES, ("llama3", "q8_0"), ("llama3", "F16"), ("phi3", "q8_0")])
def test_types_and_errors_are_those_of_llama_cpp(tmp_path: Path, family: str, level: str) -> None:
    changes = {} if family in ("qwen3_moe", "gemma3") else {"num_hidden_layers": 10}
    source = small(tmp_path, family, **changes)
    theirs(source, tmp_path / "theirs.gguf", level)
    requantise(source, tmp_path / "ours.gguf", level, quiet)
    plain, wanted, found = (held(tmp_path / name) for name in ("m.gguf", "theirs.gguf", "ours.gguf"))
    assert {name: kind for name, (kind, _) in found.items()} == {name: kind for name, (kind, _) in wanted.items()}
    for name, (kind, values) in found.items():
        ours = np.square(values - plain[name][1]).mean(dtype=np.float64)
        assert ours <= 1.05 * np.square(wanted[name][1] - plain[name][1]).mean(dtype=np.float64), (name, kind)


@pytest.mark.parametrize("experts", [5, 8])
def test_mixtures_have_the_types_of_llama_cpp(tmp_path: Path, experts: int) -> None:
    source = small(tmp_path, "mixtral", num_local_experts=experts)
    theirs(source, tmp_path / "theirs.gguf", "q4_K_M")
    requantise(source, tmp_path / "ours.gguf", "q4_K_M", quiet)
    wanted, found = held(tmp_path / "theirs.gguf"), held(tmp_path / "ours.gguf")
    assert {name: kind for name, (kind, _) in found.items()} == {name: kind for name, (kind, _) in wanted.items()}


@pytest.mark.parametrize("width", [64, 96, 72])
@pytest.mark.parametrize("level", ["q4_K_M", "q4_K_S", "q8_0"])
def test_rows_that_are_no_super_blocks_get_the_types_that_llama_cpp_gives_them(
    tmp_path: Path, width: int, level: str
) -> None:
    narrow = {"hidden_size": width, "intermediate_size": 160, "head_dim": 16, "num_hidden_layers": 8}
    source = small(tmp_path, "llama2", **narrow)
    theirs(source, tmp_path / "theirs.gguf", level)
    requantise(source, tmp_path / "ours.gguf", level, quiet)
    wanted, found = held(tmp_path / "theirs.gguf"), held(tmp_path / "ours.gguf")
    for name, (kind, values) in found.items():
        assert kind == wanted[name][0], name
        if kind in ("Q8_0", "Q5_0", "Q5_1", "F16", "F32"):
            np.testing.assert_array_equal(values, wanted[name][1])


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("level", FILE_TYPES)
def test_sources_of_fewer_bits_are_refused_and_others_read(tmp_path: Path, kind: str, level: str) -> None:
    source = small(tmp_path, kind=kind)
    if kind == "Q8_0" and level.upper() in ("F16", "BF16"):
        with pytest.raises(ModelError, match=r"only supported for F16 and F32 models: m\.gguf has \S+ in Q8_0"):
            requantise(source, tmp_path / "t.gguf", level, quiet)
        assert not (tmp_path / "t.gguf").exists()
        return
    requantise(source, tmp_path / "t.gguf", level, quiet)
    plain, found = held(source), held(tmp_path / "t.gguf")
    assert list(plain) == list(found)
    for name, (_, values) in found.items():
        error = np.sqrt(np.square(values - plain[name][1]).mean() / np.square(plain[name][1]).mean())
        assert error < 0.1, name


def test_metadata_is_kept_but_for_what_changes(tmp_path: Path) -> None:
    source = small(tmp_path, kind="F16")
    requantise(source, tmp_path / "t.gguf", "Q4_K_M", quiet)
    before, after = read_gguf(source).metadata, read_gguf(tmp_path / "t.gguf").metadata
    assert after == {
        **{key: value for key, value in before.items() if key != "general.alignment"},
        "general.file_type": 15,
        "general.quantization_version": 2,
    }
    types = {field.name: field.types for field in gguf.GGUFReader(source).fields.values()}
    for field in gguf.GGUFReader(tmp_path / "t.gguf").fields.values():
        assert field.types == types.get(field.name, field.types)


def test_progress_goes_from_nothing_to_all_bytes(tmp_path: Path) -> None:
    source, calls = small(tmp_path, kind="F16"), list[tuple[int, int]]()
    requantise(source, tmp_path / "t.gguf", "q4_K_M", lambda done, total: calls.append((done, total)))
    total = sum(tensor.size_bytes for tensor in read_gguf(source).tensors.values())
    assert {each for _, each in calls} == {total}
    assert calls[-1][0] == total
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_what_is_quantised_already_stays_as_it_is_at_its_own_level(tmp_path: Path) -> None:
    source = small(tmp_path)
    requantise(source, tmp_path / "a.gguf", "q4_K_M", quiet)
    requantise(tmp_path / "a.gguf", tmp_path / "b.gguf", "q4_K_M", quiet)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    with pytest.raises(ModelError, match=r"which cannot become Q8_0 for q8_0; take the model in F32"):
        requantise(tmp_path / "a.gguf", tmp_path / "c.gguf", "q8_0", quiet)


@pytest.mark.parametrize("level", ["q4_K_M", "q4_K_S", "q8_0"])
def test_a_quantised_model_computes_with_the_numbers_that_the_gguf_package_reads(tmp_path: Path, level: str) -> None:
    source = small(tmp_path, "llama3")
    requantise(source, tmp_path / "t.gguf", level, quiet)
    entries = read_entries(source)
    plain = [
        NewTensor(name, blocks_of("F32"), values.shape, lambda values=values: [values.tobytes()])
        for name, (_, values) in held(tmp_path / "t.gguf").items()
    ]
    write_file(tmp_path / "plain.gguf", entries, plain)
    expected = world_logits(1, tmp_path / "plain.gguf", PROMPT, [17])
    assert (world_logits(2, tmp_path / "t.gguf", PROMPT, [17]) - expected).abs().max() <= 1e-4


def test_a_file_is_not_written_over_itself(tmp_path: Path) -> None:
    source = small(tmp_path)
    before = source.read_bytes()
    (tmp_path / "link.gguf").hardlink_to(source)
    with pytest.raises(ModelError, match=r"link\.gguf is what would be quantised; write to another file"):
        requantise(source, tmp_path / "link.gguf", "q8_0", quiet)
    assert source.read_bytes() == before


def test_a_split_model_becomes_one_file(tmp_path: Path) -> None:
    source = small(tmp_path)
    entries, values = read_entries(source), held(source)
    names = list(values)
    for number, part in enumerate((names[:5], names[5:])):
        split = {"split.no": number, "split.count": 2, "split.tensors.count": len(names)}
        keys = {**(entries if number == 0 else {}), **{key: entry(key, value) for key, value in split.items()}}
        tensors = [
            NewTensor(name, blocks_of("F32"), values[name][1].shape, lambda name=name: [values[name][1].tobytes()])
            for name in part
        ]
        write_file(tmp_path / f"s-0000{number + 1}-of-00002.gguf", keys, tensors)
    requantise(source, tmp_path / "one.gguf", "q8_0", quiet)
    requantise(tmp_path / "s-00001-of-00002.gguf", tmp_path / "of_two.gguf", "q8_0", quiet)
    assert (tmp_path / "of_two.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()


def test_a_level_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unsupported quantization type q3_K_M - supported types are F32, F16, Q4_K_S"):
        requantise(small(tmp_path), tmp_path / "t.gguf", "q3_K_M", quiet)


@pytest.mark.parametrize(("value", "level"), [("nan", "q4_K_M"), ("inf", "q8_0"), ("70000", "f16"), ("-inf", "bf16")])
def test_numbers_that_cannot_be_held_are_refused_by_name(tmp_path: Path, value: str, level: str) -> None:
    rows = np.zeros((4, 256), np.float32)
    rows[2, 100] = float(value)
    tensor = NewTensor("blk.0.attn_q.weight", blocks_of("F32"), rows.shape, lambda: [rows.tobytes()])
    write_file(tmp_path / "m.gguf", {"general.architecture": entry("general.architecture", "llama")}, [tensor])
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor 'blk\.0\.attn_q\.weight' has numbers from"):
        requantise(tmp_path / "m.gguf", tmp_path / "t.gguf", level, quiet)
    assert not (tmp_path / "t.gguf").exists()


def test_layers_that_matter_are_one_in_three_between_both_ends(tmp_path: Path) -> None:
    """Of 32 layers the first and the last four, and of those between every third: the table of llama.cpp's rule."""
    source = small(tmp_path, num_hidden_layers=32)
    requantise(source, tmp_path / "t.gguf", "q4_K_M", quiet)
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    kinds = {tensor.name: tensor.blocks.name for tensor in read_gguf(tmp_path / "t.gguf").tensors.values()}
    for part in ("attn_v", "ffn_down"):
        assert [layer for layer in range(32) if kinds[f"blk.{layer}.{part}.weight"] == "Q6_K"] == more
    assert Counter(kinds.values()) == {"F32": 66, "Q6_K": 2 * len(more) + 1, "Q4_K": 1 + 5 * 32 + 2 * (32 - len(more))}


_CHILD = """
import json, sys, tracemalloc
from pathlib import Path
import numpy as np
from ollampi.mpiruntime.gguf_quantise import requantise
tracemalloc.start()
requantise(Path(sys.argv[1]), Path(sys.argv[2]), "q4_K_M", lambda done, total: None)
print(json.dumps([tracemalloc.get_traced_memory()[1], "torch" in sys.modules, "gguf" in sys.modules]))
"""


def test_memory_stays_flat_and_torch_away(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((1, 1024)).astype(np.float16)
    tensors = [
        NewTensor(f"blk.{i}.ffn_up.weight", blocks_of("F16"), (16384, 1024), lambda: [rows.tobytes()] * 16384)
        for i in range(2)
    ]
    write_file(tmp_path / "m.gguf", {"general.architecture": entry("general.architecture", "llama")}, tensors)
    out = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "m.gguf"), str(tmp_path / "t.gguf")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "SLURM_CPUS_PER_TASK": "2"},
    )
    most, torch_there, gguf_there = json.loads(out.stdout)
    assert (tmp_path / "m.gguf").stat().st_size > 64 << 20
    assert most < 24 << 20
    assert not torch_there
    assert not gguf_there
