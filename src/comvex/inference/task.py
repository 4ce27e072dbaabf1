"""What a model is asked: which one of the classes a picture shows, or of each class whether the picture shows it.

Loss, probabilities, figures of merit and their picture differ between the two; all of that is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from comvex.errors import UserError
from comvex.inference.average_precision import draw_average_precision
from comvex.inference.confusion import draw_confusion
from comvex.inference.metrics import average_precision, num_correct, wilson_interval


class Scores(Protocol):
    """How good a model was on pictures, in percent."""

    def figures(self) -> dict[str, float]:
        """The figures in short: what goes into metrics.csv (as val_NAME) and to the weights (as test_NAME)."""
        ...

    def summary(self) -> dict[str, Any]:
        """The figures of all classes together, as plain values."""
        ...

    def by_class(self, labels: Sequence[str]) -> dict[str, Any]:
        """The figures of single classes, as plain values."""
        ...

    def draw(self, labels: Sequence[str], file: Path, *, pictures: str) -> None:
        """A picture of the figures; ``pictures`` says in its title what they are of."""
        ...


class Tally(Protocol):
    """Takes in batches and gives their scores."""

    def add(self, logits: Tensor, labels: Tensor) -> None: ...

    def scores(self) -> Scores: ...


class Task(ABC):
    """Everything that depends on whether a picture has one class or any number of them."""

    multi_label: bool
    criterion: str
    """The column of metrics.csv, in percent, that chooses the best weights with the loss; higher is better."""
    criterion_name: str
    criterion_short: str
    loss_name: str
    picture: str
    """What the picture of an evaluation shows, as the name of its file."""

    @abstractmethod
    def loss(
        self, logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, class_weights: Tensor | None = None
    ) -> Tensor:
        """Mean loss of a batch, in nats; ``smoothing`` in [0, 1) moves the targets towards knowing nothing.

        ``labels`` may also be (B, num_classes) of shares in [0, 1], as Mixup makes them. ``class_weights`` (num_classes,)
        multiplies what each class contributes.
        """

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability of every class (B, num_classes), from the logits."""

    @abstractmethod
    def tally(self, num_classes: int) -> Tally:
        """An empty tally."""


# One class a picture


@dataclass(frozen=True)
class Accuracy:
    """How many pictures have the most probable class, or one of the five most probable, as theirs; in percent."""

    top1: float
    top1_interval: tuple[float, float]
    """95 % confidence interval of top1 (Wilson)."""
    top5: float
    confusion: NDArray[np.int64]
    """(num_classes, num_classes): pictures by true class (row) and predicted class (column)."""

    def figures(self) -> dict[str, float]:
        return {"top1": self.top1, "top5": self.top5}

    def summary(self) -> dict[str, Any]:
        return {"top1": self.top1, "top1_interval": list(self.top1_interval), "top5": self.top5}

    def by_class(self, labels: Sequence[str]) -> dict[str, Any]:
        return {}

    def draw(self, labels: Sequence[str], file: Path, *, pictures: str) -> None:
        draw_confusion(self.confusion, labels, file, title=f"{pictures}: top-1 {self.top1:.2f} %")


class AccuracyTally:
    def __init__(self, num_classes: int) -> None:
        self.confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        self.correct = {1: 0, 5: 0}

    def add(self, logits: Tensor, labels: Tensor) -> None:
        for k in self.correct:
            self.correct[k] += num_correct(logits, labels, k=k)
        np.add.at(self.confusion, (labels.numpy(), logits.argmax(dim=1).numpy()), 1)

    def scores(self) -> Accuracy:
        total = int(self.confusion.sum())
        return Accuracy(
            top1=100 * self.correct[1] / total,
            top1_interval=wilson_interval(self.correct[1], total),
            top5=100 * self.correct[5] / total,
            confusion=self.confusion,
        )


class SingleLabel(Task):
    """A picture has one class: softmax, cross-entropy, top-1 accuracy. Labels are (B,), class numbers."""

    multi_label = False
    criterion = "val_top1"
    criterion_name = "top-1 accuracy"
    criterion_short = "top-1"
    loss_name = "Cross-entropy"
    picture = "confusion"

    def loss(
        self, logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, class_weights: Tensor | None = None
    ) -> Tensor:
        if class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        # PyTorch's weighted mean divides by the weights of the batch: a picture would count differently in each
        losses = F.cross_entropy(logits, labels, weight=class_weights, label_smoothing=smoothing, reduction="none")
        return losses.mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)

    def tally(self, num_classes: int) -> AccuracyTally:
        return AccuracyTally(num_classes)


# Any number of classes a picture


@dataclass(frozen=True)
class Precision:
    """How well the pictures of each class are told from all others, in percent."""

    mean_average_precision: float
    """Mean of the average precision over the classes that have a positive picture."""
    average_precision: NDArray[np.float64]
    """(num_classes,); NaN for a class without a positive picture."""
    num_positive: NDArray[np.int64]
    """(num_classes,): pictures that show the class."""
    num_pictures: int

    def figures(self) -> dict[str, float]:
        return {"map": self.mean_average_precision}

    def summary(self) -> dict[str, Any]:
        return {"mean_average_precision": self.mean_average_precision}

    def by_class(self, labels: Sequence[str]) -> dict[str, Any]:
        values = [None if np.isnan(value) else value for value in self.average_precision.tolist()]
        return {
            "average_precision": dict(zip(labels, values, strict=True)),
            "num_positive": dict(zip(labels, self.num_positive.tolist(), strict=True)),
        }

    def draw(self, labels: Sequence[str], file: Path, *, pictures: str) -> None:
        draw_average_precision(
            self.average_precision,
            100 * self.num_positive / self.num_pictures,
            labels,
            file,
            title=f"{pictures}: mean average precision {self.mean_average_precision:.2f} %",
        )


class PrecisionTally:
    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        self.logits.append(logits)
        self.labels.append(labels)

    def scores(self) -> Precision:
        """Raises ``ValueError`` if no picture has a label, or a logit is no finite number."""
        logits, labels = torch.cat(self.logits).numpy(), torch.cat(self.labels).numpy()
        if not labels.any():
            raise UserError(f"None of the {len(labels)} pictures has a label: nothing can be measured on them.")
        if not np.isfinite(logits).all():
            raise UserError(
                "The model's outputs are no longer finite: in training a smaller --learning-rate or --clip-norm helps."
            )
        by_class = average_precision(logits, labels)
        return Precision(
            mean_average_precision=float(np.nanmean(by_class)),
            average_precision=by_class,
            num_positive=labels.sum(axis=0),
            num_pictures=len(labels),
        )


class MultiLabel(Task):
    """A picture has none, one or several of the classes: sigmoid, binary cross-entropy, mean average precision.

    Labels are (B, num_classes) of 0 and 1. The loss is the mean over pictures and classes. Smoothing by s turns the
    targets 0 and 1 into s / 2 and 1 - s / 2. Class weights multiply the loss of the pictures that show the class.
    """

    multi_label = True
    criterion = "val_map"
    criterion_name = "mean average precision"
    criterion_short = "mAP"
    loss_name = "Binary cross-entropy"
    picture = "average_precision"

    def loss(
        self, logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, class_weights: Tensor | None = None
    ) -> Tensor:
        targets = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def tally(self, num_classes: int) -> PrecisionTally:
        return PrecisionTally()


def choose_task(*, multi_label: bool) -> Task:
    return MultiLabel() if multi_label else SingleLabel()
