"""Advisory 45: sandbox break-outs and endless templates (CVE-2024-56326 and others) end within their limits."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from support.attacks import with_template
from support.servers import server

ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "times": "{{ 'a' * 10**9 }}",
    "format": "{{ '%1000000000s' % 'a' }}",
    "power": "{{ 10**(10**8) }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "format_map": "{{ '{0.__class__}'.format_map({'0': 1}) }}",
}


def test_jinja_is_new_enough():
    assert tuple(map(int, version("jinja2").split("."))) >= (3, 1, 6)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for name, source in ENDLESS.items():
        with_template(folder / "models", name, source)
    with server(0, folder, f"model_folders={folder / 'models'}") as running:
        yield running


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_templates_are_cut_off_on_every_route(hostile, name):
    turn = [{"role": "user", "content": "x"}]
    for path, body in (
        ("/api/chat", {"messages": turn}),
        ("/api/generate", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": turn}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": turn, "max_tokens": 2}),
        ("/v1/messages/count_tokens", {"messages": turn}),
    ):
        status, answer = hostile.request("POST", path, {"model": name, "stream": False, **body})
        assert status in (400, 500), (path, answer)
        assert "template" in str(answer["error"]), (path, answer)
    assert hostile.request("POST", "/api/show", {"model": name})[0] == 200, "showing renders nothing"
    assert hostile.request("POST", "/api/embed", {"model": name, "input": "x"})[0] == 200, "neither does embedding"
    assert hostile.generate("import os\n", 2) is not None
