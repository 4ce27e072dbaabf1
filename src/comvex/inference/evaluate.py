"""How good a model is on labelled pictures: each counted exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader

from comvex.data.loading import Sample
from comvex.errors import UserError
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
    loader: DataLoader[Sample],
    *,
    task: Task,
    num_classes: int,
    device: torch.device,
    advance: Callable[[int], object] = lambda pictures: None,
) -> Evaluation:
    """Evaluate a model on all the batches of a loader; the model's mode is put back afterwards.

    ``advance`` is called with the number of pictures after each batch. Raises ``ValueError`` if none could be read.
    """
    tally, num_pictures = task.tally(num_classes), 0
    loss, unreadable = 0.0, []
    start, was_training = time.perf_counter(), model.training
    model.eval()
    for batch in loader:
        unreadable += batch.unreadable
        if len(batch.labels):
            logits = model(batch.pictures.to(device)).float().cpu()
            loss += float(task.loss(logits.double(), batch.labels)) * len(batch.labels)
            tally.add(logits, batch.labels)
            num_pictures += len(batch.labels)
        advance(len(batch.labels) + len(batch.unreadable))
    model.train(was_training)
    if num_pictures == 0:
        raise UserError(
            f"None of the pictures could be read; the first: {unreadable[0] if unreadable else 'there is none'}"
        )
    return Evaluation(
        scores=tally.scores(),
        loss=loss / num_pictures,
        num_pictures=num_pictures,
        unreadable=unreadable,
        seconds=time.perf_counter() - start,
    )
