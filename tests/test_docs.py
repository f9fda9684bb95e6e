"""What is public is documented, and what the README tells a newcomer to run is run."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.servers import server

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FILES = [p for layer in ("kernels", "mpiruntime", "api", "launcher") for p in sorted((ROOT / layer).rglob("*.py"))]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)


def public_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    owners = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
    return [n for owner in owners for n in owner.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_classes_and_functions_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text())
    opening = ast.get_docstring(tree)
    assert opening, "no module docstring"
    assert opening.splitlines()[0].endswith((".", ":")), "the first line is one sentence"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
    for function in public_functions(tree):
        assert ast.get_docstring(function), function.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tensor_functions_give_shapes(path: Path) -> None:
    tree = ast.parse(path.read_text())
    classes = {f: c for c in tree.body if isinstance(c, ast.ClassDef) for f in c.body}
    for function in public_functions(tree):
        returns = ast.unparse(function.returns) if function.returns else ""
        if re.search(r"\bTensor\b", returns) and function.name != "tensors" and "list" not in returns:
            text = (ast.get_docstring(function) or "") + (ast.get_docstring(classes.get(function, tree)) or "")
            assert re.search(r"\[.*\]|\bx in fp32\b|x over all ranks", text), f"{function.name} gives no shape"


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in FILES:
        assert f"`{path.stem}`" in text, f"{path.relative_to(ROOT)} is not in docs/architecture.md"


def test_the_readme_maps_every_top_level_entry() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    entries = {line.split("/")[0] for line in tracked.splitlines()}
    for entry in entries - {".gitignore", "README.md", ".ci"}:
        assert f"`{entry}" in README, f"{entry} is not in the README's file map"


def test_the_readme_has_the_two_commands() -> None:
    shell = "\n".join(body for language, body in BLOCKS if language == "sh")
    assert re.search(r"^make serve\b", shell, re.M)
    assert re.search(r"^make test\b", shell, re.M)


def test_every_shell_block_of_the_readme_parses() -> None:
    blocks = [body for language, body in BLOCKS if language == "sh"]
    assert blocks
    for body in blocks:
        done = subprocess.run(["bash", "-n", "-c", body], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for target in re.findall(r"^make (\S+)", body, re.M):
            assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(), re.M), f"make {target}"


def test_the_first_requests_of_the_readme_work_as_written(tmp_path: Path) -> None:
    shell = "\n".join(body for language, body in BLOCKS if language == "sh").replace("\\\n", " ")
    lines = [line for line in shell.splitlines() if line.startswith(("curl ", "ollampi ", "printf "))]
    lines = [line for line in lines if not re.search(r"\b(serve|launch|pull)\b", line)]  # no test asks other hosts
    assert len(lines) >= 4
    with server(2, tmp_path) as job:
        for line in lines:
            command = line.replace("localhost:11434", f"127.0.0.1:{job.port}")
            command = command.replace("ollampi ", f"OLLAMA_HOST=127.0.0.1:{job.port} {sys.executable} -m ollampi ", 1)
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=tmp_path)
            assert done.returncode == 0, (command, done.stderr)
            assert done.stdout.strip() or done.stderr.endswith("success\n"), command
            if shlex.split(line)[0] == "curl":
                for answer in done.stdout.splitlines():
                    assert "error" not in json.loads(answer), answer
