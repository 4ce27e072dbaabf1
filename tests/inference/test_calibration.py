"""Calibration against a loop over bins from the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from comvex.inference.calibration import Calibration, bin_sums, draw_reliability


def error_with_loops(probabilities: list[float], outcomes: list[bool]) -> float:
    """Guo et al. 2017, Eq. 3, in percent: fifteen bins of equal width, each closed above; the first also below."""
    total = 0.0
    for number in range(1, 16):
        low, high = (number - 1) / 15, number / 15
        inside = [
            (p, outcome)
            for p, outcome in zip(probabilities, outcomes, strict=True)
            if low < p <= high or (number == 1 and p == 0)
        ]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            accuracy = sum(outcome for _, outcome in inside) / len(inside)
            total += len(inside) / len(probabilities) * abs(accuracy - confidence)
    return 100 * total


def calibration(probabilities: list[float], outcomes: list[bool]) -> Calibration:
    return Calibration(*bin_sums(torch.tensor(probabilities, dtype=torch.float64), torch.tensor(outcomes)).numpy())


# Not on the border of two bins, where rounding decides, but on the outer borders
answers = st.lists(
    st.tuples(
        st.floats(0, 1).filter(lambda p: abs(15 * p - round(15 * p)) > 1e-9) | st.sampled_from([0.0, 1.0]),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


@given(answers)
def test_the_error_is_that_of_a_loop_over_the_bins(pairs):
    probabilities, outcomes = map(list, zip(*pairs, strict=True))
    found = calibration(probabilities, outcomes)
    assert found.error == pytest.approx(error_with_loops(probabilities, outcomes), abs=1e-9)
    assert found.mean_probability == pytest.approx(100 * sum(probabilities) / len(pairs))
    assert found.num.sum() == len(pairs)


@given(answers, st.integers(0, 60))
def test_the_sums_of_parts_add_up_to_those_of_the_whole(pairs, cut):
    probabilities, outcomes = (torch.tensor(values) for values in zip(*pairs, strict=True))
    whole = bin_sums(probabilities, outcomes)
    parts = bin_sums(probabilities[:cut], outcomes[:cut]) + bin_sums(probabilities[cut:], outcomes[cut:])
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_certain_answers_that_are_right_are_perfect_and_wrong_ones_as_bad_as_can_be():
    assert calibration([1.0, 1.0], [True, True]).error == 0
    assert calibration([1.0, 1.0], [False, False]).error == 100
    assert calibration([0.5] * 4, [True, True, False, False]).error == 0


def test_a_probability_of_a_third_lies_in_the_fifth_bin_and_one_in_the_last():
    [num, *_] = bin_sums(torch.tensor([1 / 3, 1.0, 0.0, 0.3334], dtype=torch.float64), torch.ones(4))
    assert num.nonzero().flatten().tolist() == [0, 4, 5, 14]


def test_the_reliability_diagram_is_drawn_with_empty_bins_too(tmp_path):
    found = calibration([0.2, 0.95, 0.93], [False, True, True])
    draw_reliability(found, tmp_path / "reliability.png", title="3 pictures", answers="predictions")
    with Image.open(tmp_path / "reliability.png") as picture:
        assert min(picture.size) > 500
