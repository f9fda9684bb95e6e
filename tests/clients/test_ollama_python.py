"""The ollama package, as its users know it, takes this server for Ollama: its whole surface, on 2 ranks."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import ollama
import pytest
from support.servers import DEMO

SHORT = {"temperature": 0, "num_predict": 6}
ASK = [{"role": "user", "content": "Write the function close. Close the file."}]
FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
FULL = "registry.ollama.ai/library/demo:latest"


class Called:
    """One client for both kinds: an AsyncClient runs in a loop of its own, its streams become lists."""

    def __init__(self, client: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self._client = client
        self._loop = loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made = method(*args, **kwargs)
            if self._loop is not None:
                made = self._loop.run_until_complete(self._whole(made))
            return list(made) if kwargs.get("stream") else made

        return call

    async def _whole(self, made: Awaitable[Any]) -> Any:
        answer = await made
        return [part async for part in answer] if hasattr(answer, "__aiter__") else answer


@pytest.fixture(params=["Client", "AsyncClient"])
def client(request: pytest.FixtureRequest, url: str) -> Iterator[Called]:
    """Return a client of either kind."""
    if request.param == "Client":
        with ollama.Client(url) as made:
            yield Called(made, None)
        return
    with asyncio.Runner() as runner:
        made = ollama.AsyncClient(url)
        yield Called(made, runner.get_loop())
        runner.run(made.close())


def test_generate(client: Called) -> None:
    whole = client.generate("demo", "import os\n", raw=True, options=SHORT)
    assert whole.done
    assert whole.done_reason == "length"
    assert whole.eval_count == 6
    assert min(whole.total_duration, whole.prompt_eval_duration, whole.eval_duration, whole.prompt_eval_count) > 0
    parts = client.generate("demo", "import os\n", raw=True, options=SHORT, stream=True)
    assert "".join(part.response for part in parts) == whole.response
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert datetime.fromisoformat(parts[0].created_at).tzinfo == UTC


def test_generate_goes_on_from_its_context(client: Called) -> None:
    first = client.generate("demo", ASK[0]["content"], system="Be brief.", options=SHORT)
    again = client.generate("demo", "Write the function read.", context=first.context, options=SHORT)
    assert list(again.context[: len(first.context)]) == list(first.context)


def test_generate_by_ollamas_own_options(client: Called) -> None:
    options = ollama.Options(seed=7, temperature=1.0, num_predict=4, num_ctx=128, top_k=10, stop=["zzz"], numa=False)
    first, second = (client.generate("demo", "def ", raw=True, options=options, keep_alive="5m") for _ in range(2))
    assert first.response == second.response
    assert first.eval_count == 4


def test_generate_with_a_template_and_a_format(client: Called) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    options = {"temperature": 0, "num_predict": 60}
    answer = client.generate("demo", "x", template="{{ .Prompt }}", format=schema, options=options)
    assert isinstance(json.loads(answer.response)["a"], int)


def test_generate_logprobs(client: Called) -> None:
    answer = client.generate("demo", "import ", raw=True, options=SHORT, logprobs=True, top_logprobs=3)
    assert "".join(entry.token for entry in answer.logprobs) == answer.response
    for entry in answer.logprobs:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob <= 0
        assert max(top.logprob for top in entry.top_logprobs) == pytest.approx(entry.logprob)  # greedy


def test_load_and_unload(client: Called) -> None:
    assert client.generate("demo", keep_alive="10m").done_reason == "load"
    running = next(model for model in client.ps().models if model.model == "demo:latest")
    assert running.context_length == 512
    assert running.size > 0
    assert running.expires_at > datetime.now(UTC)
    assert client.generate("demo", keep_alive=0).done_reason == "unload"
    assert all(model.model != "demo:latest" for model in client.ps().models)


def test_chat(client: Called) -> None:
    whole = client.chat("demo", ASK, options=SHORT)
    assert whole.message.role == "assistant"
    assert whole.message.content
    parts = client.chat("demo", ASK, options=SHORT, stream=True)
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].done_reason == "length"
    assert parts[-1].eval_count == 6


def test_chat_with_messages_of_its_own_kinds(client: Called) -> None:
    turns = [ollama.Message(role="system", content="Be brief."), *ASK, client.chat("demo", ASK, options=SHORT).message]
    answer = client.chat("demo", [*turns, ASK[0]], options=SHORT, think=False, tools=[], format="", keep_alive=300)
    assert answer.done


def test_chat_in_json(client: Called) -> None:
    answer = client.chat("demo", ASK, format="json", options={"temperature": 0, "num_predict": 200, "top_k": 1})
    assert answer.done_reason == "length" or json.loads(answer.message.content) is not None


def test_a_function_as_a_tool_reaches_the_server(client: Called) -> None:
    def close(name: str) -> None:
        """Close a file.

        Args:
          name: its name
        """

    with pytest.raises(ollama.ResponseError, match=f"{FULL} does not support tools"):
        client.chat("demo", ASK, tools=[close], options=SHORT)


def test_embed(client: Called) -> None:
    answer = client.embed("demo", ["import os", "def close(self):"], truncate=True, options={"num_ctx": 64})
    assert [len(vector) for vector in answer.embeddings] == [256, 256]
    assert all(math.isclose(math.fsum(x * x for x in vector), 1, rel_tol=1e-5) for vector in answer.embeddings)
    one = client.embed("demo", "import os", dimensions=8).embeddings
    length = math.sqrt(math.fsum(x * x for x in answer.embeddings[0][:8]))
    assert list(one[0]) == pytest.approx([x / length for x in answer.embeddings[0][:8]], rel=1e-3, abs=1e-4)
    assert answer.prompt_eval_count > 0


def test_embeddings(client: Called) -> None:
    raw, unit = client.embeddings("demo", "import os").embedding, client.embed("demo", "import os").embeddings[0]
    length = math.sqrt(math.fsum(x * x for x in raw))
    assert [x / length for x in raw] == pytest.approx(list(unit), rel=1e-3, abs=1e-4)


def test_list(client: Called) -> None:
    model = next(model for model in client.list().models if model.model == "demo:latest")
    assert len(model.digest) == 64
    assert model.size > 0
    assert model.modified_at < datetime.now(UTC)
    assert (model.details.family, model.details.parameter_size) == ("llama", "5.6M")


def test_show(client: Called) -> None:
    shown = client.show("demo")
    assert shown.modelinfo["llama.context_length"] == 2048
    assert shown.capabilities == ["completion"]
    assert "FROM" in shown.modelfile
    assert shown.template
    assert shown.modified_at < datetime.now(UTC)


@pytest.mark.parametrize(
    ("call", "status", "text"),
    [
        (lambda c: c.show("nope"), 404, "model 'nope' not found"),
        (lambda c: c.generate("nope", "x"), 404, "model 'nope' not found"),
        (lambda c: c.generate("nope", "x", stream=True), 404, "model 'nope' not found"),
        (lambda c: c.chat("nope", ASK), 404, "model 'nope' not found"),
        (lambda c: c.embed("nope", "x"), 404, 'model "nope" not found, try pulling it first'),
        (lambda c: c.generate("demo", "x", suffix="y"), 400, f"{FULL} does not support insert"),
        (lambda c: c.generate("demo", "x", images=[b"x"]), 400, f"{FULL} does not support vision"),
        (lambda c: c.chat("demo", ASK, think=True), 400, '"demo" does not support thinking'),
        (lambda c: c.chat("demo", ASK, options={"seed": "x"}), 500, 'option "seed" must be of type integer'),
    ],
)  # fmt: skip
def test_errors(client: Called, call: Callable[[Called], Any], status: int, text: str) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        call(client)
    assert (caught.value.status_code, caught.value.error) == (status, text)


def test_a_stream_that_is_left_harms_nobody(url: str) -> None:
    with ollama.Client(url) as client:
        stream = client.generate("demo", "import os\n", raw=True, stream=True, options={"num_predict": 2000})
        assert next(stream).model == "demo"
        stream.close()
        assert client.generate("demo", "import os\n", raw=True, options=SHORT).eval_count == 6


def test_a_key_that_nobody_asked_for_is_ignored(url: str) -> None:
    with ollama.Client(url, headers={"Authorization": "Bearer anything"}) as client:
        assert client.list().models


def test_create_copy_delete(client: Called) -> None:
    parts = client.create("brief", from_="demo", system="Be brief.", parameters={"num_predict": 3}, stream=True)
    assert parts[-1].status == "success"
    shown = client.show("brief")
    assert "Be brief." in shown.modelfile
    assert client.generate("brief", "import os", options={"temperature": 0}).eval_count == 3
    assert client.copy("brief", "short").status == "success"
    names = {model.model for model in client.list().models}
    assert {"brief:latest", "short:latest"} <= names
    for name in ("brief", "short"):
        assert client.delete(name).status == "success"
        with pytest.raises(ollama.ResponseError) as caught:
            client.delete(name)
        assert (caught.value.status_code, caught.value.error) == (404, f"model '{name}' not found")


def test_create_from_blobs(client: Called) -> None:
    digests = {name: client.create_blob(DEMO / name) for name in FILES}
    for name, digest in digests.items():
        assert digest == "sha256:" + hashlib.sha256((DEMO / name).read_bytes()).hexdigest()
    assert client.create_blob(DEMO / FILES[0]) == digests[FILES[0]]  # it is there
    made = client.create("uploaded", files=digests, template="{{ .Prompt }}", license="MIT", messages=ASK)
    assert made.status == "success"
    shown = client.show("uploaded")
    assert (shown.template, shown.license) == ("{{ .Prompt }}", "MIT")
    assert client.generate("uploaded", "import os", options=SHORT).eval_count == 6
    client.delete("uploaded")


def test_pull_and_push(client: Called, loopback_registry: str) -> None:
    name = f"{loopback_registry}/library/pushed:latest"
    client.create(name, from_="demo", system="Be brief.")
    pushed = client.push(name, insecure=True, stream=True)
    assert pushed[-1].status == "success"
    client.delete(name)
    pulled = client.pull(name, insecure=True, stream=True)
    assert pulled[0].status == "pulling manifest"
    assert any(part.total for part in pulled)
    assert pulled[-1].status == "success"
    assert client.pull(name, insecure=True).status == "success"
    assert client.generate(name, "import os", options=SHORT).eval_count == 6
    client.delete(name)


@pytest.mark.parametrize(("call", "text"), [("pull", "pull model manifest: "), ("push", "not found")])
def test_a_pull_or_push_that_fails_says_why(client: Called, call: str, text: str) -> None:
    with pytest.raises(ollama.ResponseError, match=text):
        getattr(client, call)("127.0.0.1:1/library/nope", insecure=True)
