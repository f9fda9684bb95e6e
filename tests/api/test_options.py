"""Try every option with every odd value: an answer comes and no value reaches the engine unchecked."""

from __future__ import annotations

import json
import math

import pytest

from ollampi.api.errors import ApiError
from ollampi.api.options import parse_options

INTEGERS = ["num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_keep", "seed"]
INTEGERS += ["num_predict", "top_k", "repeat_last_n"]
FLOATS = ["top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty"]
FLOATS += ["timeout"]
OLD = ["numa", "low_vram", "mirostat", "mirostat_tau", "mirostat_eta", "tfs_z", "penalize_newline", "use_mlock"]
VALUES = ["-1", "-2147483648", "0", "2147483648", "9223372036854775808", "1.5", "NaN", "Infinity", "-Infinity", "1e308"]
VALUES += ["1e999", '"1"', "true", "null", "[]", "{}", "1" + "0" * 400, "1" + "0" * 5000]


@pytest.mark.parametrize("name", [*INTEGERS, *FLOATS, *OLD, "stop", "use_mmap", "logit_bias"])
def test_grid(client, engine, name):
    for value in VALUES:
        body = f'{{"model":"demo","prompt":"hi","stream":false,"options":{{"{name}":{value}}}}}'
        response = client.post("/api/generate", data=body)
        assert response.status_code in (200, 400) or response.json["error"].startswith(f'option "{name}" must be of')
        assert len(response.text) < 2000
    for request in engine.requests:
        json.dumps(request.to_wire(), allow_nan=False)
        numbers = [v for v in request.to_wire()["sampling"].values() if isinstance(v, int | float)]
        assert all(math.isfinite(v) and abs(v) < 2**63 for v in numbers)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": -0.1}, 'option "temperature" is -0.1, but it must be between 0.0 and 1000.0'),
        ({"temperature": 1e9}, 'option "temperature" is 1e+09, but it must be between 0.0 and 1000.0'),
        ({"top_p": 1.5}, 'option "top_p" is 1.5, but it must be between 0.0 and 1.0'),
        ({"repeat_penalty": 0}, 'option "repeat_penalty" is 0, but it must be between 1e-06 and 1000.0'),
        ({"seed": 2**63}, 'option "seed" is 9223372036854775808, but it must be between'),
        ({"repeat_last_n": -2}, 'option "repeat_last_n" is -2, but it must be between -1 and 2147483647'),
        ({"timeout": 0}, 'option "timeout" is 0, but it must be between 0.001 and 1000000000.0'),
        ({"logit_bias": {"1": 1e9}}, 'option "logit_bias" must hold numbers between -1000.0 and 1000.0'),
        ({"logit_bias": dict.fromkeys(map(str, range(2000)), 1)}, 'option "logit_bias" names 2000 tokens'),
        ({"stop": ["x"] * 100}, 'option "stop" takes at most 64 strings'),
    ],
)
def test_ranges(options, text):
    with pytest.raises(ApiError) as caught:
        parse_options(options)
    assert caught.value.status == 400
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("bias", [{"-1": 1}, {"x": 1}, {"1.5": 1}, {"": 1}, {"²": 1}, {"1": "1"}, {"1": True}, [1], 5])
def test_a_bias_is_an_object_of_tokens(bias):
    with pytest.raises(ApiError) as caught:
        parse_options({"logit_bias": bias})
    assert caught.value.status == 500
    assert str(caught.value).startswith('option "logit_bias" must be of type object')


def test_meanings():
    assert parse_options({"logit_bias": {"7": -3, "12": 0.5}}).sampling.logit_bias == [(7, -3.0), (12, 0.5)]
    assert parse_options({"draft_num_predict": -1}).max_drafts is None
    assert parse_options({"draft_num_predict": 0}).max_drafts == 0
    assert parse_options({"timeout": 2}).timeout_s == 2.0
    assert parse_options({}).sampling.seed is None
    assert parse_options({"seed": -1}).sampling.seed is None
    assert parse_options({"seed": -2}).sampling.seed == 2**63 - 2
    assert parse_options({"seed": 1.9}).sampling.seed == 1
    assert parse_options({"num_predict": 0}).max_tokens is None
    assert parse_options({"num_predict": -2}).max_tokens is None
    assert parse_options({"num_predict": 3.7}).max_tokens == 3
    assert parse_options({"num_ctx": 0}).context == 4
    assert parse_options({"top_k": -5}).sampling.top_k == -5
    assert parse_options({"stop": ["", "a"]}).stop == ["a"]
    for temperature in (1e-308, 5e-324):
        assert parse_options({"temperature": temperature}).sampling.temperature == temperature
    assert parse_options({"mirostat": 1, "tfs_z": None}).ignored == ["mirostat"]
