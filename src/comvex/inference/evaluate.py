"""How good a model is on labelled pictures: each counted exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from comvex.data.loading import Sample
from comvex.errors import UserError
from comvex.inference.metrics import num_correct, wilson_interval


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation; top1 and top5 in percent, loss the mean cross-entropy in nats."""

    top1: float
    top1_interval: tuple[float, float]
    """95 % confidence interval of top1 (Wilson), in percent."""
    top5: float
    loss: float
    num_pictures: int
    unreadable: list[str]
    """One message for each picture that could not be read; these are counted nowhere else."""
    seconds: float
    confusion: NDArray[np.int64]
    """(num_classes, num_classes): pictures by true class (row) and predicted class (column)."""

    @property
    def pictures_per_second(self) -> float:
        return self.num_pictures / self.seconds


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader[Sample],
    *,
    num_classes: int,
    device: torch.device,
    advance: Callable[[int], object] = lambda pictures: None,
) -> Evaluation:
    """Evaluate a model on all the batches of a loader; the model's mode is put back afterwards.

    ``advance`` is called with the number of pictures after each batch. Raises ``ValueError`` if none could be read.
    """
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    correct = {1: 0, 5: 0}
    loss, unreadable = 0.0, []
    start, was_training = time.perf_counter(), model.training
    model.eval()
    for batch in loader:
        unreadable += batch.unreadable
        if len(batch.labels):
            logits = model(batch.pictures.to(device)).float().cpu()
            loss += float(F.cross_entropy(logits.double(), batch.labels, reduction="sum"))
            for k in correct:
                correct[k] += num_correct(logits, batch.labels, k=k)
            np.add.at(confusion, (batch.labels.numpy(), logits.argmax(dim=1).numpy()), 1)
        advance(len(batch.labels) + len(batch.unreadable))
    model.train(was_training)
    total = int(confusion.sum())
    if total == 0:
        raise UserError(
            f"None of the pictures could be read; the first: {unreadable[0] if unreadable else 'there is none'}"
        )
    return Evaluation(
        top1=100 * correct[1] / total,
        top1_interval=wilson_interval(correct[1], total),
        top5=100 * correct[5] / total,
        loss=loss / total,
        num_pictures=total,
        unreadable=unreadable,
        seconds=time.perf_counter() - start,
        confusion=confusion,
    )
