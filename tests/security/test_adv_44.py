"""Advisory 44: chat templates that run code (CVE-2024-34359, CVE-2026-5760): on no route that renders."""

from __future__ import annotations

import pytest
from support.attacks import with_template
from support.servers import server

WALKS = [
    "''.__class__",
    "cycler.__init__.__globals__",
    "lipsum.__globals__",
    "namespace.__init__",
    "messages.__class__",
]
CALLS = ["os.system('touch {0}')", "__builtins__.open('{0}','w')", "__import__('os').mkdir('{0}')"]
FILTERS = [
    "''|attr('__class__')",
    "()|attr('\\x5f\\x5fclass\\x5f\\x5f')",
    "[].append.__self__",
    "'{0.__class__}'.format(1)",
]


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    return tmp_path_factory.mktemp("canary") / "touched"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, canary):
    folder = tmp_path_factory.mktemp("hostile")
    for number, source in enumerate(sources(str(canary))):
        with_template(folder / "models", f"m{number}", source)
    with server(0, folder, f"model_folders={folder / 'models'}") as running:
        yield running


def sources(canary: str) -> list[str]:
    """Return templates that try to touch a file; 100 more are tests/api/test_chat_template.py's."""
    walks = [f"{{{{ {walk}.{call.format(canary)} }}}}" for walk in WALKS for call in CALLS]
    return (
        walks
        + [f"{{{{ {what} }}}}" for what in FILTERS]
        + [f"{{% set x = {walk} %}}{{{{ x['os'] }}}}" for walk in WALKS]
    )


def test_no_template_runs_code(hostile, canary):
    turn = [{"role": "user", "content": "x"}]
    for number in range(len(sources(""))):
        model = f"m{number}"
        for path, body in (
            ("/api/chat", {"messages": turn}),
            ("/api/generate", {"prompt": "x"}),
            ("/api/show", {}),
            ("/api/embed", {"input": "x"}),
            ("/v1/chat/completions", {"messages": turn}),
            ("/v1/messages/count_tokens", {"messages": turn}),
        ):
            body = {"model": model, "stream": False, "options": {"num_predict": 1}, "max_tokens": 1, **body}
            status, answer = hostile.request("POST", path, body)
            assert status in (200, 400, 500), (path, answer)
            assert "subclasses" not in str(answer.get("message", ""))
        assert not canary.exists(), number
