"""Kill writers of a model store at random moments, and print what they were doing and what was wrong afterwards.

    python benchmarks/kill_store.py [--count 200] [--seed 1]

Each writer creates, copies and deletes models and uploads blobs without end until it is killed (SIGKILL). Then every
blob is compared with its digest, every model is read, and the next writer must get on at once. It ends with status 1
where a model is half there, or a blob lost or damaged.
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

from support.checkpoints import write_checkpoint  # noqa: E402
from support.gguf_files import write_gguf  # noqa: E402
from support.store_kills import kill_writers  # noqa: E402
from support.vocabularies import gguf_of_tokenizer  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402


def main() -> int:
    """Kill as many writers as the arguments say; return 1 where one left damage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of forks beside torch's threads
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = write_checkpoint(Path(place) / "small", vocab_size=4096)
        tokenizer = Tokenizer.from_file(str(ROOT / "conf" / "models" / "demo" / "tokenizer.json"))
        write_gguf(Path(place) / "m.gguf", folder, "Q8_0", gguf_of_tokenizer(tokenizer, "{{ messages }}"))
        tokenizer.save(str(folder / "tokenizer.json"))
        gguf = (Path(place) / "m.gguf").read_bytes()
        outcome = kill_writers(Path(place) / "models", gguf, folder, args.count, args.seed)
    kills = ", ".join(f"{count} in {name}" for name, count in sorted(outcome.kills.items()))
    print(f"{args.count} writers killed in {time.perf_counter() - began:.0f} s (seed {args.seed}): {kills}")
    print("\n".join(outcome.wrong) or "no model half there, no blob lost or damaged")
    return int(bool(outcome.wrong))


if __name__ == "__main__":
    sys.exit(main())
