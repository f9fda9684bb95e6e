"""The parts of benchmarks/gpu_check.py: each returns lines of a report about one device."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from drawn_model import EIGHT_BILLION, DrawnModel, Shape
from torch import Tensor

from ollampi.kernels import codec, codecs, device_matmul, quantised
from ollampi.mpiruntime.communicator import Communicator, Single
from ollampi.mpiruntime.gpu_sampler import sample_on_device
from ollampi.mpiruntime.placement import Placement
from ollampi.mpiruntime.request import Sampling
from ollampi.mpiruntime.runner import Runner
from ollampi.mpiruntime.sampler import Pick, sample
from ollampi.mpiruntime.step import Chunk, Load, Step, Stop
from ollampi.mpiruntime.world import survey

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "conf" / "models" / "demo"
BLOCK = 16


@dataclass
class Bench:
    """What the parts measure on, how large, and what they found: bytes and operations per second of the device."""

    place: Placement
    shape: Shape = EIGHT_BILLION
    large: int = 1 << 30  # bytes of what bandwidth is measured with
    side: int = 8192  # of the matrices that the matrix limit is measured with
    prompt: int = 2048
    turns: int = 20
    bandwidth: float = float("nan")
    operations: float = float("nan")

    @property
    def device(self) -> torch.device:
        """Return the device."""
        return self.place.device

    @property
    def cached_bytes(self) -> int:
        """Return what the device's last cache holds; 0 for a CPU, on which nothing is measured in earnest."""
        return torch.cuda.get_device_properties(self.device).L2_cache_size if self.device.type == "cuda" else 0

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the median time of some calls, each waited for, after two that warm up."""
        times = []
        for turn in range(self.turns + 2):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - began if turn > 1 else 0.0)
        return float(np.median(times[2:]))

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def of_bandwidth(self, size_bytes: float, seconds: float) -> str:
        """Return a rate in words, beside the measured bandwidth."""
        rate = size_bytes / seconds
        return f"{rate / 1e9:.0f} GB/s, {100 * rate / self.bandwidth:.0f} % of the bandwidth"

    def numbers(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return random numbers on the device."""
        return torch.randn(shape, device=self.device, dtype=dtype)


def environment(bench: Bench) -> list[str]:
    """Return versions and the device."""
    lines = [f"- Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}"]
    if bench.device.type == "cuda":
        found = torch.cuda.get_device_properties(bench.device)
        lines.append(f"- {found.name}, {found.total_memory >> 20} MiB, {found.multi_processor_count} multiprocessors")
    return lines


