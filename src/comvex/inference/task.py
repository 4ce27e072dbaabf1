"""What a model is asked: which one of the classes a picture shows, or of each class whether the picture shows it.

Loss, probabilities, figures of merit and their picture differ between the two; all of that is here.
"""

from __future__ import annotations

import math
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
from comvex.inference.calibration import NUM_BINS, Calibration, bin_sums
from comvex.inference.confusion import draw_confusion
from comvex.inference.metrics import among_largest, average_precision, wilson_interval
from comvex.inference.processes import join_over_processes, sum_over_processes

NOT_FINITE = "The model's outputs are no longer finite: in training a smaller --learning-rate or --clip-norm helps."


class Scores(Protocol):
    """How good a model was on pictures, in percent."""

    @property
    def calibration(self) -> Calibration:
        """Whether its probabilities mean what they say."""
        ...

    def figures(self) -> dict[str, float]:
        """The figures in short: what goes into metrics.csv (as val_NAME) and to the weights (as test_NAME)."""
        ...

    def summary(self) -> dict[str, Any]:
        """The figures of all classes together, as plain values."""
        ...

    def by_class(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """A row of plain values for each of the first classes, named by ``labels``; None where one has no picture."""
        ...

    def draw(self, labels: Sequence[str], file: Path, *, pictures: str) -> None:
        """A picture of the figures of the first classes; ``pictures`` says in its title what they are of."""
        ...


class Tally(Protocol):
    """Takes in batches and gives their scores."""

    def add(self, logits: Tensor, labels: Tensor) -> None: ...

    def over_processes(self, device: torch.device) -> Tally:
        """The tally of what all processes have taken in, the same for each; without a process group one like this.

        ``device`` is one whose tensors the group can exchange.
        """
        ...

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

        ``labels`` may also be (B, num_classes) of shares in [0, 1], as Mixup makes them. ``class_weights``
        (num_classes,) multiplies what each class contributes.
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

    confusion: NDArray[np.int64]
    """(num_classes, num_classes): pictures by true class (row) and predicted class (column)."""
    in_top5: NDArray[np.int64]
    """(num_classes,): pictures of each class that have it among the five most probable."""
    calibration: Calibration
    """Of the most probable class's probability."""

    @property
    def num_pictures(self) -> int:
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        return 100 * int(self.confusion.trace()) / self.num_pictures

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % confidence interval of top1 (Wilson)."""
        return wilson_interval(int(self.confusion.trace()), self.num_pictures)

    @property
    def top5(self) -> float:
        return 100 * int(self.in_top5.sum()) / self.num_pictures

    @property
    def balanced_top1(self) -> float:
        """Mean of the classes' own top-1 accuracies: each class counts the same, however many pictures it has."""
        by_class = self.confusion.sum(axis=1)
        seen = by_class > 0
        return 100 * float((self.confusion.diagonal()[seen] / by_class[seen]).mean())

    def figures(self) -> dict[str, float]:
        return {"top1": self.top1, "top5": self.top5}

    def summary(self) -> dict[str, Any]:
        return {
            "num_classes": len(self.confusion),
            "top1": self.top1,
            "top1_interval": list(self.top1_interval),
            "top5": self.top5,
            "balanced_top1": self.balanced_top1,
            "calibration_error": self.calibration.error,
            "mean_confidence": self.calibration.mean_probability,
        }

    def by_class(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        rows = []
        for index, name in enumerate(labels):
            num = int(self.confusion[index].sum())
            correct = {"top1": int(self.confusion[index, index]), "top5": int(self.in_top5[index])}
            shares = {key: 100 * value / num if num else None for key, value in correct.items()}
            rows.append({"class": name, "num_pictures": num, **shares})
        return rows

    def draw(self, labels: Sequence[str], file: Path, *, pictures: str) -> None:
        num = len(labels)
        confusion = self.confusion[:num, :num]
        if num < len(self.confusion):
            confusion = np.column_stack([confusion, self.confusion[:num, num:].sum(axis=1)])
        draw_confusion(confusion, labels, file, title=f"{pictures}: top-1 {self.top1:.2f} %")


class AccuracyTally:
    """One vector of sums in float64, which counts exactly, and named views of it: to add vectors is to add tallies."""

    def __init__(self, num_classes: int) -> None:
        shapes = [(num_classes, num_classes), (num_classes,), (3, NUM_BINS)]
        sizes = [math.prod(shape) for shape in shapes]
        self.num_classes = num_classes
        self.sums = torch.zeros(sum(sizes), dtype=torch.float64)
        parts = (part.view(shape) for part, shape in zip(self.sums.split(sizes), shapes, strict=True))
        self.confusion, self.in_top5, self.bins = parts

    def add(self, logits: Tensor, labels: Tensor) -> None:
        confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
        one = torch.ones_like(confidence)
        self.confusion.index_put_((labels, predicted), one, accumulate=True)
        self.in_top5.index_add_(0, labels, among_largest(logits, labels, k=5).double())
        self.bins += bin_sums(confidence, predicted == labels)

    def over_processes(self, device: torch.device) -> AccuracyTally:
        tally = AccuracyTally(self.num_classes)
        tally.sums.copy_(sum_over_processes(self.sums, device))
        return tally

    def scores(self) -> Accuracy:
        """Raises ``ValueError`` if a logit is no finite number."""
        if not self.sums.isfinite().all():
            raise UserError(NOT_FINITE)
        return Accuracy(
            confusion=self.confusion.long().numpy(),
            in_top5=self.in_top5.long().numpy(),
            calibration=Calibration(*self.bins.numpy()),
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
    calibration: Calibration
    """Of the probability of every class in every picture."""

    def figures(self) -> dict[str, float]:
        return {"map": self.mean_average_precision}

    def summary(self) -> dict[str, Any]:
        return {
            "mean_average_precision": self.mean_average_precision,
            "calibration_error": self.calibration.error,
        }

    def by_class(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {"class": name, "num_positive": num, "average_precision": None if math.isnan(value) else value}
            for name, num, value in zip(
                labels, self.num_positive.tolist(), self.average_precision.tolist(), strict=True
            )
        ]

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

    def over_processes(self, device: torch.device) -> PrecisionTally:
        del device  # objects find their own way
        tally = PrecisionTally()
        tally.logits, tally.labels = join_over_processes(self.logits), join_over_processes(self.labels)
        return tally

    def scores(self) -> Precision:
        """Raises ``ValueError`` if no picture has a label, or a logit is no finite number."""
        logits, labels = torch.cat(self.logits).numpy(), torch.cat(self.labels).numpy()
        if not labels.any():
            raise UserError(f"None of the {len(labels)} pictures has a label: nothing can be measured on them.")
        if not np.isfinite(logits).all():
            raise UserError(NOT_FINITE)
        by_class = average_precision(logits, labels)
        return Precision(
            mean_average_precision=float(np.nanmean(by_class)),
            average_precision=by_class,
            num_positive=labels.sum(axis=0),
            num_pictures=len(labels),
            calibration=Calibration(*self.bins().numpy()),
        )

    def bins(self) -> Tensor:
        """Sums over every class of every picture, as ``bin_sums`` has them."""
        return sum(
            (
                bin_sums(logits.double().sigmoid().flatten(), labels.flatten())
                for logits, labels in zip(self.logits, self.labels, strict=True)
            ),
            torch.zeros(3, NUM_BINS, dtype=torch.float64),
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
