"""Pictures augmented a batch at a time: torchvision's transforms, one picture after the other, give the same."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from comvex.data.augmentation import Augmentation
from comvex.data.batch_augmentation import BatchAugmentation
from comvex.data.loading import Key, TrainingPictures, collate
from comvex.data.picture_set import PictureSet
from comvex.data.training_transforms import training_transform
from comvex.data.transforms import Preprocessing

SHAPES = {"grey": (8, 8), "oblong": (30, 24), "colours": (32, 24, 3)}
AUGMENTATIONS = {
    "defaults": Augmentation(),
    "everything": Augmentation(
        rotation=10, translation=0.1, zoom=0.1, shear=9, horizontal_flip=0.5, random_erasing=0.7
    ),
    "nothing": Augmentation(rotation=0, translation=0, zoom=0, horizontal_flip=0, random_erasing=0),
    "no affine changes": Augmentation(rotation=0, translation=0, zoom=0, horizontal_flip=0.5, random_erasing=0.5),
    "turned out of sight": Augmentation(rotation=180, translation=0.9, zoom=0.9, horizontal_flip=0, random_erasing=1),
}
KEYS = [Key(epoch, number, repeat) for epoch in range(3) for number in range(40) for repeat in range(2)]


def pictures_of(shape: tuple[int, ...]) -> PictureSet:
    values = np.random.default_rng(0).integers(0, 256, (40, *shape), dtype=np.uint8)
    return PictureSet(values, np.arange(40) % 7)


def preprocessing_of(shape: tuple[int, ...]) -> Preprocessing:
    channels = 1 if len(shape) == 2 else 3
    return Preprocessing(shape[:2], channels, (0.31, 0.42, 0.53)[:channels], (0.4, 0.2, 0.3)[:channels])


def training_pictures(shape: tuple[int, ...], augmentation: Augmentation, *, together: bool) -> TrainingPictures:
    preprocessing = preprocessing_of(shape)
    return TrainingPictures(
        pictures_of(shape),
        training_transform(preprocessing, augmentation, mirrored=True),
        channels=preprocessing.channels,
        seed=5,
        together=BatchAugmentation(preprocessing, augmentation, mirrored=True) if together else None,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_batch_at_a_time_is_what_torchvision_makes_of_one_picture_after_the_other(shape, augmentation):
    alone = training_pictures(SHAPES[shape], AUGMENTATIONS[augmentation], together=False)
    together = training_pictures(SHAPES[shape], AUGMENTATIONS[augmentation], together=True)
    expected, batch = collate([alone[key] for key in KEYS]), collate(together.__getitems__(KEYS))
    assert torch.equal(batch.pictures, expected.pictures)
    assert torch.equal(batch.labels, expected.labels)
    assert torch.equal(batch.indices, expected.indices)
    assert batch.pictures.dtype == torch.float32


def test_the_same_holds_on_a_processor_that_rounds_products_before_it_adds_them():
    """PyTorch's plain code has no fused multiply-add, which rounds once and not twice."""
    test = f"{__file__}::{test_a_batch_at_a_time_is_what_torchvision_makes_of_one_picture_after_the_other.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--noconftest", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, env=os.environ | {"ATEN_CPU_CAPABILITY": "default"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_rest_of_its_batch_changes_nothing_in_a_picture():
    together = training_pictures(SHAPES["colours"], AUGMENTATIONS["everything"], together=True)
    whole = collate(together.__getitems__(KEYS)).pictures
    shuffled = np.random.default_rng(1).permutation(len(KEYS))
    part = collate(together.__getitems__([KEYS[place] for place in shuffled[:50]])).pictures
    assert torch.equal(part, whole[shuffled[:50]])


def test_the_global_generator_stays_as_it_was():
    together = training_pictures(SHAPES["grey"], AUGMENTATIONS["everything"], together=True)
    before = torch.get_rng_state()
    together.__getitems__(KEYS)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_process_without_pictures_gets_an_empty_batch():
    batch = collate(training_pictures(SHAPES["grey"], AUGMENTATIONS["defaults"], together=True).__getitems__([]))
    assert len(batch.labels) == len(batch.indices) == 0


def test_what_it_cannot_do_is_left_to_the_transforms():
    shape = SHAPES["colours"]
    values = pictures_of(shape).pictures
    assert BatchAugmentation(preprocessing_of(shape), Augmentation(), mirrored=True).fits(values)
    for other in (
        Augmentation(smallest_crop=0.5),
        Augmentation(auto_augment="rand-m5"),
        Augmentation(color_jitter=0.1),
        Augmentation(erase_with="noise"),
    ):
        assert not BatchAugmentation(preprocessing_of(shape), other, mirrored=True).fits(values)
    for preprocessing in (preprocessing_of((32, 24)), preprocessing_of((24, 24, 3))):
        assert not BatchAugmentation(preprocessing, Augmentation(), mirrored=True).fits(values)
    assert not BatchAugmentation(preprocessing_of(shape), Augmentation(), mirrored=True).fits(["a.png"])
