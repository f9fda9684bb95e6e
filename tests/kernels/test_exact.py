"""The exact kernels compute what the plain ones do, and no order, batch or cut changes a bit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support.arithmetic import threads

from ollampi.kernels import exact, exact_attention, ops
from ollampi.kernels.attention import Scoring
from ollampi.kernels.grid import reach

DRAW = torch.Generator().manual_seed(0)
SCORING = Scoring(16**-0.5)


def numbers(*shape: int, spread: int = 12) -> torch.Tensor:
    """Return numbers whose magnitudes span `spread` powers of two."""
    return torch.randn(shape, generator=DRAW) * torch.randint(-spread, 1, shape, generator=DRAW).float().exp2()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 33, 256, 1000])
def test_linear_is_right_and_has_no_order(dtype: torch.dtype, width: int) -> None:
    x, weight, bias = numbers(9, width), exact.weight_rows(numbers(40, width).to(dtype)).to(dtype), numbers(40)
    out = exact.linear(x, weight, bias)
    expected = F.linear(x.double(), weight.double(), bias.double())
    assert (out - expected).abs().max() <= 2e-5 * width**0.5
    order = torch.randperm(width, generator=DRAW)
    assert torch.equal(exact.linear(x[:, order], weight[:, order], bias), out)
    for row in range(9):
        assert torch.equal(exact.linear(x[row : row + 1], weight, bias)[0], out[row])
    assert torch.equal(exact.linear(x, weight[7:8], bias[7:8])[:, 0], out[:, 7])


def test_linear_has_no_tiles_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = numbers(5, 300), exact.weight_rows(numbers(64, 300)).float()
    out = exact.linear(x, weight)
    for tile, count in ((1, 1), (900, 2), (1 << 30, 3)):
        monkeypatch.setattr(exact, "_TILE", tile)
        with threads(count):
            assert torch.equal(exact.linear(x, weight), out)


@pytest.mark.parametrize("cuts", [[0, 50, 100], [0, 1, 2, 99, 100], [0, 0, 30, 100]])
def test_parts_of_the_input_add_up_to_the_whole(cuts: list[int]) -> None:
    x, weight = numbers(6, 100), exact.weight_rows(numbers(30, 100)).float()
    parts = [exact.linear_sums(x[:, a:b], reach(x), weight[:, a:b], 100) for a, b in pairwise(cuts)]
    total = torch.stack(parts[::-1]).sum(0)
    assert torch.equal(exact.rounded(total), exact.linear(x, weight))


def test_a_zero_has_no_sign() -> None:
    for x in (torch.zeros(1, 4), -torch.zeros(1, 4), torch.tensor([[1.0, -1.0, 0.0, 0.0]])):
        assert not exact.linear(x, torch.ones(3, 4)).signbit().any()


def test_the_norm_is_right_and_has_no_order() -> None:
    x, weight = numbers(7, 333), numbers(333)
    out = exact.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(out, ops.rms_norm(x, weight, 1e-5), rtol=1e-5, atol=1e-7)
    order = torch.randperm(333, generator=DRAW)
    assert torch.equal(exact.rms_norm(x[:, order], weight[order], 1e-5), out[:, order])
    assert torch.equal(exact.rms_norm(x[3:4], weight, 1e-5), out[3:4])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gates_are_right(activation: str) -> None:
    gate_up = numbers(5, 64) * 30
    wanted = ops.gate_multiply_torch(gate_up.double(), activation).float()
    torch.testing.assert_close(exact.gate_multiply(gate_up, activation), wanted, rtol=1e-6, atol=1e-13)


def attention_inputs(num_queries: int, num_keys: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    q, k, v = numbers(num_queries, 6, 16, spread=3), numbers(num_keys, 2, 16, spread=3), numbers(num_keys, 2, 16)
    k, v = exact_attention.on_cache_grids(k, v, 4096)
    return q, k.to(dtype), v.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [None, [0, 0, 0, 0, 1, 1]])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_is_right_and_a_query_is_alone(
    dtype: torch.dtype, heads: list[int] | None, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = Scoring(0.3, cap)
    q, k, v = attention_inputs(20, 50, dtype)
    kv_of_head = None if heads is None else torch.tensor(heads)
    mask = torch.ones(20, 50, dtype=torch.bool).tril(30)
    out = exact_attention.attend(q, k[None], v[None], mask, kv_of_head, scoring, 4096)
    of_head = torch.tensor(heads or [0, 0, 0, 1, 1, 1])
    keys, values = (x[:, of_head].double().transpose(0, 1) for x in (k, v))
    scores = 0.3 * q.double().transpose(0, 1) @ keys.transpose(1, 2)
    scores = scores if cap is None else cap * (scores / cap).tanh()
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values
    torch.testing.assert_close(out.double(), expected.transpose(0, 1), rtol=1e-5, atol=1e-6)
    for i in range(20):  # without the positions that it may not see
        seen = 31 + i
        alone = exact_attention.attend(q[i : i + 1], k[None, :seen], v[None, :seen], None, kv_of_head, scoring, 4096)
        assert torch.equal(alone[0], out[i])
    monkeypatch.setattr(exact_attention, "_TILE", 1)
    assert torch.equal(exact_attention.attend(q, k[None], v[None], mask, kv_of_head, scoring, 4096), out)


def test_attention_has_no_order_of_positions_and_no_batch() -> None:
    q, k, v = attention_inputs(2, 70, torch.float32)
    out = exact_attention.attend(q, torch.stack((k, k)), torch.stack((v, v)), None, None, SCORING, 4096)
    order = torch.randperm(70, generator=DRAW)
    turned = exact_attention.attend(q[:1], k[None, order], v[None, order], None, None, SCORING, 4096)
    assert torch.equal(turned[0], out[0])
    padded_k, padded_v = (torch.cat((x, x[-1:].expand(30, -1, -1))) for x in (k, v))
    visible = (torch.arange(100) < 70)[None, None, None].expand(2, 1, 1, 100)
    stacked = (torch.stack((x, x)) for x in (padded_k, padded_v))
    assert torch.equal(exact_attention.attend(q, *stacked, visible, None, SCORING, 4096), out)


def test_many_small_weights_count_together() -> None:
    """One position holds most of the weight; 2^-21 of it each, the others together hold 1/9 of the whole."""
    count, longest, size = 2**18, 2**20, 2
    q = torch.zeros(1, 1, size)
    q[0, 0, 0] = 21 * 2**0.5 * torch.log(torch.tensor(2.0))
    k, v = torch.zeros(count, 1, size), torch.ones(count, 1, size)
    k[0, 0, 0], v[0] = 1.0, 0.0
    k, v = (x.float() for x in exact_attention.on_cache_grids(k, v, longest))
    out = exact_attention.attend(q, k[None], v[None], None, None, Scoring(size**-0.5), longest)
    tail = (count - 1) * 2.0**-21
    torch.testing.assert_close(out, torch.full((1, 1, size), tail / (1 + tail)), rtol=1e-4, atol=0)
