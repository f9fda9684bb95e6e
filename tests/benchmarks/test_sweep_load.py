"""What a round of a sweep asks for and accepts, against a server that answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sweep_load import Answered, measure
from sweep_points import Load
from sweep_server import Running, Subject, SweepError

BESIDE = 2  # tokens that the server puts behind those of a request


@dataclass
class Answers:
    """A server that says how long its prompts and answers were; off: by how many tokens it errs."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    prompt_off: int = 0
    output_off: int = 0
    reused: int = 0
    refuses: bool = False
    hangs_up: bool = False
    generated: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
        with self.lock:
            self.bodies.append(body)
            output = body["options"]["num_predict"]
            self.generated += output
        if self.refuses and output > 1:
            return 400, [{"error": "no\nsuch luck"}]
        count = len(body["context"]) + BESIDE + self.prompt_off * (output > 1)
        end = {"done": True, "prompt_eval_count": count, "eval_count": output + self.output_off, "eval_duration": 3_000}
        return 200, [{"done": False}, end]

    def metrics(self) -> str:
        return (
            f'ollampi_generated_tokens_total{{model="m"}} {self.generated}\n'
            f'ollampi_prefix_cache_tokens_total{{model="m"}} {self.reused * len(self.bodies)}\n'
            f'ollampi_step_phase_seconds_total{{model="m",phase="compute",rank="0"}} {len(self.bodies)}\n'
            f'ollampi_step_phase_seconds_total{{model="m",phase="exchange",rank="1"}} {2 * len(self.bodies)}\n'
            f'ollampi_step_phase_seconds_total{{model="m",phase="plan",rank="0"}} {len(self.bodies)}\n'
            f'ollampi_step_phase_seconds_total{{model="m",phase="sample",rank="0"}} {len(self.bodies)}\n'
            f'ollampi_step_phase_seconds_total{{model="other",phase="plan",rank="0"}} 1000\n'
        )


def handler(answers: Answers) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, answers.metrics())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, lines = answers.answer(body)
            if answers.hangs_up and body["options"]["num_predict"] > 1:
                self.close_connection = True
                return
            self.reply(status, "".join(json.dumps(line) + "\n" for line in lines))

        def reply(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def running(answers: Answers) -> Iterator[Running]:
    def request(method: str, path: str, body: Any, timeout_s: float) -> tuple[int, str]:
        assert (method, path) == ("GET", "/metrics")
        return 200, answers.metrics()

    with ThreadingHTTPServer(("127.0.0.1", 0), handler(answers)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        process = SimpleNamespace(poll=lambda: None)
        job = SimpleNamespace(port=server.server_address[1], request=request, process=process)
        subject = SimpleNamespace(token_ids=list(range(100, 140)), stops=[])
        yield Running(cast(Any, job), cast(Subject, subject), "m", 20.0, groups=[[0, 1]])
        server.shutdown()
        thread.join()


def test_the_first_token_is_all_but_the_time_from_it_to_the_last() -> None:
    answered = Answered(sent=10.0, at=13.0, prompt=5, output=6, decode_s=2.5)
    assert answered.first_s == 0.5
    assert answered.token_s == 0.5  # five times from the first to the sixth


def test_prompts_have_exactly_so_many_tokens_and_none_begins_like_another(running: Running, answers: Answers) -> None:
    repeats = measure(running, Load(3, 20, 7), warmups=1, repeats=2)
    assert running.beside == BESIDE
    asked = answers.bodies[1:]  # the first one finds out what stands beside
    assert len(asked) == 3 * (1 + 2)
    assert {len(body["context"]) for body in asked} == {20 - BESIDE}
    assert len({tuple(body["context"][:16]) for body in asked}) == len(asked)
    assert {body["options"]["num_predict"] for body in asked} == {7}
    assert not any("logit_bias" in body["options"] for body in asked)
    assert [repeat.tokens for repeat in repeats] == [21, 21]
    for repeat in repeats:
        assert repeat.compute_s == [3.0, 0.0]  # three requests a round
        assert repeat.exchange_s == [0.0, 6.0]
        assert repeat.other_s == 6.0
        assert repeat.token_s == [pytest.approx(3e-6 / 6)] * 3
        assert max(repeat.first_s) < repeat.wall_s


def test_prompts_are_the_same_for_every_server(running: Running, answers: Answers) -> None:
    measure(running, Load(1, 20, 7), 0, 2)
    first, answers.bodies = answers.bodies, []
    measure(running, Load(1, 20, 7), 0, 2)
    assert answers.bodies == first


def test_stop_tokens_that_are_left_are_kept_away(running: Running, answers: Answers) -> None:
    running.subject.stops.extend([3, 5])
    measure(running, Load(1, 20, 7), 0, 1)
    assert answers.bodies[-1]["options"]["logit_bias"] == {"3": -1000.0, "5": -1000.0}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"prompt_off": -1}, "a prompt of 19 tokens and an answer of 7, not of 20 and 7"),
        ({"output_off": -2}, "a prompt of 20 tokens and an answer of 5, not of 20 and 7"),
        ({"reused": 16}, "32 tokens of prompts came from the prefix cache"),
        ({"refuses": True}, "a request was answered with status 400: no such luck"),
    ],
)
def test_a_round_that_is_not_as_asked_for_is_no_measurement(
    running: Running, answers: Answers, fault: dict[str, Any], message: str
) -> None:
    for name, value in fault.items():
        setattr(answers, name, value)
    with pytest.raises(SweepError, match=message):
        measure(running, Load(2, 20, 7), 0, 1)
    assert running.usable


def test_a_request_without_an_answer_makes_the_server_unusable(running: Running, answers: Answers) -> None:
    answers.hangs_up = True
    with pytest.raises(SweepError, match="a request was not answered"):
        measure(running, Load(2, 20, 7), 0, 1)
    assert not running.usable


def test_a_prompt_must_have_room_for_what_stands_beside(running: Running) -> None:
    with pytest.raises(SweepError, match="prompt=2 is too short: 3 tokens are the fewest"):
        measure(running, Load(1, 2, 7), 0, 1)
