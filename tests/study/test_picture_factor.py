"""The picture factor, against figures worked out by hand."""

import math

import pytest

from comvex.study.picture_factor import Factor, picture_factor

# d'Ascoli et al. 2021, Table 2: share of ImageNet in percent, top-1 of DeiT-S and of ConViT-S
PAPER = [(5, 34.8, 47.8), (10, 48.0, 59.6), (30, 66.1, 73.7), (50, 74.6, 78.2), (100, 79.9, 81.4)]
DEIT = [(share, deit) for share, deit, _ in PAPER]


def test_the_papers_convit_saves_half_of_the_pictures_at_five_percent():
    # 47.8 lies 13.0 of the 13.2 points between 5 % and 10 %, which is one doubling: 2^(13.0 / 13.2)
    assert picture_factor(5, 47.8, DEIT).value == pytest.approx(1.9791, abs=1e-4)
    # ... 59.6 lies 11.6 of the 18.1 points between 10 % and 30 %: 3^(11.6 / 18.1)
    assert picture_factor(10, 59.6, DEIT).value == pytest.approx(2.0220, abs=1e-4)
    # ... 78.2 lies 3.6 of the 5.3 points between 50 % and 100 %: 2^(3.6 / 5.3)
    assert picture_factor(50, 78.2, DEIT).value == pytest.approx(1.6013, abs=1e-4)


def test_an_accuracy_that_the_plain_vit_never_has_gives_a_bound_and_no_extrapolation():
    assert picture_factor(100, 81.4, DEIT) == Factor(1.0, ">")
    assert str(picture_factor(50, 81.4, DEIT)) == "> 2.00"
    assert picture_factor(10, 30.0, DEIT) == Factor(0.5, "<")


def test_equal_accuracies_are_a_factor_of_one_and_worse_ones_less():
    for share, top1 in DEIT:
        assert picture_factor(share, top1, DEIT).value == pytest.approx(1)
    assert picture_factor(10, 40.0, DEIT).value < 1


def test_a_curve_that_falls_in_between_counts_where_it_is_reached_first():
    curve = [(1000, 90.0), (10, 50.0), (100, 40.0), (1, 30.0)]  # in any order
    assert picture_factor(1, 40.0, curve).value == pytest.approx(math.sqrt(10))
    assert picture_factor(1, 45.0, curve).value == pytest.approx(10**0.75)


def test_a_single_fraction_is_enough_for_a_bound():
    assert picture_factor(600, 70.0, [(600, 65.0)]) == Factor(1.0, ">")
