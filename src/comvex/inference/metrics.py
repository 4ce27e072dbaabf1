"""Figures of merit. top1 and top5 are percentages everywhere."""

import math

from torch import Tensor


def num_correct(logits: Tensor, labels: Tensor, *, k: int) -> int:
    """How many of the labels (B,) are among the k largest logits (B, num_classes) of their row."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices  # (B, k)
    return int((best == labels[:, None]).any(dim=1).sum())


def wilson_interval(correct: int, total: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share, in percent; 95 % for the default z.

    It stays inside [0, 100] and is honest for few pictures and for shares near 0 and 100 %.
    """
    if total == 0:
        return 0.0, 100.0
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 100 / (1 + z * z / total)
    return max(0.0, (centre - spread) * scale), min(100.0, (centre + spread) * scale)
