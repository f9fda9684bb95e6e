"""Measure which number of shards is best: a sweep over servers and loads, with a report that ends in a recommendation.

    python benchmarks/sweep.py [--dry-run] model=PATH shards=1,2,4 quantize=none,q8 concurrency=1,16 [KEY=VALUE ...]

A Hydra multirun over shards, replicas, threads, quantize, level (of the exchange), concurrency, prompt and output; all
parameters are in conf/sweep.yaml, settings of the server may stand beside them. One server serves all points that share
its settings. Records are appended to FOLDER/sweep.jsonl after each point: the same line again goes on where it was.
With slurm=true each point is a Slurm job. docs/sweeps.md has examples.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from sweep_points import Point, Sweep, read  # noqa: E402
from sweep_records import Record, Records, of_sweep  # noqa: E402
from sweep_report import report  # noqa: E402
from sweep_run import Run, span_text, time_left_s, todo  # noqa: E402
from sweep_server import Subject, model_of, subject  # noqa: E402
from sweep_slurm import submit  # noqa: E402

from ollampi.api.model import Model  # noqa: E402
from ollampi.mpiruntime.errors import ConfigError, ModelError  # noqa: E402


def plan(sweep: Sweep, model: Model, known: dict[str, Record]) -> str:
    """Return the points with their keys and what is known of them, and about how long the rest takes."""
    asked = Subject(model, model.path)
    found = todo(sweep, model.digest, known)
    refused = {point: reason for point in found if (reason := asked.refuses(point))}
    left = [point for point in found if point not in refused]
    lines = []
    for point in sweep.points:
        key, reason = sweep.key(point, model.digest), refused.get(point, "")
        past = "failed" if key in known and known[key].error else "done"
        state = "cannot" if reason else "to do" if point in left else past
        lines.append(f"{key}  {state:6}  {point.text}" + (f": {reason}" if reason else ""))
    return "\n".join([*lines, amount(sweep, left, len(refused), known)])


def amount(sweep: Sweep, left: Sequence[Point], refused: int, known: dict[str, Record]) -> str:
    """Return how many points there are and are left, and about how long these take; refused: by the model."""
    rounds = sweep.options["warmups"] + sweep.options["repeats"]
    servers = len({point.server for point in left})
    took = span_text(time_left_s(left, list(known.values()), rounds))
    source = (
        "from what was measured here"
        if any(not r.error for r in known.values())
        else "assumed, nothing is measured yet"
    )
    on = f"{servers} server{'s' * (servers != 1)}"
    count, starts = len(sweep.points), sweep.options["starts"]
    points = f"{count} point{'s' * (count != 1)}"
    points += f" ({count // starts} in each of {starts} starts)" if starts > 1 else ""
    points += f", {refused} that the model cannot do" if refused else ""
    return f"{points}, {len(left)} to do on {on}: about {took} ({source})"


def run(words: Sequence[str]) -> int:
    """Do what the line asks for; return the exit status. Raise ConfigError, ModelError, OSError."""
    sweep = read(words)
    folder = Path(os.path.expanduser(sweep.options["folder"])).resolve()
    only = sweep.options["only"]
    records = Records(folder, only[0] if only else "")
    known = records.read()
    asked = model_of(sweep.options["model"])
    if sweep.options["dry_run"]:
        print(plan(sweep, asked, known))
        return 0
    model = subject(sweep.options["model"], folder)
    measuring = Run(sweep, model, records, say)
    left = todo(sweep, asked.digest, known)
    if left and not only:  # a server may take minutes before the first point is told
        say(amount(sweep, left, 0, known))
    if sweep.options["slurm"]:
        submit(sweep, measuring.possible(left), words, records, model, say)
    else:
        with records.alone():
            measuring.all(todo(sweep, asked.digest, records.read()))
    return 0 if only else conclude(sweep, model, records, folder)


def conclude(sweep: Sweep, model: Subject, records: Records, folder: Path) -> int:
    """Write the report of what is known, and print its end; return 0 where all points were measured."""
    found = of_sweep(records.read(), [sweep.key(point, model.model.digest) for point in sweep.points])
    failed = [record for record in found if record.error]
    for record in failed:
        print(f"failed: {record.point.text}: {record.error}")
    if failed:
        print(f"{len(failed)} of {len(sweep.points)} points failed; retry=true measures them again")
    if len(found) < len(sweep.points):
        print(f"{len(sweep.points) - len(found)} of {len(sweep.points)} points are not measured yet")
    made = report(found)
    for line in made.write(folder):
        say(line)
    print(made.advice)
    return int(len(found) < len(sweep.points) or bool(failed))


def say(text: str) -> None:
    """Show how far the sweep is."""
    print(text, file=sys.stderr, flush=True)


def main(words: Sequence[str]) -> int:
    """Return the exit status: 0 all measured, 1 some not, 2 the line cannot be used, 130 interrupted."""
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the server goes too
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        return run(words)
    except (ConfigError, ModelError) as e:
        say(f"sweep: {e}")
    except OSError as e:
        say(f"sweep: {e.strerror or e}: {e.filename or ''}; give a folder that can be written with folder=PATH")
    except KeyboardInterrupt:
        say("sweep: interrupted; the same line goes on where it was")
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
