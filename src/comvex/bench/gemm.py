"""The most that the machine does at all: its fastest square product of float32 matrices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SIDES = (2048, 3072, 4096)


def fastest_side(*, device: torch.device, sides: Sequence[int] = SIDES, repeats: int = 3) -> int:
    """The side whose square float32 product has the best rate, with PyTorch's current threads."""
    rates = {}
    for side in sides:
        product = square_product(side, device=device)
        product()
        times = []
        for _ in range(repeats):
            wait(device)
            start = time.perf_counter()
            product()
            wait(device)
            times.append(time.perf_counter() - start)
        rates[side] = flop_of_product(side) / min(times)
    return max(rates, key=lambda side: rates[side])


def square_product(side: int, *, device: torch.device) -> Callable[[], Tensor]:
    """The product of two random float32 matrices of a side, as a step that is timed."""
    left, right = torch.rand(2, side, side, device=device)
    result = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=result)


def flop_of_product(side: int) -> int:
    """A multiplication and an addition counting two."""
    return 2 * side**3


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
