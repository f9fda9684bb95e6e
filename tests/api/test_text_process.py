"""Tokenizers live in processes of their own: what these answer, how they end, and that no other process holds any."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.files import fill
from support.fronts import SOURCE
from support.servers import alive, descendants, wait_until
from support.vocabularies import train_pieces
from tokenizers import Tokenizer

from ollampi.api.detokenizer import detokenizer
from ollampi.api.known_tokenizers import Tokenizers
from ollampi.api.text_encoder import TextEncoder
from ollampi.api.text_process import MAX_IDLE_CONNECTIONS, TextProcess
from ollampi.mpiruntime.errors import ModelError

GONE = "the process that reads the model's texts ended"


@pytest.fixture
def texts(store):
    """Return tokenizers, the model `demo`, and what tells the processes of models that there are."""
    process = TextProcess()
    process.start()
    forge = process._forge._process.pid
    return Tokenizers(process), store.find("demo"), lambda: [*filter(alive, descendants(forge))]


def test_no_tokenizer_is_made_in_this_process(make_model, make_client, engine, tmp_path, monkeypatch):
    folder = make_model(tmp_path / "pieces")
    (folder / "tokenizer.json").unlink()
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 400}
    pieces = train_pieces(model_type="bpe", vocab_size=400, byte_fallback=True)
    fill(folder, {"tokenizer.model": pieces, "config.json": config})
    make_model(tmp_path / "bytes", "{{ messages[0].content }}")

    def refuse(*_):
        raise AssertionError("a tokenizer is made in the HTTP process")

    for module in ("tokenizer_folder", "byte_level", "piece_tokenizer", "word_pieces"):
        monkeypatch.setattr(f"ollampi.mpiruntime.{module}.Tokenizer", refuse)
    monkeypatch.setattr("ollampi.api.text_encoder.TextEncoder.__init__", refuse)
    client = make_client(tmp_path)
    monkeypatch.setattr("ollampi.api.show.tokenizer_content", refuse)
    for model, kind in (("bytes", "gpt2"), ("pieces", "llama")):
        assert client.post("/api/show", json={"model": model}).json["model_info"]["tokenizer.ggml.model"] == kind
    for model in ("bytes", "pieces"):
        for prompt in ("hello", "a<|im_end|>b", "x" * 100_000):
            body = {"model": model, "prompt": prompt, "stream": False, "logprobs": True}
            response = client.post("/api/generate", json=body)
            assert response.status_code == 200, response.json
            assert response.json["response"]
    assert len(engine.requests) == 6


def test_each_model_has_a_process_and_none_is_left(texts, store):
    tokenizers, model, pids = texts
    kept = [tokenizers.get(model), tokenizers.get(model), tokenizers.get(store.find("chatty"))]
    assert kept[0] is kept[1]
    found = pids()
    assert len(found) == 2
    assert os.getpid() not in found
    tokenizers._known.clear()
    del kept
    gc.collect()
    wait_until(lambda: not pids(), 30, "the processes of models to end")


def test_the_least_recently_used_goes_when_nobody_uses_it(texts, store, monkeypatch):
    tokenizers, demo, pids = texts
    monkeypatch.setattr("ollampi.api.known_tokenizers.KEPT", 2)
    used = tokenizers.get(demo)
    for name in ("chatty", "demo", "thinker", "chatty"):
        tokenizers.get(store.find(name))
    again = tokenizers.get(demo)
    assert again is not used
    assert used.encode("Hello") == again.encode("Hello")
    assert tokenizers.get(demo) is again
    del used
    gc.collect()
    wait_until(lambda: len(pids()) == 2, 30, "the processes of models that are not used to end")


def test_the_processes_end_with_their_owner(models_folder):
    program = f"""
