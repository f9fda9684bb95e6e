"""Print the numbers of a running server: start, memory and bytes read per rank, idle cost, first token after idling.

    python benchmarks/serve.py [--sizes 1 2 3 4] [--make | --memory]

--make starts with `make serve` (after it has installed) and measures the start only. --memory loads a random model of
200 million weights in fp32 and compares what each rank's process grows by with what it should hold.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.checkpoints import write_checkpoint  # noqa: E402
from support.servers import DEMO, Server, free_port, server  # noqa: E402

from ollampi.mpiruntime.safetensors_header import read_header  # noqa: E402

BODY = {"model": "demo", "prompt": "import os\n", "raw": True, "options": {"num_predict": 2, "temperature": 0}}


def first_token_s(port: int) -> float:
    """Return the seconds from sending a request to its first token."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/api/generate", json.dumps(BODY))
    response = connection.getresponse()
    line = response.readline()
    took = time.perf_counter() - began
    response.read()
    connection.close()
    assert "response" in json.loads(line), line
    return took


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match.group(1)) * 1024 if match else 0


def idle(job: Server, seconds: float = 10) -> list[float]:
    """Return the percent of a core that each rank, and last the HTTP process, uses without requests."""
    fronts = [p for p in job.processes() if b"api.front" in Path(f"/proc/{p}/cmdline").read_bytes()]
    time.sleep(1)
    before = {pid: cpu_s(pid) for pid in [*job.ranks(), *fronts]}
    time.sleep(seconds)
    used = {pid: 100 * (cpu_s(pid) - t) / seconds for pid, t in before.items()}
    return [used[p] for p in job.ranks()] + [sum(used[p] for p in fronts)]


def measure(size: int, folder: Path) -> None:
    """Print the numbers of one world size."""
    began = time.perf_counter()
    with server(size, folder, "dtype=float32", "engine.cache_tokens=16384") as job:
        ready = time.perf_counter() - began
        first_token_s(job.port)
        print(
            f"--- mpirun -n {size}: {time.perf_counter() - began:.2f} s to the first token, banner after {ready:.2f} s"
        )
        print(re.split(r"\n\nserving", job.log.read_text())[0])
        sizes = [resident_bytes(p) / 2**20 for p in job.ranks()]
        print("resident MiB per rank: " + ", ".join(f"{s:.0f}" for s in sizes))
        warm = [first_token_s(job.port) for _ in range(20)]
        cold = []
        for _ in range(10):
            time.sleep(1.5)
            cold.append(first_token_s(job.port))
        extra = statistics.median(cold) - statistics.median(warm)
        print(
            f"first token: {statistics.median(warm) * 1e3:.1f} ms after another request,"
            f" {statistics.median(cold) * 1e3:.1f} ms after 1.5 s of idling ({extra * 1e3:+.1f} ms)"
        )
        percent = idle(job)
        print(
            "idle over 10 s, percent of a core: ranks "
            + ", ".join(f"{p:.2f}" for p in percent[:-1])
            + f"; HTTP process {percent[-1]:.2f}",
            flush=True,
        )


def measure_make() -> None:
    """Print the seconds from `make serve` to the first token."""
    port = free_port()
    began = time.perf_counter()
    process = subprocess.Popen(
        ["make", "serve", f"ARGS=server.port={port}"], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    while True:
        try:
            first_token_s(port)
            break
        except OSError:
            time.sleep(0.05)
    print(f"make serve: {time.perf_counter() - began:.2f} s to the first token (4 ranks)", flush=True)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(20)


def write_large(folder: Path) -> tuple[Path, int, int]:
    """Write a random checkpoint; return its folder, its weights, and how many of them every rank holds (the norms)."""
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16}
    write_checkpoint(folder, **shape, num_key_value_heads=4, vocab_size=32000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    sizes = {k: t.num_elements for k, t in read_header(folder / "model.safetensors").items()}
    return folder, sum(sizes.values()), sum(size for name, size in sizes.items() if "norm" in name)


def loaded_bytes(size: int, folder: Path, model: Path) -> list[int]:
    """Return the resident bytes of each rank's process right after the model was loaded."""
    no_cache = ("engine.context_length=64", "engine.cache_tokens=64")  # next to none: the banner gives its bytes
    with server(size, folder, "dtype=float32", f"model={model}", *no_cache) as job:
        return [resident_bytes(pid) for pid in job.ranks()]


def measure_memory(sizes: list[int], folder: Path) -> None:
    """Print per world size what a rank should hold, and what its process grew by against the demo model."""
    model, weights, norms = write_large(folder / "large")
    for size in sizes:
        wanted = 4 * ((weights - norms) / size + norms)
        small = loaded_bytes(size, folder, DEMO)
        grown = [b - a for a, b in zip(small, loaded_bytes(size, folder, model), strict=True)]
        demo = 4 * 5573888 / size  # which the processes compared with hold themselves
        shown = ", ".join(f"{(g + demo) / 2**20:.0f} ({100 * ((g + demo) / wanted - 1):+.1f} %)" for g in grown)
        print(f"mpirun -n {size}: weights/{size} + norms = {wanted / 2**20:.0f} MiB; ranks grew by {shown}", flush=True)


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    if args.make:
        measure_make()
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.memory:
            measure_memory(args.sizes, Path(folder))
            return
        for size in args.sizes:
            measure(size, Path(folder))


if __name__ == "__main__":
    main()
