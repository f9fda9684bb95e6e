"""Push and pull a large blob over loopback, beside what `curl` and `sha256sum` take for the same bytes.

    python benchmarks/transfer.py [--mib 1024] [--rounds 3] [--folder /tmp] [--streams 4]

The registry is a process of its own. Prints for each round the seconds of curl (to a file) and sha256sum, of our push,
pull, and pull of what is there already (which reads it again), the share of curl's and sha256sum's speed that push and
pull have, and the most memory that the process of a transfer took, with that of a transfer of 1 MiB beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from support.registry import CONFIG_TYPE, MODEL_TYPE  # noqa: E402

from ollampi.api.names import parse_name  # noqa: E402
from ollampi.api.store.local import LocalStore  # noqa: E402
from ollampi.api.store.manifest import Layer, Manifest  # noqa: E402

_TRANSFER = """
import resource, sys, time
from pathlib import Path
from ollampi.api.names import parse_name
from ollampi.api.registry.pull import pull
from ollampi.api.registry.push import push
from ollampi.api.registry.transfer import TransferOptions
from ollampi.api.store.local import LocalStore
verb, root, name, url, streams = sys.argv[1:]
options = TransferOptions(registries=(url,), num_streams=int(streams))
began = time.perf_counter()
for line in {"push": push, "pull": pull}[verb](LocalStore(Path(root)), parse_name(name), options):
    pass
assert line == {"status": "success"}, line
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[int]:
    """Run an empty registry in a process of its own; yield its port."""
    command = [sys.executable, "-m", "support.registry", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def transfer(verb: str, root: Path, name: str, streams: int) -> tuple[float, int]:
    """Push or pull in a process of its own; return its seconds without the start, and its largest memory in MiB."""
    url = f"http://{name.partition('/')[0]}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", _TRANSFER, verb, str(root), name, url, str(streams)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()
    return float(output[0]), int(output[1])


def seconds(*command: str) -> float:
    """Return how long a command takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def publish(store: LocalStore, text: str, num_mib: int) -> Layer:
    """Make a model of one blob of random bytes in a store."""
    draw = random.Random(num_mib)
    digest = store.blobs.put(draw.randbytes(1 << 20) for _ in range(num_mib))
    layer = Layer(MODEL_TYPE, digest, num_mib << 20)
    name = parse_name(text)
    assert name is not None
    store.write(name, Manifest(Layer(CONFIG_TYPE, store.blobs.put([b"{}"]), 2), (layer,)))
    return layer


def one_round(folder: Path, num_mib: int, streams: int) -> None:
    """Print the figures of one round; everything that it writes is new."""
    with registry(folder / "registry") as port:
        large, small = f"127.0.0.1:{port}/library/large", f"127.0.0.1:{port}/library/small"
        source, target = LocalStore(folder / "source"), folder / "target"
        layer = publish(source, large, num_mib)
        publish(source, small, 1)
        base = max(transfer("push", source.root, small, streams)[1], transfer("pull", target, small, streams)[1])
        push_s, push_mib = transfer("push", source.root, large, streams)
        copy = folder / "copy"
        url = f"http://127.0.0.1:{port}/v2/library/large/blobs/{layer.digest}"
        curl_s = seconds("curl", "-s", "-f", "-o", str(copy), url)
        sum_s = seconds("sha256sum", str(copy))
        copy.unlink()
        pull_s, pull_mib = transfer("pull", target, large, streams)
        again_s, _ = transfer("pull", target, large, streams)
    both = curl_s + sum_s
    print(
        f"curl {curl_s:.2f} s + sha256sum {sum_s:.2f} s = {both:.2f} s; push {push_s:.2f} s ({both / push_s:.0%}),"
        f" pull {pull_s:.2f} s ({both / pull_s:.0%}), again {again_s:.2f} s; memory {base} MiB for a blob of 1 MiB,"
        f" push {push_mib} MiB, pull {pull_mib} MiB",
        flush=True,
    )


def main() -> None:
    """Run some rounds in new folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    print(f"{args.mib} MiB, {args.streams} streams, in {args.folder}, {os.cpu_count()} cores")
    for _ in range(args.rounds):
        folder = Path(tempfile.mkdtemp(prefix="transfer-", dir=args.folder))
        try:
            one_round(folder, args.mib, args.streams)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
