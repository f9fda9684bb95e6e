"""Hold an API to its OpenAPI document: valid and invalid cases of schemathesis, and what their answers must be."""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from typing import Any

import jsonschema_rs
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    status_code_conformance,
    unsupported_method,
)

from ollampi.api.engine_client import Done, Embedding, EngineError, Loading, Placed, Tokens
from ollampi.mpiruntime.cluster import Cluster, Wish
from ollampi.mpiruntime.request import (
    EmbedRequest,
    GenerateRequest,
    LoadedModel,
    ModelRef,
    Readiness,
    Sample,
    TokenLogprob,
    Usage,
)
from support.clusters import a_cluster, a_placement

NOWHERE = "127.0.0.1:1/library/nothing:latest"
CHECKS = [status_code_conformance, content_type_conformance, response_headers_conformance, unsupported_method]
MODES = list(schemathesis.GenerationMode)
USAGE = Usage(prompt_tokens=1, generated_tokens=2, load_ns=1, prompt_ns=1, decode_ns=1)
# What Ollama's own contract answers with status 500; any other text is a fault of ours.
NAMED_500 = re.compile(
    r'option "\w+" must be of (type \w+|an array of strings)|invalid format: |template|the input length exceeds'
)


class EventList:
    """A stream whose events are there already."""

    def __init__(self, events: list[Any]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[Any]:
        return iter(self._events)

    def cancel(self, reason: str = "cancel") -> None:
        """Do nothing."""

    def divert(self, push: Callable[[Any], bool], catch_up: Callable[[], None]) -> None:
        """Do nothing: nobody waits."""

    def close(self) -> None:
        """Do nothing."""


class EchoEngine:
    """An engine that answers every prompt with the beginning of it, and every input with the same vector."""

    def __init__(self) -> None:
        self.models: dict[str, ModelRef] = {}

    def generate(self, request: GenerateRequest) -> EventList:
        """Answer up to three tokens of the prompt."""
        self.models[request.model.name] = request.model
        tops = [(0, -1.0)] * request.sampling.top_logprobs
        logprobs = [TokenLogprob(request.prompt[0], -0.5, tops)] * request.sampling.logprobs
        if request.grammar is not None and request.grammar.kind != "schema":
            raise EngineError("request", "no such grammar")
        return EventList([*(Tokens([token], logprobs) for token in request.prompt[:3]), Done("stop", USAGE)])

    def embed(self, request: EmbedRequest) -> EventList:
        """Answer a vector for each input."""
        vectors = [Embedding(place, array("f", [3.0, 4.0])) for place in range(len(request.prompts))]
        return EventList([*vectors, Done("stop", USAGE)])

    def load(self, model: ModelRef, *_: Any, **__: Any) -> EventList:
        """Load at once."""
        self.models[model.name] = model
        return EventList([Done("load", USAGE)])

    def unload(self, model: ModelRef) -> None:
        """Unload at once."""
        self.models.pop(model.name, None)

    def log_from(self, level: str) -> None:
        """Log as before."""

    def unload_idle(self, model: ModelRef) -> None:
        """Unload at once, as `unload` does; raise EngineError where the model is not there."""
        if self.models.pop(model.name, None) is None:
            raise EngineError("absent", "it is not loaded")

    def place(self, model: ModelRef, wish: Wish) -> EventList:
        """Place at once."""
        self.models[model.name] = model
        return EventList([Loading(1, 2), Placed(a_placement(model.name))])

    def cluster(self) -> Cluster:
        """Return a job with all models that were asked for."""
        return a_cluster(models=[a_placement(name) for name in self.models])

    def leave(self, graceful: bool, timeout_s: float) -> int:
        """Leave with nothing unfinished."""
        return 0

    def loaded(self) -> list[LoadedModel]:
        """Return what was asked for last."""
        return [LoadedModel(model.name, model.path, 1, 0, 64, None) for model in self.models.values()]

    def readiness(self) -> Readiness:
        """Return that all is well."""
        return Readiness(True, [])

    def metrics(self) -> list[Sample]:
        """Return nothing."""
        return []


class Fuzz:
    """Cases for a server, and what was wrong with its answers.

    app: the server in this process, or base_url that of a real one. models: names that it has, for half of the bodies.
    """

    def __init__(self, document: Any, models: list[str], app: Any = None, base_url: str | None = None) -> None:
        self.document = document
        self.schema = schemathesis.openapi.from_dict(document)
        self.schema.app = app
        self.base_url = base_url
        self.cases: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.failures: dict[str, str] = {}
        self._models = models
        self._validators: dict[str, Any] = {}

    def run(self, examples: int, start: int | None = None) -> None:
        """Make the coverage cases of all operations and `examples` of each in each mode; None derandomizes."""
        for found in self.schema.get_all_operations():
            operation = found.ok()
            cases = self.schema.iter_coverage_cases(
                operation, generation_modes=MODES, generation_config=self.schema.config.generation
            )
            for case, model in zip(cases, cycle([None, *self._models])):
                self.check(aimed(case, model))
            for mode in MODES:
                self._draw(operation, mode, examples, start)

    def check(self, case: Any) -> None:
        """Send a case; note what is wrong with its answer."""
        self.cases[case.operation.label] += 1
        response = case.call(base_url=self.base_url)
        self.statuses[response.status_code] += 1
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._note(case, f"{failure.title}: {failure.message}", response)
        except Failure as failure:
            self._note(case, f"{failure.title}: {failure.message}", response)
        for text in self._problems(case, response):
            self._note(case, text, response)

    def _draw(self, operation: Any, mode: Any, examples: int, start: int | None) -> None:
        """Send cases that hypothesis draws."""

        @settings(
            max_examples=examples,
            derandomize=start is None,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            case=operation.as_strategy(generation_mode=mode), model=st.one_of(st.none(), st.sampled_from(self._models))
        )
        def one(case: Any, model: str | None) -> None:
            self.check(aimed(case, model))

        with suppress(Unsatisfiable):  # nothing can be wrong with a request without parameters and body
            (one if start is None else seed(start)(one))()

    def _problems(self, case: Any, response: Any) -> Iterator[str]:
        """Yield what is wrong with an answer beyond what schemathesis checks."""
        text = response.content.decode()
        if response.status_code == 500 and not NAMED_500.search(error_text(text)):
            yield "a status 500 that the contract does not name"
        if not response.headers.get("x-request-id"):
            yield "no request id"
        if case.method.lower() != case.operation.method.lower():
            return
        if response.status_code < 400 and self._forbidden(case):
            yield "a body that the document forbids was taken"
        kind = (response.headers.get("content-type") or [""])[0].partition(";")[0]
        media = self._content(case, response.status_code).get(kind)
        if media is not None and kind in ("application/json", "application/x-ndjson"):
            key = f"{case.operation.label} {response.status_code} {kind}"
            validator = self._validator(key, media.get("x-itemSchema") or media["schema"])
            for line in text.splitlines():  # as httpx does, at each of Unicode's line ends
                yield from (f"the answer: {error.message}" for error in validator.iter_errors(json.loads(line)))

    def _forbidden(self, case: Any) -> bool:
        """Return whether the document forbids the body of a case."""
        content = self._operation(case).get("requestBody", {}).get("content", {})
        if "application/json" not in content:
            return False
        validator = self._validator(case.operation.label, content["application/json"]["schema"])
        try:
            return not validator.is_valid(case.body)
        except (TypeError, ValueError):  # no body, or no JSON at all
            return True

    def _content(self, case: Any, status: int) -> dict[str, Any]:
        found: dict[str, Any] = self._operation(case)["responses"].get(str(status), {}).get("content", {})
        return found

    def _operation(self, case: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.document["paths"][case.operation.path][case.operation.method.lower()]
        return found

    def _validator(self, key: str, schema: dict[str, Any]) -> Any:
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = jsonschema_rs.Draft202012Validator(whole)
        return self._validators[key]

    def _note(self, case: Any, text: str, response: Any) -> None:
        """Keep the first case of each failure."""
        key = f"{case.operation.label}: {text[:200]}"
        self.failures.setdefault(key, f"{case.as_curl_command()[:600]} -> {response.status_code} {response.text[:300]}")


def error_text(text: str) -> str:
    """Return what an error of any wire says."""
    error = json.loads(text).get("error", "")
    return str(error.get("message", "")) if isinstance(error, dict) else str(error)


def aimed(case: Any, model: str | None) -> Any:
    """Return a case that names a model which is there, and bounds its answer, where its body is as it should be.

    Nothing is ever pulled from or pushed to another host, and no server is ended.
    """
    if case.path.endswith("/cluster/leave") and isinstance(case.body, dict):
        case.body["node_id"] = "nobody"
        return case
    if case.path in ("/api/pull", "/api/push") and isinstance(case.body, dict):
        named = [key for key in ("model", "name") if case.body.get(key) and isinstance(case.body[key], str)]
        case.body.update(dict.fromkeys(named, NOWHERE))
        return case
    if model is not None and isinstance(case.body, dict) and isinstance(case.body.get("model", ""), str):
        case.body["model"] = model
        options = case.body.get("options")
        if options is None:
            case.body["options"] = {"num_predict": 3}
        elif isinstance(options, dict) and options.get("num_predict") is None:
            options["num_predict"] = 3
    return case
