"""Rows of the table of conformance about options: their defaults, what the engine gets of each, and wrong types."""

from __future__ import annotations

import pytest

DEFAULTS = {
    "top_k": 40, "top_p": 0.9, "min_p": 0.0, "typical_p": 1.0, "repeat_last_n": 64, "temperature": 0.8,
    "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip
OTHERS = {
    "top_k": 7, "top_p": 0.5, "min_p": 0.25, "typical_p": 0.5, "repeat_last_n": -1, "temperature": 0.0,
    "repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -0.5,
}  # fmt: skip


def asked(client, engine, **options):
    """Return what the engine is asked for."""
    body = {"model": "demo", "prompt": "x", "stream": False, "options": options}
    assert client.post("/api/generate", json=body).status_code == 200
    return engine.requests[-1]


@pytest.mark.parametrize("name", DEFAULTS)
def test_sampling(client, engine, name):
    assert getattr(asked(client, engine).sampling, name) == DEFAULTS[name]
    assert getattr(asked(client, engine, **{name: OTHERS[name]}).sampling, name) == OTHERS[name]


def test_seed(client, engine):
    assert asked(client, engine).sampling.seed is None
    assert asked(client, engine, seed=-1).sampling.seed is None
    assert asked(client, engine, seed=7).sampling.seed == 7


def test_num_predict(client, engine):
    assert asked(client, engine, num_predict=3).max_tokens == 3
    for limit in (-1, -2, 0):
        assert asked(client, engine, num_predict=limit).max_tokens == 10 * 64


def test_num_ctx(client, engine):
    assert asked(client, engine).context is None
    assert asked(client, engine, num_ctx=32).context == 32
    assert asked(client, engine, num_ctx=1).context == 4
    assert asked(client, engine, num_ctx=1000).context == 64, "no more than the model was made for"


def test_num_keep(client, engine):
    assert asked(client, engine).keep_tokens == 4
    assert asked(client, engine, num_keep=2).keep_tokens == 2


def test_draft_num_predict(client, engine):
    assert asked(client, engine).max_drafts is None, "the server's"
    assert asked(client, engine, draft_num_predict=2).max_drafts == 2


@pytest.mark.parametrize("name", ["num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap"])
def test_options_of_other_runners_are_checked_and_change_nothing(client, engine, name):
    plain = asked(client, engine)
    assert asked(client, engine, **{name: True if name == "use_mmap" else 1}) == plain
    body = {"model": "demo", "prompt": "x", "options": {name: "x"}}
    kind = "boolean" if name == "use_mmap" else "integer"
    response = client.post("/api/generate", json=body)
    assert (response.status_code, response.json) == (500, {"error": f'option "{name}" must be of type {kind}'})


def test_fractions_of_whole_numbers_are_cut_off(client, engine):
    assert asked(client, engine, top_k=3.9).sampling.top_k == 3


@pytest.mark.parametrize(
    "name",
    ["numa", "low_vram", "mirostat", "mirostat_tau", "mirostat_eta", "tfs_z", "penalize_newline", "use_mlock", "f16_kv",
     "vocab_only", "logits_all"],
)  # fmt: skip
def test_old_options_are_ignored_and_named(client, name):
    body = {"model": "demo", "prompt": "x", "stream": False, "options": {name: "x"}}
    assert name in client.post("/api/generate", json=body).headers["Warning"]
