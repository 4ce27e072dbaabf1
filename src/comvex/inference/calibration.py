"""Whether probabilities mean what they say: of the answers given with 80 %, are 80 % right?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comvex.plotting import BLUE, GREY, VERMILION, new_figure

NUM_BINS = 15


def bin_sums(probability: Tensor, outcome: Tensor) -> Tensor:
    """What ``Calibration`` needs of answers (n,) and whether each came true (n,): (3, NUM_BINS), float64.

    The rows are the number of answers, the sum of their probabilities, and how many came true. Bin m of M holds the
    probabilities in ((m - 1) / M, m / M], and the first also 0.
    """
    probability = probability.double()
    place = ((probability * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1)
    values = torch.stack([torch.ones_like(probability), probability, outcome.double()])
    return torch.zeros(3, NUM_BINS, dtype=torch.float64).index_add_(1, place, values)


@dataclass(frozen=True)
class Calibration:
    """Answers by their probability, in NUM_BINS bins of equal width; all (NUM_BINS,)."""

    num: NDArray[np.float64]
    """Answers in each bin."""
    probability: NDArray[np.float64]
    """Sum of their probabilities."""
    true: NDArray[np.float64]
    """How many of them came true."""

    @property
    def error(self) -> float:
        """Expected calibration error in percent (Guo et al. 2017, Eq. 3): 0 is perfect.

        The distance in each bin between mean probability and share that came true, weighted by its number of answers.
        """
        return 100 * float(np.abs(self.true - self.probability).sum() / self.num.sum())

    @property
    def mean_probability(self) -> float:
        """Mean probability of the answers, in percent."""
        return 100 * float(self.probability.sum() / self.num.sum())


def draw_reliability(calibration: Calibration, file: Path, *, title: str, answers: str) -> None:
    """Share that came true over probability, and below how many answers there are; ``answers`` names them."""
    filled = calibration.num > 0
    share, probability = (
        100 * sums[filled] / calibration.num[filled] for sums in (calibration.true, calibration.probability)
    )
    centres, width = (np.arange(NUM_BINS) + 0.5) * (100 / NUM_BINS), 100 / NUM_BINS
    with new_figure(file, size=(4.6, 5.2)) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.bar(centres[filled], share, width=0.92 * width, color=BLUE, label="came true")
        above.plot(probability, probability, "o-", color=VERMILION, markersize=4, label="as the probability says")
        above.set(ylabel=f"share of {answers} that came true, %", ylim=(0, 102))
        above.legend(loc="upper left")
        below.bar(centres, 100 * calibration.num / calibration.num.sum(), width=0.92 * width, color=GREY)
        below.set(xlabel="probability that the model gives, %", ylabel=f"{answers}, %", xlim=(0, 100))
        figure.suptitle(
            f"{title}\nexpected calibration error {calibration.error:.2f} %", x=0.01, ha="left", fontsize=11
        )
