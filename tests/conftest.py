"""Share the cores where two processes run the tests: OpenMP's threads of both would wait for each other."""

from __future__ import annotations

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
