"""The CUDA kernels of layers compile, with the constants that they are wanted with, and are started as they expect."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ollampi.kernels.cuda_module import FOLDER, CudaError, as_c, compiled, driver

VARIANTS = [
    ("attention.cu", {"KEPT": 0, "PAIRS": 1, "GROUP": 1}),
    ("attention.cu", {"KEPT": 1, "PAIRS": 2, "GROUP": 4}),
    ("attention.cu", {"KEPT": 2, "PAIRS": 4, "GROUP": 8}),
    ("layer.cu", {"KEPT": 0}),
    ("layer.cu", {"KEPT": 1}),
    ("layer.cu", {"KEPT": 2}),
    ("matmul.cu", {"KEPT": 0, "TOKENS": 1}),
    ("matmul.cu", {"KEPT": 1, "TOKENS": 4}),
    ("matmul.cu", {"BITS": 8, "SCALES": 1, "TOKENS": 1, "KEPT": 1}),
    ("matmul.cu", {"BITS": 4, "SCALES": 3, "TOKENS": 4, "KEPT": 0}),
]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on the PATH")
@pytest.mark.parametrize(("file", "constants"), VARIANTS, ids=str)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvcc_compiles_them_without_a_warning(
    tmp_path: Path, file: str, constants: dict[str, int], architecture: str
) -> None:
    macros = [f"-D{name}={value}" for name, value in constants.items()]
    options = [f"-arch={architecture}", "--Werror", "all-warnings", "-Xptxas", "-v,--warn-on-spills", "-cubin"]
    options += ["-diag-suppress", "177"]  # functions that some constants leave unused
    command = ["nvcc", *options, *macros, FOLDER / file, "-o", tmp_path / "out.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"(\d+) bytes spill", done.stderr)) <= {"0"}


def test_sources_include_nothing() -> None:
    for path in FOLDER.glob("*.cu"):
        if path.name in {file for file, _ in VARIANTS}:
            assert "#include" not in path.read_text()


def test_arguments_are_passed_as_kernels_take_them() -> None:
    x = torch.zeros(3)
    values = [as_c(argument) for argument in (x, None, 7, 0.5)]
    assert [type(value) for value in values] == [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_float]
    assert [value.value for value in values] == [x.data_ptr(), None, 7, 0.5]


def test_a_machine_without_a_gpu_has_no_kernels() -> None:
    if not torch.cuda.is_available():
        assert driver() is None


def test_a_missing_compiler_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from ollampi.kernels import cuda_module

    cuda_module.nvrtc.cache_clear()
    monkeypatch.setattr(cuda_module, "_candidates", lambda: iter(["libno-such.so"]))
    with pytest.raises(CudaError, match=r"libnvrtc\.so is not to be found; install a torch that was built for CUDA"):
        compiled("", "layer.cu", [], (9, 0))
