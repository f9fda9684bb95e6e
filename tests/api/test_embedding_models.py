"""What a model's folder says of its embeddings: how long inputs are, what is pooled, that it makes nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
from tokenizers.processors import TemplateProcessing

from ollampi.api.model import read_model
from ollampi.api.names import Name
from ollampi.api.pooling import longest_input
from ollampi.api.text_encoder import TextEncoder
from ollampi.api.text_tokenizer import TextTokenizer
from ollampi.mpiruntime.tokenizer_folder import tokenizer_of

HOSTILE = [-1, -(2**31), 0, 2**31, 2**63, 10**400, 1.5, 1e308, "1", True, None, [], {}]


def embed(client, **body):
    return client.post("/api/embed", json={"model": "demo", "input": "Hello"} | body)


def embeddings(client, **body):
    return client.post("/api/embeddings", json={"model": "demo", "prompt": "Hello"} | body)


@pytest.mark.parametrize(("before", "after"), [("<|im_start|> ", ""), ("", " <|end|>"), ("<|im_start|> ", " <|end|>")])
def test_an_input_gets_what_the_tokenizer_adds_even_where_it_is_cut(tokenizer, tmp_path, before, after):
    special = [(text, tokenizer.token_to_id(text)) for text in ("<|im_start|>", "<|end|>")]
    own = type(tokenizer).from_str(tokenizer.to_str())
    own.post_processor = TemplateProcessing(single=f"{before}$A{after}", special_tokens=special)
    own.save(str(tmp_path / "tokenizer.json"))
    framed = TextTokenizer(TextEncoder(lambda: tokenizer_of(tmp_path), "tokenizer.json"), "", 64).framed
    whole = own.encode("Hello, world").ids
    assert framed("Hello, world", 64) == framed("Hello, world", len(whole)) == (whole, len(whole))
    first, last = ([special[0][1]] if before else []), ([special[1][1]] if after else [])
    ids, count = framed("Hello, world", len(whole) - 1)
    assert count == len(whole)
    assert ids == [*first, *tokenizer.encode("Hello, world").ids[:-1], *last]
    assert framed("", 64) == ([*first, *last], len(first) + len(last))


@pytest.mark.parametrize("length", [5, 64, 1000])
def test_a_model_folder_may_bound_its_inputs(make_client, make_model, engine, tmp_path, length):
    client = make_client(tmp_path)
    file = make_model(tmp_path / "demo") / "sentence_bert_config.json"
    file.write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}))
    text = "Hello, world. " * 50
    ids = engine.tokenizer.encode(text).ids
    for options, limit in (({}, min(length, 64)), ({"num_ctx": 16}, min(length, 16))):
        engine.embeds([1.0], [2.0])
        assert embed(client, input=["x", text], options=options).status_code == 200
        assert engine.embed_requests[-1].prompts[1].tolist() == ids[:limit]
        expected = "the input length exceeds the context length"
        if length == 5:
            expected += (
                f": input {{}} has {len(ids)} tokens and the model takes 5 (max_seq_length in its"
                " sentence_bert_config.json); shorten it, or let /api/embed cut it with truncate"
            )
        response = embed(client, input=["x", text], options=options, truncate=False)
        assert (response.status_code, response.json) == (400, {"error": expected.format(1)})
        response = embeddings(client, prompt=text, options=options)
        assert (response.status_code, response.json) == (500, {"error": expected.format(0)})
        engine.embeds([1.0])
        assert embed(client, input=engine.tokenizer.decode(ids[:5]), truncate=False).status_code == 200


@pytest.mark.parametrize("value", HOSTILE)
def test_bounds_of_a_folder_that_are_no_positive_numbers_do_not_count(value):
    positive = type(value) is int and value > 0
    assert longest_input({"max_seq_length": value}) == (value if positive else None)
    assert longest_input({}) is None


def pooled_model(make_model, folder, **modes):
    make_model(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **modes}))
    return folder


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "first"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "mean_tokens+max_tokens"),
        ({"pooling_mode_mean_tokens": 1}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_the_model_says_how_to_pool(make_client, make_model, engine, tmp_path, modes, pooling):
    pooled_model(make_model, tmp_path / "m", **modes)
    client = make_client(tmp_path)
    engine.embeds([1.0])
    response = embed(client, model="m")
    if pooling in ("first", "last", "mean"):
        assert response.status_code == 200
        assert engine.embed_requests[0].pooling == pooling
    else:
        assert response.status_code == 500
        assert f'makes embeddings by "{pooling}", which is not supported' in response.json["error"]
        assert not engine.embed_requests


def test_a_model_with_further_steps_is_refused(make_client, make_model, engine, tmp_path):
    folder = pooled_model(make_model, tmp_path / "m", pooling_mode_mean_tokens=True)
    (folder / "2_Normalize").mkdir()
    engine.embeds([1.0])
    assert embed(make_client(tmp_path), model="m").status_code == 200
    (folder / "2_Normalize").rename(folder / "3_Normalize")
    (folder / "2_Dense").mkdir()
    (folder / "1_Pooling" / "config.json").touch()
    assert "mean_tokens+2_Dense" in embed(make_client(tmp_path), model="m").json["error"]


def test_an_embedding_model_neither_completes_nor_chats(make_client, make_model, engine, tmp_path):
    pooled_model(make_model, tmp_path / "m", pooling_mode_lasttoken=True)
    client = make_client(tmp_path)
    assert client.post("/api/show", json={"model": "m"}).json["capabilities"] == ["embedding"]
    assert client.get("/api/tags").json["models"][0]["capabilities"] == ["embedding"]
    for route, body in (("generate", {"prompt": "x"}), ("chat", {"messages": [{"role": "user", "content": "x"}]})):
        response = client.post(f"/api/{route}", json={"model": "m", **body})
        assert (response.status_code, response.json) == (400, {"error": f'"m" does not support {route}'})
    assert not engine.requests


@pytest.mark.parametrize(
    ("architecture", "capability"),
    [
        ("LlamaModel", "embedding"),
        ("LlamaForCausalLM", "completion"),
        ("GPT2LMHeadModel", "completion"),
        (5, "completion"),
    ],
)
def test_a_checkpoint_without_a_head_is_an_embedding_model(make_client, make_model, tmp_path, architecture, capability):
    config = make_model(tmp_path / "m") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": [architecture]}))
    assert make_client(tmp_path).get("/api/tags").json["models"][0]["capabilities"] == [capability]


def test_the_pooling_is_a_part_of_the_model(make_client, make_model, tmp_path):
    folder = pooled_model(make_model, tmp_path / "m", pooling_mode_lasttoken=True)
    name = Name("registry.ollama.ai", "library", "m", "latest")
    before = read_model(name, folder)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    after = read_model(name, folder)
    assert (before.pooling, after.pooling) == ("last", "mean")
    assert before.digest != after.digest
    client = make_client(tmp_path)
    (folder / "1_Pooling" / "config.json").write_text("[")
    assert client.get("/api/tags").json["models"] == []
    shutil.rmtree(folder / "1_Pooling")
    assert client.get("/api/tags").json["models"][0]["capabilities"] == ["completion"]
