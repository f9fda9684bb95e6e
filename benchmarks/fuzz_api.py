"""Send every operation of the OpenAPI document valid and invalid requests, and print what its answers broke.

    python benchmarks/fuzz_api.py [--examples 200] [--ranks 2] [--seed 1]

First the application in this process, whose engine answers at once, then a server of so many ranks with the demo model.
Each operation gets the coverage cases of schemathesis and `examples` random ones of each kind. Ends with status 1 where
an answer was not as the document says.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import urllib.request
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.api_fuzz import EchoEngine, Fuzz  # noqa: E402
from support.servers import server  # noqa: E402

from ollampi.api.app import create_app  # noqa: E402
from ollampi.api.settings import Settings  # noqa: E402
from ollampi.api.store.catalog import Store  # noqa: E402
from ollampi.api.store.local import LocalStore  # noqa: E402

DEMO = ROOT / "conf" / "models" / "demo"


def report(name: str, fuzz: Fuzz, began: float) -> bool:
    """Print what came of it; return whether nothing failed."""
    took = time.perf_counter() - began
    requests, fewest = sum(fuzz.cases.values()), min(fuzz.cases.values())
    print(f"{name}: {len(fuzz.cases)} operations, {requests} requests ({fewest} or more each), {took:.0f} s")
    print("  statuses: " + ", ".join(f"{status} {count}" for status, count in sorted(fuzz.statuses.items())))
    print(f"  failures: {len(fuzz.failures)}")
    for key, case in fuzz.failures.items():
        print(f"    {key}\n      {case}")
    return not fuzz.failures


def in_process(examples: int, seed: int) -> bool:
    """Try the application with an engine that answers at once."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(EchoEngine(), Store([DEMO], LocalStore(Path(folder))), Settings(max_body_bytes=1 << 20))
        fuzz, began = Fuzz(app.test_client().get("/api/openapi.json").json, ["demo"], app), time.perf_counter()
        fuzz.run(examples, seed)
        return report("in this process", fuzz, began)


def served(examples: int, seed: int, ranks: int) -> bool:
    """Try a real server, which must live afterwards."""
    settings = ["engine.context_length=128", "engine.timeout_s=5"]
    with (
        tempfile.TemporaryDirectory() as folder,
        server(ranks, Path(folder), *settings, f"store={folder}/store") as job,
    ):
        url = f"http://127.0.0.1:{job.port}"
        with urllib.request.urlopen(f"{url}/api/openapi.json", timeout=10) as answer:
            document = json.load(answer)
        fuzz, began = Fuzz(document, ["demo"], base_url=url), time.perf_counter()
        fuzz.run(examples, seed)
        job.generate("import", 5)
        log = job.log.read_text()
        print(f"the server lives; its log holds {log.count('Traceback')} tracebacks")
        return report(f"{ranks} ranks", fuzz, began) and "Traceback" not in log


def main() -> None:
    """Try what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    fine = in_process(args.examples, args.seed)
    sys.exit(0 if served(args.examples, args.seed, args.ranks) and fine else 1)


if __name__ == "__main__":
    main()
