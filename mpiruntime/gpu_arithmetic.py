"""What layers compute on a GPU: kernels of our own for few tokens, torch's for many."""

from __future__ import annotations

import torch
from torch import Tensor

from ollampi.kernels import device_matmul
from ollampi.kernels.cuda_module import Kernels
from ollampi.kernels.linear import Matrix
from ollampi.kernels.ops import gate_multiply_torch, rms_norm_torch
from ollampi.mpiruntime.arithmetic import Plain
from ollampi.mpiruntime.communicator import Communicator

_GATES = {"silu": 1, "gelu_tanh": 2, "gelu": 3}  # as kernels/cuda/layer.cu numbers them
_KEPT = {torch.float32: 0, torch.bfloat16: 1}


class OnGpu(Plain):
    """The last bits depend on the shape of the batch and on the world. kernels: None for torch's operators alone."""

    attends_natively = False

    def __init__(self, kernels: Kernels | None) -> None:
        super().__init__()
        self.kernels = kernels

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None = None) -> Tensor:
        """Return x @ weight.T + bias as [T, out], in fp32 or in the dtype of the weight."""
        return device_matmul.linear(x, weight, bias, self.kernels)

    def linear_part(self, x: Tensor, weight: Matrix, width: int, comm: Communicator) -> Tensor:
        """Return this rank's product [T, out]; the others are not asked."""
        return device_matmul.linear(x, weight, None, self.kernels)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return the normalised x [T, D] in fp32."""
        if self.kernels is None or weight.dtype not in _KEPT:
            return rms_norm_torch(x, weight, eps)
        x = x.float().contiguous()
        out = torch.empty_like(x)
        kernel = self.kernels.get("layer.cu", "rms_norm", KEPT=_KEPT[weight.dtype])
        if len(x):
            kernel((len(x), 1, 1), 256, [x, weight, out, x.shape[1], eps])
        return out

    def gated(self, x: Tensor, weight: Matrix, bias: Tensor | None, activation: str = "silu") -> Tensor:
        """Return activation(gate) * up [T, F]."""
        both = self.linear(x, weight, bias)
        if self.kernels is None or both.dtype != torch.float32:
            return gate_multiply_torch(both, activation)
        out = torch.empty(len(both), both.shape[1] // 2, device=both.device)
        kernel = self.kernels.get("layer.cu", "gate", KEPT=0)
        if out.numel():
            kernel((-(-out.numel() // 256), 1, 1), 256, [both, out, *out.shape, _GATES[activation]])
        return out
