"""Runs tile what they hold, and every buffer is some layer's at each time."""

from __future__ import annotations

import pytest
import torch

from ollampi.kernels import quantised
from ollampi.kernels.pages import PAGE
from ollampi.kernels.quantised import Quantised
from ollampi.mpiruntime.layout import Place, begins, run_bytes, schedule


@pytest.mark.parametrize("num_layers", [1, 2, 5, 32])
@pytest.mark.parametrize("prefetch_factor", [0, 1, 2, 64])
def test_layers_that_share_a_buffer_take_turns_in_order(num_layers: int, prefetch_factor: int) -> None:
    for num_streamed in range(num_layers + 1):
        planned = schedule(num_layers, num_streamed, prefetch_factor)
        assert len(planned.layers) == num_streamed
        assert planned.layers == sorted(set(planned.layers))
        assert set(planned.layers) <= set(range(num_layers))
        assert planned.num_buffers == min(prefetch_factor + 1, num_streamed)
        holds = list(range(planned.num_buffers))
        for _ in range(3):
            for place in range(num_streamed):
                assert holds[place % planned.num_buffers] == place
                assert planned.stays(place) == (planned.next(place) == place)
                holds[place % planned.num_buffers] = planned.next(place)


def test_streamed_layers_are_spread_evenly() -> None:
    assert schedule(8, 2, 2).layers == [3, 7]
    assert schedule(8, 4, 2).layers == [1, 3, 5, 7]
    assert schedule(3, 3, 2).layers == [0, 1, 2]


def test_the_bytes_of_a_schedule() -> None:
    runs = [3, 1, 1, 1]
    assert schedule(4, 0, 2).held_bytes(runs) == 6
    assert schedule(4, 0, 2).step_bytes(runs) == 0
    assert schedule(4, 2, 0).held_bytes(runs) == 3 + 1 + 1  # layers 0, 2 and one buffer
    assert schedule(4, 2, 0).step_bytes(runs) == 2
    assert schedule(4, 4, 1).held_bytes(runs) == 2 * 3
    assert schedule(4, 4, 1).step_bytes(runs) == 6
    assert schedule(4, 4, 2).step_bytes(runs) == 4  # layers 1 and 2 have buffers of their own
    assert schedule(4, 4, 64).step_bytes(runs) == 0


@pytest.mark.parametrize("bits", [4, 8, None])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("shape", [(1, 32), (20, 96), (16, 64), (0, 64), (48, 40)])
def test_matrices_lie_behind_each_other(bits: int | None, exact: bool, shape: tuple[int, int]) -> None:
    place = Place("m", *shape, bits, exact, torch.bfloat16)
    run = [place] * 3
    buffer = torch.zeros(run_bytes(run), dtype=torch.uint8)
    assert len(buffer) % PAGE == 0
    for number, begin in enumerate(begins(run)[:-1]):
        matrix = place.within(buffer[begin:])
        assert matrix.shape == shape
        assert matrix.nbytes == place.size_bytes
        for part in [matrix.weights, matrix.scales] if isinstance(matrix, Quantised) else [matrix]:
            part.view(torch.uint8).fill_(number + 1)
    assert [int((buffer == number + 1).sum()) for number in range(3)] == [place.size_bytes] * 3
    if bits:
        like = quantised.empty(*shape, bits, torch.bfloat16, torch.float16 if exact else torch.bfloat16)
        matrix = place.within(buffer)
        assert isinstance(matrix, Quantised)
        assert (matrix.weights.shape, matrix.scales.shape) == (like.weights.shape, like.scales.shape)
        assert (matrix.scales.dtype, matrix.dtype) == (like.scales.dtype, like.dtype)
