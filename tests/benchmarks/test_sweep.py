"""A real sweep of two servers, one of whose loads is too long for the model, interrupted and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from support.servers import DEMO, alive, descendants, wait_until
from sweep_points import Load, Point, Server
from sweep_records import Record, Records
from sweep_server import subject

from ollampi.mpiruntime.gguf_convert import convert

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "sweep.py"
WORDS = [
    "shards=1,2",
    "threads=1",
    "concurrency=2",
    "prompt=9,3000",
    "output=5",
    "repeats=2",
    "ready_s=250",
    "starts=1",
]
SHORT = Load(2, 9, 5)


def line(folder: Path) -> list[str]:
    return [sys.executable, str(PROGRAM), *WORDS, f"folder={folder}"]


def check(record: Record, shards: int) -> None:
    """Assert what is true of a point, however fast the machine is."""
    assert record.error == ""
    assert record.point.load == SHORT
    assert record.groups == [list(range(shards))]
    assert len(record.repeats) == 2
    for repeat in record.repeats:
        assert repeat.tokens == 10
        assert len(repeat.first_s) == len(repeat.token_s) == 2
        assert all(0 < seconds < repeat.wall_s for seconds in (*repeat.first_s, *repeat.token_s))
        assert len(repeat.compute_s) == len(repeat.exchange_s) == shards
        assert min(*repeat.compute_s, repeat.other_s) > 0, repeat
    assert len(record.shard_bytes) == len(record.process_bytes) == shards
    assert all(0 < held < whole for held, whole in zip(record.shard_bytes, record.process_bytes, strict=True))


def test_a_sweep_is_interrupted_goes_on_and_reports(tmp_path: Path) -> None:
    first = subprocess.Popen(line(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: len(Records(tmp_path).read()) == 3 or first.poll() is not None, 250, "the first measurement")
        first.send_signal(signal.SIGINT)
        out, _ = first.communicate(timeout=60)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 130, out
    assert "sweep: interrupted; the same line goes on where it was" in out
    before = (tmp_path / "sweep.jsonl").read_text()
    second = subprocess.run(line(tmp_path), capture_output=True, text=True, timeout=280)
    assert second.returncode == 1, second.stderr  # the points that are too long for the model
    assert (tmp_path / "sweep.jsonl").read_text().startswith(before)
    records = list(Records(tmp_path).read().values())
    assert len(records) == 4
    for shards in (1, 2):
        long, short = (record for record in records if record.point.server.shards == shards)
        check(short, shards)
        assert long.error == "prompt and answer have 3005 tokens, and the model takes 2048; use shorter ones"
    assert records[3].shard_bytes[0] < records[2].shard_bytes[0]
    assert "2 of 4 points failed; retry=true measures them again" in second.stdout
    assert "2 shards are best for memory" in second.stdout.splitlines()[-1]
    assert (tmp_path / "sweep.csv").read_text().count("\n") == 5


def test_the_server_of_a_sweep_that_is_killed_goes_too(tmp_path: Path) -> None:
    rank = "import os, time; from ollampi.mpiruntime.lifetime import die_with; die_with(os.getppid()); "
    rank += (
        "print(os.getpid(), file=open('pids', 'a'), flush=True); time.sleep(600)"  # ranks die with what started them
    )
    code = "import subprocess, sys, time\nfrom sweep_server import start_line\n"
    code += f"line, env = start_line(2, [sys.executable, '-W', 'ignore', '-c', {rank!r}])\n"
    code += "subprocess.Popen(line, env=env, start_new_session=True, stdin=subprocess.DEVNULL)\ntime.sleep(600)"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pids = tmp_path / "pids"
    with subprocess.Popen([sys.executable, "-c", code], env=environ, cwd=tmp_path) as process:
        try:
            wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2, 100, "two ranks")
            started = descendants(process.pid)
        finally:
            process.kill()
    assert len(started) >= 3
    wait_until(lambda: not any(map(alive, started)), 60, f"{started} to end")


def test_a_model_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    found = subject("demo", tmp_path)
    assert found.refuses(Point(Server(8, 4), Load(64, 2000, 48))) == ""
    assert found.refuses(Point(Server(9), SHORT)) == "cannot cut 8 attention heads into 9 shards; use fewer"
    assert found.refuses(Point(Server(), Load(1, 2000, 49))).startswith("prompt and answer have 2049 tokens, and")


def test_the_model_of_a_sweep_knows_no_token_to_stop_at(tmp_path: Path) -> None:
    found = subject("demo", tmp_path)
    assert found.stops == []
    assert len(found.token_ids) > 30
    for name in ("config.json", "generation_config.json"):
        assert "eos_token_id" not in json.loads((found.path / name).read_text())
    assert (found.path / "model.safetensors").resolve() == found.model.path.resolve() / "model.safetensors"
    assert subject("demo", tmp_path).path == found.path  # made once
    assert os.listdir(found.path.parent) == ["demo"]


def test_stop_tokens_of_the_part_about_text_are_gone_too(tmp_path: Path) -> None:
    demo = subject("demo", tmp_path).model.path
    source = tmp_path / "nested"
    source.mkdir()
    for file in demo.iterdir():
        (source / file.name).symlink_to(file.resolve())
    (source / "config.json").unlink()
    config = json.loads((demo / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"text_config": {"eos_token_id": 1, "kept": 2}}))
    found = json.loads((subject(str(source), tmp_path).path / "config.json").read_text())
    assert found["text_config"] == {"kept": 2}


def test_a_gguf_file_is_taken_as_it_is_and_its_stop_tokens_are_known(tmp_path: Path) -> None:
    file = tmp_path / "demo.gguf"
    convert(DEMO, file, lambda done, total: None)
    found = subject(str(file), tmp_path)
    assert found.path == file
    assert sorted(found.stops) == [0, 1]
    assert found.token_ids == subject("demo", tmp_path).token_ids
    assert found.refuses(Point(Server(9), SHORT))
