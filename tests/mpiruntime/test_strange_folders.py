"""Code that a model folder names is never run: nothing is imported, no socket opened, no file elsewhere read.

CVE-2026-22807 (auto_map), CVE-2026-4372 (_attn_implementation_internal).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOADING = """
import sys, sysconfig
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from support.worlds import lead, load_message, logits_in_pieces
from ollampi.api.model import read_model
from ollampi.api.names import folder_name
from ollampi.api.text_encoder import TextEncoder
from ollampi.mpiruntime.thread_world import run_threads
folder, seen = Path(sys.argv[1]), []
code = [str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")]
known = (*code, *map(str, (folder, Path(sys.argv[2]).parent)), "/proc/", "/sys/", "/dev/null")
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = args[0] if isinstance(args[0], str) else args[0].decode()
        if not str(Path(path).resolve()).startswith(known) and path != "/dev/null":
            seen.append(("open", path))
    elif event in ("socket.__new__", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.fork"):
        seen.append((event, repr(args)))
    elif event == "import" and args[0].split(".")[0] in ("modeling_x", "configuration_x", "transformers", "x"):
        seen.append((event, args[0]))
assert "transformers" not in sys.modules
sys.addaudithook(hook)
logits = run_threads(2, lambda c: lead(c, lambda runner: (
    runner.lead_load(load_message(folder)), logits_in_pieces(runner, [1, 2, 3], [3]))[1]))[0]
assert logits.isfinite().all()
model = read_model(folder_name("m"), folder)
TextEncoder(model.texts.tokenizer, model.texts.file).encode([("import os", False)], False)
print(seen)
"""


STRANGE: list[dict[str, Any]] = [
    {
        "auto_map": {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"},
        "_attn_implementation_internal": "org/kernel:x",
        "quantization_config": {"quant_method": "x", "modules_to_not_convert": ["../../x"], "auto_map": {"x": "x"}},
        "_name_or_path": "/etc/passwd",
    },
    {
        "auto_map": {"AutoModelForCausalLM": "org/other--modeling_x.X"},
        "trust_remote_code": True,
        "_attn_implementation": "org/kernel",
        "custom_pipelines": {"x": {"impl": "modeling_x.X"}},
        "_target_": "modeling_x.X",
        "architectures": ["modeling_x.X"],
    },
]


@pytest.mark.parametrize("strange", STRANGE)
def test_references_to_code_run_nothing(tmp_path: Path, strange: dict[str, Any]) -> None:
    folder = shutil.copytree(ROOT / "conf" / "models" / "demo", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **strange}))
    for name in ("modeling_x.py", "configuration_x.py", "x.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass X: pass\n")
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", LOADING, str(folder), str(ROOT / "tests")]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert not (tmp_path / "canary").exists()
