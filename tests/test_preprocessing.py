"""Which ways of preparing pictures are possible, for the settings of a run and for what a file of weights says."""

import math

import pytest
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from comvex.data.transforms import Preprocessing
from comvex.preprocessing import IMAGENET_CROP_PCT, IMAGENET_MEAN, IMAGENET_STD, check_preprocessing


def test_imagenets_figures_are_timms():
    assert (IMAGENET_MEAN, IMAGENET_STD) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    check_preprocessing(IMAGENET_MEAN, IMAGENET_STD, IMAGENET_CROP_PCT)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": (0.5, math.nan, 0.5)}, "mean is .*nan.*: it must have a number for each channel"),
        ({"mean": (0.5, "0.5", 0.5)}, "mean is .*: it must have a number for each channel"),
        ({"std": (0.5, math.inf, 0.5)}, "std is .*inf.*: it must have a number for each channel"),
        ({"std": (0.5, True, 0.5)}, "std is .*True.*: it must have a number for each channel"),
        ({"std": (0.5, 0.0, 0.5)}, r"std is \(0\.5, 0\.0, 0\.5\): its numbers must be positive"),
        ({"crop_pct": 0}, r"crop_pct is 0: it must lie in \(0, 1\]"),
        ({"crop_pct": 1.01}, r"crop_pct is 1\.01: it must lie in \(0, 1\]"),
        ({"crop_pct": math.nan}, r"crop_pct is nan: it must lie in \(0, 1\]"),
        ({"crop_pct": "1"}, r"crop_pct is '1': it must lie in \(0, 1\]"),
    ],
)
def test_what_is_not_possible_is_named(changed, message):
    values = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0} | changed
    with pytest.raises(ValueError, match=message):
        check_preprocessing(**values)
    with pytest.raises(ValueError, match=message):
        Preprocessing(image_size=(8, 8), channels=3, **values)
