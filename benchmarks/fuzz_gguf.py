"""Load damaged GGUF files and print how they ended, the slowest one and by how much the process grew.

    python benchmarks/fuzz_gguf.py [--count 50000] [--seed 1]

Counts, types, lengths, shapes, offsets and values are damaged with knowledge of the format
(tests/support/gguf_mutations.py). It ends with status 1 where a file takes more than 1 s of processor time or the
process grows by more than 64 MiB, and with a traceback where a file is neither refused by an error of ours nor loaded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.gguf_fuzz import fuzz  # noqa: E402

MOST_S = 1.0
MOST_BYTES = 64 << 20


def main() -> int:
    """Try as many files as the arguments say; return 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    warnings.simplefilter("error")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcome = fuzz(Path(folder), args.seed, args.count)
    ends = ", ".join(f"{count} {end}" for end, count in sorted(outcome.ends.items()))
    print(f"{args.count} files of seed {args.seed} in {time.perf_counter() - began:.0f} s: {ends}")
    print(
        f"slowest: {outcome.slowest_s * 1000:.0f} ms (file {outcome.slowest}); grown by {outcome.grown_bytes >> 20} MiB"
    )
    return int(outcome.slowest_s > MOST_S or outcome.grown_bytes > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
