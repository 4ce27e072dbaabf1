"""The processes that train one model together: PyTorch's own distributed engine, joined when torchrun started us."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from comvex.errors import UserError
from comvex.inference.processes import join_over_processes, place_and_number, sum_over_processes


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are; with one, everything here is a matter of course."""

    rank: int = 0
    num: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, the same everywhere."""
        return sum_over_processes(torch.tensor(values, dtype=torch.float64), torch.device("cpu")).tolist()

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, by rank, the same everywhere."""
        return join_over_processes([value])

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.num > 1:
            dist.barrier()


def told_rank() -> int:
    """The rank that torchrun gave this process; 0 for one that was started alone."""
    return int(os.environ["RANK"]) if is_torchruns() else 0


def told_num() -> int:
    """How many processes torchrun started together; 1 for one that was started alone."""
    return int(os.environ["WORLD_SIZE"]) if is_torchruns() else 1


def is_torchruns() -> bool:
    """Whether torchrun started this process; some schedulers set a part of the names by which it tells."""
    return os.environ.keys() >= {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """Within it the processes that torchrun started stand together; a process started alone is a group of one.

    Tensors on the CPU travel over gloo, those on CUDA over NCCL; each process of a machine takes the GPU of its local
    rank. Raises ``ValueError`` if there are fewer GPUs than processes, or for MPS, which is one device.
    """
    if not is_torchruns() or dist.is_initialized():
        # inside another program that has set up its own group, or alone
        yield Ranks(*place_and_number())
        return
    local, local_num = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"torchrun started {local_num} processes here, but there are {torch.cuda.device_count()} GPUs: "
                "--nproc-per-node must not be larger."
            )
        torch.cuda.set_device(local)
    elif device.type == "mps":
        raise UserError("device is 'mps', which one process alone can use: run without torchrun, or with --device cpu.")
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(*place_and_number())
    finally:
        dist.destroy_process_group()
