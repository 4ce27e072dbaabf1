"""Figures of merit. top1, top5 and average precision are percentages everywhere."""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def among_largest(logits: Tensor, labels: Tensor, *, k: int) -> Tensor:
    """Whether each label (B,) is among the k largest logits (B, num_classes) of its row: (B,) of bool."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices  # (B, k)
    return (best == labels[:, None]).any(dim=1)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The Wilson score interval of a share, in percent, at a confidence of 95 %.

    It stays inside [0, 100] and is honest for few pictures and for shares near 0 and 100 %.
    """
    if total == 0:
        return 0.0, 100.0
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def average_precision(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Average precision of every class, in percent: (num_classes,).

    ``scores`` and ``labels`` (of 0 and 1) are (num_pictures, num_classes); only the order of the scores counts, so
    that logits do as well as probabilities. The precision at each threshold, weighted by what it adds in recall, as
    scikit-learn's ``average_precision_score`` has it, class by class. A class without a positive picture is NaN.
    """
    from sklearn.metrics import average_precision_score

    values = [
        100 * float(average_precision_score(positive, score)) if positive.any() else math.nan
        for positive, score in zip(labels.T, scores.T, strict=True)
    ]
    return np.array(values)
