"""The text of the CUDA kernels compiles where a compiler is, with or without a GPU."""

from __future__ import annotations

import shutil
import subprocess
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

import pytest
from support.emulated import needs_nvrtc
from support.fake_cupy import NAMES

from ollampi.kernels import gpu
from ollampi.kernels.cuda_module import compiled

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ["sm_80", "sm_90"]
ELF = b"\x7fELF"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on the PATH")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_the_kernels(tmp_path: Path, architecture: str) -> None:
    text, code = tmp_path / "codec.cu", tmp_path / "codec.cubin"
    text.write_text(gpu.source())
    options = [option for option in gpu.OPTIONS if option.startswith(("--std", "--fmad", "--ftz", "--prec"))]
    assert len(options) == len(gpu.OPTIONS)
    command = ["nvcc", f"--gpu-architecture={architecture}", "--Werror", "all-warnings", *options]
    done = subprocess.run([*command, "--cubin", text, "-o", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = code.read_bytes()
    assert made.startswith(ELF)
    assert all(name.encode() in made for name in NAMES)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on the PATH")
def test_nvcc_compiles_the_file_as_it_lies_there(tmp_path: Path) -> None:
    text = Path(gpu.__file__).parent / "cuda" / "codec.cu"
    done = subprocess.run(["nvcc", "--ptx", text, "-o", tmp_path / "codec.ptx"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_nvrtc
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_nvrtc_compiles_the_kernels(capability: tuple[int, int]) -> None:
    code = compiled(gpu.source(), "codec.cu", gpu.OPTIONS, capability)
    assert code.startswith(ELF)
    assert all(name.encode() in code for name in NAMES)


def test_the_package_holds_the_text() -> None:
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    patterns = settings["options.package_data"]["ollampi.kernels.cuda"].split(", ")
    kept = [path.name for path in (ROOT / "kernels" / "cuda").iterdir()]
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in kept), kept


def test_the_text_needs_no_header_and_no_fast_arithmetic() -> None:
    assert "#include" not in gpu.source()
    assert not any("fast" in option for option in gpu.OPTIONS)
    assert "--fmad=false" in gpu.OPTIONS