import os, signal
from pathlib import Path
from ollampi.api.known_tokenizers import Tokenizers
from ollampi.api.store.catalog import Store
tokenizers = Tokenizers()
tokenizers.get(Store([Path({str(models_folder)!r})]).find("demo")).encode("x")
print(tokenizers._process._forge._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as owner:
        forge = int(owner.stdout.readline())
        pids = [forge, *descendants(forge)]
        assert len(pids) == 2
        owner.kill()
    wait_until(lambda: not any(map(alive, pids)), 30, "the processes to end with their owner")


@pytest.mark.parametrize("whole", [False, True], ids=["the process of a model", "the one it is copied from"])
def test_a_process_that_was_killed_is_replaced(texts, tokenizer, whole):
    tokenizers, model, pids = texts
    first = tokenizers.get(model)
    ids = first.encode("Hello, wörld<|im_end|>!")
    [pid] = pids()
    os.kill(tokenizers._process._forge._process.pid if whole else pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), 30, "the process to end")
    with pytest.raises(ModelError, match=GONE):
        first.encode("x")
    answer = detokenizer(first, [])  # streams go on
    assert "".join([*map(answer.feed, ids), answer.flush()]) == first.decode(ids) == "Hello, wörld!"
    again = tokenizers.get(model)
    assert again is not first
    assert again.encode("Hello, wörld<|im_end|>!") == ids == tokenizer.encode("Hello, wörld<|im_end|>!").ids


def test_requests_under_way_get_an_error_of_the_api_where_it_dies(client):
    body = {"model": "demo", "prompt": "x", "stream": False}
    before = descendants(os.getpid())  # of other tests
    assert client.post("/api/generate", json=body).status_code == 200
    new = [pid for pid in descendants(os.getpid()) if pid not in before and "text_worker" in command(pid)]
    [pid] = [pid for pid in new if not descendants(pid)]
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    response = client.post("/api/generate", json=body)
    killer.join()
    assert response.status_code == 500
    assert GONE in response.json["error"]
    assert client.post("/api/generate", json=body).status_code == 200


def command(pid: int) -> str:
    """Return the command line of a process, empty where it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_many_threads_at_once_get_what_one_gets(texts, tokenizer):
    tokenizers, model, _ = texts
    text = tokenizers.get(model)
    wrong: list[str] = []

    def ask(seed: int) -> None:
        pick = random.Random(seed)
        for _ in range(50):
            said = "".join(pick.choices("ab <\n.äß€世界🙂", k=pick.choice([0, 3, 40, 2000 if seed == 0 else 40])))
            if text.encode(said) != tokenizer.encode(said).ids or text.token_id("<|im_end|>") != end:
                wrong.append(said)

    end = tokenizer.token_to_id("<|im_end|>")
    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(2 * MAX_IDLE_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert end is not None


def test_a_process_answers_as_its_tokenizer_does(texts, models_folder):
    tokenizers, model, _ = texts
    far = tokenizers.get(model)
    near = TextEncoder(lambda: Tokenizer.from_file(str(models_folder / "demo" / "tokenizer.json")), "tokenizer.json")
    pieces = [("a<|im_end|>", True), ("<|im_end|>", False), ("", True), ("\0 \u2028é", False)]
    assert far.encode_pieces(pieces) == near.encode(pieces, behind=False)
    assert far.encode_pieces([]) == []
    for text in ("<|im_end|>", "nothing", "", "a"):
        assert far.token_id(text) == near.token_id(text)
        assert far.becomes_special(text) == near.becomes_special(text)
    for half in ("\ud800", "a\udfff"):
        with pytest.raises(ModelError) as told:
            near.encode([(half, False)], behind=False)
        with pytest.raises(ModelError) as caught:
            far.encode(half)
        assert str(caught.value) == str(told.value)


def test_what_cannot_be_read_is_named(texts, tmp_path):
    tokenizers, _, pids = texts
    with pytest.raises(ModelError, match="the folder has no tokenizer"):
        tokenizers._process.encoder(tmp_path, "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"^the model's tokenizer\.json cannot be used; copy the file again$"):
        tokenizers._process.encoder(tmp_path, "tokenizer.json")
    with pytest.raises(ModelError, match=r"x\.gguf"):
        tokenizers._process.encoder(tmp_path / "x.gguf", "x.gguf")
    wait_until(lambda: not pids(), 30, "the processes to end")