def limits(bench: Bench) -> list[str]:
    """Measure what the memory and the matrix units give at best; the other parts are held against it."""
    x = torch.empty(bench.large // 4, device=bench.device).fill_(1.0)
    y = torch.empty_like(x)
    copied = 2 * x.nbytes / bench.seconds(lambda: y.copy_(x))
    read = x.nbytes / bench.seconds(lambda: torch.sum(x))
    bench.bandwidth = max(copied, read)
    a, b = (bench.numbers(bench.side, bench.side, dtype=torch.bfloat16) for _ in range(2))
    bench.operations = 2 * bench.side**3 / bench.seconds(lambda: a @ b)
    return [
        f"- memory: copies {copied / 1e9:.0f} GB/s, reads {read / 1e9:.0f} GB/s",
        f"- matrices of {bench.side} x {bench.side} in bf16: {bench.operations / 1e12:.0f} TFLOP/s",
    ]


def codec_twins(bench: Bench) -> list[str]:
    """Compare the codecs of the device with the reference, bit for bit, and time them; aim: 80 % of the bandwidth."""
    lines, count = [], max(bench.large // 16, 4 * bench.cached_bytes)  # so that the codes of 4 bits are no cached ones
    x, y = (bench.numbers(count) * torch.randint(-9, 9, (count,), device=bench.device).float().exp2() for _ in "xy")
    for level in range(1, 5):
        own, wanted = codecs.codec_of(level, bench.device), codec.Reference(level)
        size = codec.num_bytes(level, count)
        found, other, expected, beside = (torch.zeros(size, dtype=torch.uint8, device=bench.device) for _ in range(4))
        for numbers, ours, theirs in ((x, found, expected), (y, other, beside)):
            own.encode(numbers, ours)
            wanted.encode(numbers, theirs)
        out, decoded = torch.empty_like(x), torch.empty_like(x)
        own.decode_sum([found, other], out)
        wanted.decode_sum([expected, beside], decoded)
        same = torch.equal(found, expected) and torch.equal(other, beside)
        same = same and torch.equal(out.view(torch.int32), decoded.view(torch.int32))
        encoding = bench.seconds(lambda own=own, found=found: own.encode(x, found))
        decoding = bench.seconds(lambda own=own, two=[found, other], out=out: own.decode_sum(two, out))
        lines.append(
            f"- {codec.NAMES[level]} by {type(own).__name__}: {'the same bits' if same else '**OTHER BITS**'}; encode"
            f" {bench.of_bandwidth(x.nbytes + size, encoding)}; decode and add 2"
            f" {bench.of_bandwidth(x.nbytes + 2 * size, decoding)}"
        )
    return lines


def products(bench: Bench) -> list[str]:
    """Compare our products of few tokens with plain arithmetic, and time them."""
    assert bench.place.gpu is not None
    kernels, shape, lines = bench.place.gpu.kernels, bench.shape, []
    plain = bench.numbers(shape.mlp_width, shape.width) * 0.02
    on_host = plain.cpu()
    matrices = {"bf16": plain.bfloat16(), "fp32": plain}
    matrices |= {f"q{bits}": quantised.moved(quantised.quantise(on_host, bits), bench.device) for bits in (8, 4)}  # type: ignore[dict-item]
    for name, matrix in matrices.items():
        whole = matrix.float() if isinstance(matrix, Tensor) else quantised.dequantise(matrix)
        for count in (1, device_matmul.MOST_TOKENS):
            x = bench.numbers(count, shape.width)
            found, wanted = device_matmul.linear(x, matrix, None, kernels).float(), x.double() @ whole.double().T
            error = ((found - wanted).abs().max() / wanted.abs().max()).item()
            ours = bench.seconds(lambda x=x, m=matrix: device_matmul.linear(x, m, None, kernels))
            torchs = bench.seconds(lambda x=x, m=matrix: device_matmul.linear(x, m, None, None))
            lines.append(
                f"- {name}, {count} tokens: error {error:.1e}; {bench.of_bandwidth(matrix.nbytes, ours)};"
                f" torch's operators {torchs / ours:.2f} times as long"
            )
    return lines


def logits_of(comm: Communicator, place: Placement | None, dtype: str) -> Tensor | None:
    """Return the demo model's logits [T, V] of a text in pieces on rank 0, on the CPU; collective.

    place: None for the CPU.
    """
    runner = Runner(comm, survey(comm))
    if place is not None:
        runner.place = place
    if comm.rank:
        runner.follow()
        return None
    runner.lead_load(Load(0, str(DEMO), dtype, 256, 20, BLOCK))
    tokens, start, rows = [11 * i % 4000 + 1 for i in range(96)], 0, []
    for length in [64, 1, 1, 8, 3, 19]:
        blocks = list(range(0, 2 * -(-(start + length) // BLOCK), 2))
        step = Step(0, [Chunk(tokens[start : start + length], start, blocks, length)])
        runner.send(step)
        found = runner.step(step).logits
        assert found is not None
        rows.append(found.cpu())
        start += length
    runner.lead(Stop())
    return torch.cat(rows)


def correctness(bench: Bench) -> list[str]:
    """Compare the demo model's logits with those of the CPU in fp32."""
    expected, lines = logits_of(Single(), None, "float32"), []
    assert expected is not None
    for dtype, recorded in (("float32", True), ("float32", False), ("bfloat16", True)):
        place = bench.place if recorded else replace(bench.place, graphs=None)
        found = logits_of(Single(), place, dtype)
        assert found is not None
        lines.append(f"- {dtype}, {'recorded' if recorded else 'not recorded'}: {difference(found, expected)}")
    return lines


def difference(found: Tensor, expected: Tensor) -> str:
    """Return in words how logits [T, V] differ."""
    error = (found - expected).abs()
    same = (found.argmax(1) == expected.argmax(1)).float().mean()
    return f"worst error {error.max():.2e}, mean {error.mean():.2e}, the same likeliest token in {100 * same:.1f} %"


def speed(bench: Bench, quantize: str = "none") -> list[str]:
    """Time decoding, recorded and not, and a prompt; aim: 85 % of the bandwidth for one answer."""
    lines = []
    for recorded in (True, False):
        place = bench.place if recorded else replace(bench.place, graphs=None)
        model = DrawnModel(bench.shape, place, torch.bfloat16, quantize, 16)
        size = model.decoder.size_bytes - model.decoder.embedding.weight.nbytes  # of the table it reads a row
        for streams in (1, 16):
            one = bench.seconds(lambda model=model, streams=streams: model.decode(streams, 512))
            lines.append(
                f"- decode, {streams} answers, {'recorded' if recorded else 'not recorded'}: {one * 1e3:.2f} ms,"
                f" {streams / one:.0f} tokens/s, weights {bench.of_bandwidth(size, one)}"
            )
        if recorded:
            taken = bench.seconds(lambda model=model: model.prefill(bench.prompt))
            rate = 2 * sum(t.shape[0] * t.shape[1] for t in model.decoder.tensors() if len(t.shape) == 2)
            done = bench.prompt * (rate - 4 * bench.shape.vocab * bench.shape.width) / taken
            lines.append(
                f"- prompt of {bench.prompt}: {taken * 1e3:.1f} ms, {bench.prompt / taken:.0f} tokens/s,"
                f" {done / 1e12:.0f} TFLOP/s, {100 * done / bench.operations:.0f} % of the matrix limit"
            )
        del model
        free(bench)
    return lines


def free(bench: Bench) -> None:
    """Give memory back that the last part left."""
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


def peers(bench: Bench) -> list[str]:
    """Time transformers with a model of the same shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {key: value for key, value in bench.shape.settings().items() if key != "model_type"}
    with torch.device(bench.device):
        model = LlamaForCausalLM._from_config(LlamaConfig(**settings), dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        prompt = torch.arange(bench.prompt, device=bench.device)[None] % bench.shape.vocab
        taken = bench.seconds(lambda: model(prompt, logits_to_keep=1))
        past = model(prompt[:, :512], use_cache=True).past_key_values
        one = bench.seconds(lambda: model(prompt[:, :1], past_key_values=past, use_cache=True))  # it grows by a token
    return [
        f"- transformers: decode, 1 answer: {one * 1e3:.2f} ms, {1 / one:.0f} tokens/s",
        f"- transformers: prompt of {bench.prompt}: {taken * 1e3:.1f} ms, {bench.prompt / taken:.0f} tokens/s",
    ]


def sampler(bench: Bench) -> list[str]:
    """Compare the sampler's choices on the device with the CPU's, and time both."""
    logits = bench.numbers(64, bench.shape.vocab) * 3
    options = [{}, {"temperature": 0.0}, {"top_k": 200, "min_p": 0.05}, {"repeat_penalty": 1.2}, {"top_k": 0}]
    samplings = [Sampling(**each) for each in options]  # type: ignore[arg-type]
    picks = [Pick(samplings[i % len(samplings)], list(range(i)), i, i) for i in range(64)]
    found, wanted = sample_on_device(logits, picks), sample(logits.cpu().numpy(), picks)
    same = sum(a == b for a, b in zip(found, wanted, strict=True))
    plain = [pick._replace(sampling=samplings[0]) for pick in picks]
    here = bench.seconds(lambda: sample_on_device(logits, plain))
    there = bench.seconds(lambda: sample(logits.cpu().numpy(), plain))
    return [f"- {same} of 64 choices are the CPU's; {here * 1e3:.2f} ms, by moving all logits {there * 1e3:.2f} ms"]


def sharing(bench: Bench) -> list[str]:
    """Let two ranks share the device through MPI; compare their logits with those of one on the CPU."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.servers import mpirun

    script = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--rank", "--device", bench.device.type]
    line, env = mpirun(2, script)
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120)
    if done.returncode:
        return [f"- **failed** with {done.returncode}: {done.stderr.strip()[-600:]}"]
    return done.stdout.strip().splitlines()
