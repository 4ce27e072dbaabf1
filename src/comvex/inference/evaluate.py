"""How good a model is on labelled pictures: each counted exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from comvex.convit.analysis import evaluating
from comvex.data.loading import Batch
from comvex.errors import UserError
from comvex.inference.processes import join_over_processes, sum_over_processes
from comvex.inference.task import Scores, Task


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation."""

    scores: Scores
    """Figures of merit: ``Accuracy`` for one class a picture, ``Precision`` for several."""
    loss: float
    """Mean loss of a picture, in nats."""
    num_pictures: int
    unreadable: list[str]
    """One message for each picture that could not be read; these are counted nowhere else."""
    seconds: float

    @property
    def pictures_per_second(self) -> float:
        return self.num_pictures / self.seconds


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    task: Task,
    num_classes: int,
    device: torch.device,
    advance: Callable[[int], object] = lambda pictures: None,
) -> Evaluation:
    """Evaluate a model on batches, such as those of an ``evaluation_loader``; its mode is put back afterwards.

    In a process group of ``torch.distributed`` every process gives its own part of the pictures, of any size
    (``evaluation_loader(..., rank=..., num_ranks=...)``), and gets the figures of all of them.

    ``advance`` is called with the number of pictures after each batch. Raises ``ValueError`` if none could be read.
    """
    tally, num_pictures = task.tally(num_classes), 0
    loss, unreadable, start = 0.0, [], time.perf_counter()
    with evaluating(model):
        for batch in batches:
            unreadable += batch.unreadable
            if len(batch.labels):
                logits = model(batch.pictures.to(device, non_blocking=True)).float().cpu()
                loss += float(task.loss(logits.double(), batch.labels)) * len(batch.labels)
                tally.add(logits, batch.labels)
                num_pictures += len(batch.labels)
            advance(len(batch.labels) + len(batch.unreadable))
    sums = sum_over_processes(torch.tensor([loss, num_pictures], dtype=torch.float64), device)
    unreadable, tally = join_over_processes(unreadable), tally.over_processes(device)
    if sums[1] == 0:
        raise UserError(
            f"None of the pictures could be read; the first: {unreadable[0] if unreadable else 'there is none'}"
        )
    return Evaluation(
        scores=tally.scores(),
        loss=float(sums[0] / sums[1]),
        num_pictures=int(sums[1]),
        unreadable=unreadable,
        seconds=time.perf_counter() - start,
    )
