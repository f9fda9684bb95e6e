"""The grammar process may die: answers go on, but for the one whose grammar is to blame."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.grammars import byte_tokenizer, write_speaker
from support.guided import DRAWN, GREEDY, Killer, answers, ask, text

from ollampi.mpiruntime import grammar_link
from ollampi.mpiruntime.guides import Guides
from ollampi.mpiruntime.request import GenerateRequest, Grammar, ModelRef


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaker(tmp_path_factory.mktemp("model") / "m")


def test_answers_survive_a_death_of_the_grammar_process(folder: Path) -> None:
    messages = [ask(1, folder, Grammar("regex", "([a-m]{3}[0-9]){12}")), ask(2, folder, None, GREEDY, max_tokens=40)]
    undisturbed, once = answers(1, messages), answers(1, messages, Killer(messages, 1))
    assert once.tokens(1) == undisturbed.tokens(1)
    assert re.fullmatch("([a-m]{3}[0-9]){12}", text(once, 1))
    assert once.tokens(2) == undisturbed.tokens(2)


FATAL = """
import os, signal
from ollampi.mpiruntime import grammar_worker

own = os.getpid()

def deadly(call, place, wanted):
    def wrapped(*values):
        if wanted in values[place] and os.getpid() == own:
            os.kill(own, signal.SIGKILL)
        return call(*values)
    return wrapped

grammar_worker.Matcher.advance = deadly(grammar_worker.Matcher.advance, 1, TOKEN)
grammar_worker.compile_grammar = deadly(grammar_worker.compile_grammar, 2, "deadly")
grammar_worker.main()
"""


@pytest.mark.parametrize("grammar", ["[a-m]{9}xyz", "deadly[a-z]"])
def test_a_grammar_that_ends_the_process_twice_ends_its_own_answer_alone(
    folder: Path, tmp_path: Path, grammar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies when it follows a certain token, or when it compiles a certain text."""
    script = tmp_path / "worker.py"
    script.write_text(FATAL.replace("TOKEN", str(byte_tokenizer().encode("x").ids[0])))
    others = [ask(i, folder, Grammar("regex", "([a-m]{3}[0-9]){12}"), GREEDY if i % 2 else DRAWN) for i in range(2, 6)]
    undisturbed = answers(1, others)
    monkeypatch.setattr(grammar_link, "_COMMAND", [sys.executable, str(script)])
    recorder = answers(1, [ask(1, folder, Grammar("regex", grammar), GREEDY), *others])
    assert recorder.last(1)["code"] == "internal"
    assert "2 times at work on this grammar" in recorder.last(1)["message"]
    for i in range(2, 6):
        assert recorder.tokens(i) == undisturbed.tokens(i)


class Dead(Guides):
    """Guides whose process dies at work on some of them."""

    def die(self, *numbers: int) -> None:
        self.sent: list[int] = []
        self._link = SimpleNamespace(at_work_on=lambda: set(numbers), close=lambda: None)  # type: ignore[assignment]
        self._start_again()

    def send(self, message: Any) -> None:
        self.sent.append(message["id"])


def test_deaths_count_most_for_the_grammars_at_work(folder: Path) -> None:
    guides = Dead()
    guides.sent = []
    request = GenerateRequest(ModelRef("m", str(folder)), [1], grammar=Grammar("regex", "a"))
    first, second, third = [guide for _ in range(3) if (guide := guides.open(request, 9)) is not None]
    guides.die(0, 1)
    assert guides.sent == [2, 0, 1]
    guides.die(1)
    assert [guide.over for guide in (first, second, third)] == [False, True, False]
    assert guides.sent == [2, 0]
    for _ in range(3):
        guides.die()
    assert first.error == third.error
    assert "ended 5 times;" in str(first.error)
