"""Kill a pull -9 at random moments, many times, and look at the store after each: `python benchmarks/kill_pull.py [N]`.

After each kill no blob may lie under its final name with other bytes, and no model may lack a blob. Every five kills
there is a new version of the model, and the last pull is let finish. Prints what the killed pulls had said last.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "src")]

from support.kills import faults_of, has, kill_after, start_pull  # noqa: E402
from support.registry import running_registry  # noqa: E402


def time_of(root: Path, name: str, url: str) -> float:
    """Return how long a pull into an empty store takes from its first line to its end."""
    process = start_pull(root, name, url)
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    process.communicate()
    return time.monotonic() - began


def main(num_kills: int, seed: int = 1) -> None:
    """Print one line for each kind of moment, and fail at the first store that is not in order."""
    draw, moments = random.Random(seed), Counter[str]()
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder, running_registry(Path(folder) / "registry") as registry:
        name, root = f"{registry.host}/library/m", Path(folder) / "store"
        longest_s = 0.0
        for number in range(num_kills):
            if number % 5 == 0:  # a new version, which takes the place of one that is whole or half there
                registry.publish("library/m:latest", draw.randbytes(48 << 20), b"%d" % number, draw.randbytes(1 << 20))
            if number == 0:
                longest_s = time_of(Path(folder) / "whole", name, registry.url)
            last = kill_after(start_pull(root, name, registry.url), draw.random() * longest_s)
            moments[last.split("'")[3].split()[0] + (" (part)" if "completed" in last else "")] += 1
            faults = faults_of(root)
            assert not faults, (number, last, faults)
        output, _ = start_pull(root, name, registry.url).communicate()
        assert output.splitlines()[-1] == "{'status': 'success'}"
        assert has(root, name)
        assert not faults_of(root)
    for moment, count in moments.most_common():
        print(f"{count:4} killed at: {moment}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
