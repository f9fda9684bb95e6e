"""Check chat templates: what they may use, what they may cost, and that hostile ones harm nobody."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import threading
import time

import pytest

from ollampi.api.chat_template import NUM_HELPERS, ChatTemplates
from ollampi.mpiruntime.errors import ModelError, RequestError


def user(text):
    return {"role": "user", "content": text}


def helper_pids(templates):
    """Return the processes that wait for work."""
    return [helper._process.pid for helper in templates._idle.queue if helper is not None]


@pytest.fixture(scope="module")
def templates():
    return ChatTemplates()


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ raise_exception('roles must alternate') }}", RequestError),
        ("{{ messages[0].__class__.__mro__ }}", ModelError),
        ("{{ 1 / 0 }}", ModelError),
        ("{% for %}", ModelError),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", ModelError),
        ("{{ messages.append(1) }}", ModelError),
    ],
)
def test_bad_templates(client, make_model, make_client, tmp_path, template, error):
    make_model(tmp_path / "bad", template)
    body = {"model": "bad", "messages": [user("x")]}
    response = make_client(tmp_path).post("/api/chat", json=body)
    assert response.status_code == (400 if error is RequestError else 500)
    assert "chat template" in response.json["error"]


def test_template_names_of_transformers(make_model, make_client, tmp_path):
    loop = "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    source = "{{ {'a': '<ä>'} | tojson }}" + loop
    make_model(tmp_path / "m", source + "{{ strftime_now('%Y') | length }}{{ eos_token }}")
    body = {"model": "m", "messages": [user("x"), user("y")], "_debug_render_only": True}
    answer = make_client(tmp_path).post("/api/chat", json=body).json
    assert answer["_debug_info"]["rendered_template"] == '{"a": "<ä>"}x4<|end|>'


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}", "250 ms of CPU"),
        ("{{ 10 ** 100000000 }}", "250 ms of CPU"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "250 ms of CPU|failed: RecursionError"),
        ("{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "256 MB|250 ms of CPU"),
        ("{{ messages[0].content * 10 ** 9 }}", "256 MB"),
        ("{{ 'x' * 10 ** 9 }}", "256 MB"),
        ("{{ '%1000000000s' % 1 }}", "256 MB"),
        ("{{ messages[0].content * 40000000 }}", "more than 33554432 characters"),
        ("{% if a %}" * 20_000, "cannot be compiled"),
        ("{{ " + "(" * 100_000, "cannot be compiled"),
        ("{{ " + "-" * 100_000 + "1 }}", "cannot be compiled"),
        ("{{ " + "9" * 10_000 + " }}", "cannot be compiled"),
        ("{{ '\\ud800' }}", "failed: UnicodeEncodeError"),
        ("{{ cycler.__init__.__globals__ }}", "failed: SecurityError"),
        ("{{ lipsum.__globals__.os.getpid() }}", "failed: SecurityError"),
        ("{{ ''.join.__self__.__class__.__mro__ }}", "failed: SecurityError"),
        ("{{ (messages | first | attr('__class__')).x }}", "failed"),
        ("{{ '{0.__class__.__mro__}'.format(messages) }}", "failed: SecurityError"),
        ("{% include 'x' %}", "failed: TypeError"),
    ],
    ids=lambda text: text[:30],
)
def test_hostile_templates_only_fail(templates, source, reason):
    started = time.perf_counter()
    with pytest.raises(ModelError, match=reason):
        templates.render(source, [user("x")], [])
    assert time.perf_counter() - started < 10
    assert templates.render("{{ messages[0].content }}", [user("y")], []) == "y"


REACHES = [
    "().__class__.__bases__[0].__subclasses__()",
    "''.__class__.mro()[1].__subclasses__()",
    "messages.__class__.__init__.__globals__",
    "cycler.__init__.__globals__.os.system(CANARY)",
    "joiner.__init__.__globals__.os.popen(CANARY).read()",
    "namespace.__init__.__globals__.os.system(CANARY)",
    "lipsum.__globals__['os'].system(CANARY)",
    "lipsum|attr('__globals__')",
    "self.__init__.__globals__",
    "self._TemplateReference__context.eval_ctx.environment",
    "self._TemplateReference__context.parent",
    "raise_exception.__globals__",
    "strftime_now.__globals__.sys.modules",
    "strftime_now.__code__.co_consts",
    "raise_exception.__closure__",
    "range.__class__.__call__",
    "dict.__mro__",
    "dict.fromkeys.__self__.__base__",
    "'{0.__class__.__init__.__globals__}'.format(cycler)",
    "'{x.__class__}'.format_map({'x': messages})",
    "('%s' | format).__func__",
    "''.join.__self__.__class__.__base__.__subclasses__()",
    "messages | map(attribute='__class__') | list",
    "[cycler] | map(attribute='__init__.__globals__') | list",
    "(messages | groupby('__class__') | list)[0].grouper.__base__",
    "(messages | attr('append'))(1)",
    "messages.pop()",
    "messages[0].update({'role': 1})",
    "messages | map('attr', '__class__') | first",
    "(1).__class__.from_bytes.__self__.__subclasses__()",
    "caller.__globals__",
    "loop.__init__.__globals__",
    "get_flashed_messages.__globals__",
    "config.__class__.__init__.__globals__",
]
PLACES = [
    "{{ REACH }}",
    "{% set x = REACH %}{{ x }}",
    "{% macro f() %}{% for i in [1] %}{{ REACH }}{% endfor %}{% endmacro %}{{ f() }}",
]


@pytest.mark.parametrize("place", PLACES, ids=["plain", "set", "macro"])
@pytest.mark.parametrize("reach", REACHES)
def test_nothing_is_reached_from_a_template(templates, tmp_path, reach, place):
    """A hundred ways out that worked somewhere once: each is refused, or is text that tells nothing."""
    canary = f"touch {tmp_path / 'canary'}"
    source = place.replace("REACH", reach.replace("CANARY", repr(canary)))
    try:
        text = templates.render(source, [user("x")], [])
    except (ModelError, RequestError) as e:
        text = str(e)
    assert not re.search(r"<class|<module|<function|__|builtin|0x[0-9a-f]{6}", text)
    assert not (tmp_path / "canary").exists()
    assert templates.render("{{ messages[0].content }}", [user("y")], []) == "y"


@pytest.mark.parametrize("route", ["chat", "generate"])
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ lipsum.__globals__.os.getpid() }}", "failed: SecurityError"),
        ("{{ 'x' * 10 ** 9 }}", "needed more than 256 MB"),
        ("{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}", "more than 250 ms of CPU"),
        ("{% if %}", "cannot be compiled"),
    ],
)
def test_the_message_names_the_model_and_the_reason(make_model, make_client, engine, tmp_path, route, source, reason):
    make_model(tmp_path / "bad", source)
    body = {"model": "bad", "messages": [user("x")], "prompt": "x", "stream": False}
    response = make_client(tmp_path).post(f"/api/{route}", json=body)
    assert response.status_code == 500
    assert response.json["error"].startswith("model bad:latest: the model's chat template ")
    assert reason in response.json["error"]
    assert not engine.requests


def test_a_refusal_is_short_text(templates):
    with pytest.raises(RequestError, match=r"refuses these messages: \[1, 2\]$"):
        templates.render("{{ raise_exception([1, 2]) }}", [], [])
    with pytest.raises(RequestError, match=r"refuses these messages: x{200}$"):
        templates.render("{{ raise_exception('x' * 100000) }}", [], [])
    with pytest.raises(RequestError, match=r"refuses these messages: \?$"):
        templates.render("{{ raise_exception('\\ud800') }}", [], [])


def test_values_arrive_as_they_are(templates):
    values = {"big": 10**30, "float": 0.1, "null": None, "text": "ä世🙂\0<>&'\"", "list": [True, {"a": []}]}
    tools = [{"type": "function", "function": values}]
    assert json.loads(templates.render("{{ tools | tojson }}", [], tools)) == tools
    assert templates.render("{{ tools is none }}{{ x }}{{ add_generation_prompt }}", [], [], x=3) == "True3True"


def test_nothing_lasts_from_one_rendering_to_the_next(templates):
    source = "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ seen is defined }}{% set seen = 1 %}"
    assert {templates.render(source, [], []) for _ in range(5)} == {"1False"}


def test_many_threads_share_the_helpers():
    templates, found = ChatTemplates(), []

    def ask(number):
        found.append((number, templates.render("{{ n }}{{ messages[0].content }}", [user("x" * number)], [], n=number)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [(n, f"{n}" + "x" * n) for n in range(24)]
    assert 1 <= len(helper_pids(templates)) <= NUM_HELPERS


def test_a_helper_that_was_killed_is_replaced():
    templates = ChatTemplates()
    assert templates.render("a", [], []) == "a"
    [first] = helper_pids(templates)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert templates.render("b", [], []) == "b"
    assert helper_pids(templates) != [first]


def test_a_helper_that_dies_while_it_is_asked_fails_no_chat():
    templates = ChatTemplates()
    assert templates.render("a", [], []) == "a"
    [pid] = helper_pids(templates)
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    assert templates.render("b", [], []) == "b"
    killer.join()


def test_helpers_end_with_their_owner():
    templates = ChatTemplates()
    templates.render("a", [], [])
    [pid] = helper_pids(templates)
    del templates
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_helpers_end_when_the_socket_closes():
    templates = ChatTemplates()
    templates.render("a", [], [])
    [helper] = [helper for helper in templates._idle.queue if helper]
    helper._connection.close()
    assert helper._process.wait(10) == 0
