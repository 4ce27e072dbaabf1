"""From a picture to the model's input."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform

from comvex.data.augmentation import Augmentation
from comvex.data.transforms import Preprocessing
from comvex.randomness import seeded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("turned", [False, True])
def test_evaluation_equals_timms_without_a_margin(name, turned):
    picture = Image.fromarray(load_sample_image(name))
    if turned:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    ours = Preprocessing((224, 224), 3, MEAN, STD).transform()(picture)
    theirs = create_transform((3, 224, 224), interpolation="bicubic", mean=MEAN, std=STD, crop_pct=1.0)(picture)
    assert ours.shape == (3, 224, 224)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (40, 900), (900, 40), (7, 33), (64, 32)])
def test_any_picture_becomes_the_size_asked_for(size):
    picture = Image.new("RGB", size, (10, 200, 30))
    preprocessing = Preprocessing((64, 32), 3, MEAN, STD)
    for transform in (
        preprocessing.transform(),
        preprocessing.training_transform(Augmentation(smallest_crop=0.5), mirrored=True),
    ):
        assert transform(picture).shape == (3, 64, 32)


def test_a_picture_of_the_right_size_is_only_normalised():
    values = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    tensor = Preprocessing((28, 28), 1, (0.25,), (0.5,)).transform()(Image.fromarray(values))
    torch.testing.assert_close(tensor, (torch.from_numpy(values)[None] / 255 - 0.25) / 0.5)


def test_digits_are_not_mirrored_unless_asked_to():
    picture = Image.fromarray(np.tile(np.arange(0, 256, 32, dtype=np.uint8), (8, 1)))  # brighter to the right
    still = Augmentation(rotation=0, translation=0, zoom=0, random_erasing=0)
    preprocessing = Preprocessing((8, 8), 1, (0.0,), (1.0,))

    def share_mirrored(augmentation: Augmentation, *, mirrored: bool) -> float:
        transform = preprocessing.training_transform(augmentation, mirrored=mirrored)
        flips = []
        for seed in range(200):
            with seeded(seed):
                row = transform(picture)[0, 0]
            flips.append(bool(row[0] > row[-1]))
        return sum(flips) / len(flips)

    assert share_mirrored(still, mirrored=False) == 0
    assert 0.35 < share_mirrored(still, mirrored=True) < 0.65
    always = Augmentation(rotation=0, translation=0, zoom=0, random_erasing=0, horizontal_flip=1.0)
    assert share_mirrored(always, mirrored=False) == 1


def test_preprocessing_survives_the_way_through_json():
    import json

    preprocessing = Preprocessing((96, 64), 3, MEAN, STD)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_random_crops_for_a_model_that_is_not_square_keep_the_shape_of_things():
    """A ramp to the right in red and one downwards in green tell how much of each side a crop has."""
    right, down = np.meshgrid(np.arange(128), np.arange(256))
    picture = Image.fromarray(np.stack([2 * right, down, 0 * down], axis=2).astype(np.uint8))
    augmentation = Augmentation(smallest_crop=0.3, rotation=0, translation=0, zoom=0, random_erasing=0)
    transform = Preprocessing((64, 32), 3, (0, 0, 0), (1, 1, 1)).training_transform(augmentation, mirrored=False)
    stretched = []
    for _ in range(50):
        red, green, _ = 255 * transform(picture)
        width, height = (float(ramp.max() - ramp.min()) for ramp in (red / 2, green))
        stretched.append(width / height * 64 / 32)
    assert all(0.7 < value < 1.43 for value in stretched)  # 3/4 to 4/3, and 5 % for the edges of the ramps
    assert min(stretched) < 0.85
    assert max(stretched) > 1.15


@pytest.mark.parametrize(("size", "erased"), [(8, False), (16, True), (28, True)])
def test_small_pictures_are_not_erased_unless_asked_for(size, erased):
    preprocessing = Preprocessing((size, size), channels=1, mean=(0.5,), std=(0.5,))

    def erases(augmentation: Augmentation) -> bool:
        return "RandomErasing" in str(preprocessing.training_transform(augmentation, mirrored=False))

    assert erases(Augmentation()) == erased
    assert erases(Augmentation(random_erasing=0.1))
    assert not erases(Augmentation(random_erasing=0.0))
