"""Print what the block accounting of a full cache costs: handing out, naming, taking back, checking.

python benchmarks/block_check.py [--blocks 100000]
"""

from __future__ import annotations

import argparse
import statistics
import time

from ollampi.mpiruntime.block_manager import BlockManager, block_digest

EACH = 500  # blocks of one sequence


def check(blocks: BlockManager, held: list[list[int]], what: str) -> None:
    """Print the milliseconds of each piece of one check of all blocks."""
    pieces, done = [], False
    while not done:
        began = time.perf_counter()
        done = blocks.check(held)
        pieces.append(1e3 * (time.perf_counter() - began))
    print(
        f"check, {what}: {len(pieces)} pieces, median {statistics.median(pieces):.2f} ms, longest {max(pieces):.2f} ms"
    )


def main() -> None:
    """Use every block once, and once more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=100_000)
    count = parser.parse_args().blocks
    blocks = BlockManager(count, 16)
    for turn in ("first use", "second use"):
        began = time.perf_counter()
        held = [blocks.allocate(min(EACH, count - start)) for start in range(0, count, EACH)]
        print(f"{turn}: {1e6 * (time.perf_counter() - began) / count:.2f} us to hand out a block")
        for number, table in enumerate(held):
            digest = block_digest(turn.encode(), [number])
            for block in table:
                digest = block_digest(digest, [block])
                blocks.name(block, digest)
        check(blocks, held, "all held")
        began = time.perf_counter()
        for table in held[::2] + held[1::2]:
            blocks.release(table)
        print(f"{turn}: {1e6 * (time.perf_counter() - began) / count:.2f} us to take a block back")
        check(blocks, [], "all free, with content")


if __name__ == "__main__":
    main()
