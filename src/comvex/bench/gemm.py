"""The most that the machine does at all: its fastest square product of float32 matrices."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

SIDES = (2048, 3072, 4096)


def gemm_peak(*, device: torch.device, sides: Sequence[int] = SIDES, repeats: int = 3) -> float:
    """The best rate of a square float32 product of one of these sides, in FLOP/s, with PyTorch's current threads."""
    rates = []
    for side in sides:
        left, right = torch.rand(2, side, side, device=device)
        result = left @ right
        for _ in range(repeats):
            wait(device)
            start = time.perf_counter()
            torch.mm(left, right, out=result)
            wait(device)
            rates.append(2 * side**3 / (time.perf_counter() - start))
    return max(rates)


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
