"""What the processes of a distributed run tell each other; a process alone has nobody to tell."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def place_and_number() -> tuple[int, int]:
    """This process's rank in the default group of ``torch.distributed``, and how many there are; (0, 1) without one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_processes(values: Tensor, device: torch.device) -> Tensor:
    """The elementwise sum of everyone's values, on the CPU; ``device`` is what the group can exchange."""
    if not dist.is_initialized():
        return values
    total = values.to(device, copy=True)
    dist.all_reduce(total)
    return total.cpu()


def join_over_processes(values: Sequence[T]) -> list[T]:
    """Everyone's values in the order of the ranks; the processes may have different numbers of them."""
    if not dist.is_initialized():
        return list(values)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, list(values))
    return [value for own in everyone for value in own]
