"""Imports run downwards only, at the top of the file, and absolutely; nothing is unpickled."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("kernels", "mpiruntime", "api", "launcher")  # each may import those before it
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
# What an HTTP process must not load: it starts in a fraction of a second and holds no weights.
TORCH_FREE = {
    "adapter_config",
    "checkpoint_files",
    "cluster",
    "errors",
    "families",
    "folder_templates",
    "gguf_config",
    "gguf_header",
    "gguf_tokenizer",
    "heap",
    "json_file",
    "lifetime",
    "log_files",
    "model_config",
    "request",
    "safetensors_header",
    "special_tokens",
    "tokenizer_file",
    "tokenizer_folder",
    "wire",
}
# What a rank must not load: torch's compiler, with sympy, took as long as all else; the others are the HTTP process'.
RANK_FREE = {"click", "flask", "gunicorn", "prompt_toolkit", "pydantic", "sympy", "torch._dynamo", "transformers"}
PICKLING = {"pickle", "cloudpickle", "marshal", "dill", "shelve"}


def imports(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, "." * node.level + (node.module or "")


def test_the_layers_are_all_there() -> None:
    assert {p.relative_to(ROOT).parts[0] for p in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards_at_the_top_and_absolutely(path: Path) -> None:
    tree = ast.parse(path.read_text())
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    for node, name in imports(tree):
        assert not name.startswith("."), f"relative import {name}"
        assert name.split(".")[0] not in PICKLING, f"{name} can run code from data"
        if name.startswith("ollampi."):
            assert node in tree.body, f"lazy import of {name}"
            target = name.split(".")[1]
            assert target not in LAYERS[layer + 1 :], f"upward import of {name}"
            if LAYERS[layer] == "api" and target == "mpiruntime":
                modules = name.split(".")[2:] or [alias.name for alias in node.names]
                assert set(modules) <= TORCH_FREE, f"{name} would load torch into the HTTP process"


def test_a_rank_loads_nothing_that_it_does_not_use() -> None:
    program = f"import sys, ollampi.launcher.serve; print(*sorted({RANK_FREE!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_upper_or_lower_call_pickles(path: Path) -> None:
    """mpi4py's lower-case communication pickles; torch.load and numpy's allow_pickle do as well."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            assert (owner, node.func.attr) != ("torch", "load")
            if owner.endswith(("_data", "_control", "COMM_WORLD")):
                assert node.func.attr[0].isupper() or node.func.attr.startswith("improbe"), ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, node.name


def test_there_is_no_import_cycle() -> None:
    graph = {
        ".".join(["ollampi", *path.relative_to(ROOT).with_suffix("").parts]): {
            name for _, name in imports(ast.parse(path.read_text())) if name.startswith("ollampi.")
        }
        for path in FILES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for target in graph.get(module, ()):
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
