"""From a picture to the model's input."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from timm.data import create_transform

from comvex.data.augmentation import Augmentation
from comvex.data.training_transforms import affine_changes, training_transform
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.randomness import seeded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"),
    [(224, 1.0, "bicubic"), (224, 0.875, "bicubic"), (384, 0.875, "bicubic"), (224, 0.875, "bilinear")],
)
def test_evaluation_equals_timms(name, turned, size, crop_pct, interpolation):
    picture = Image.fromarray(load_sample_image(name))
    if turned:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    ours = Preprocessing((size, size), 3, MEAN, STD, crop_pct, interpolation).transform()(picture)
    theirs = create_transform(
        (3, size, size), is_training=False, interpolation=interpolation, mean=MEAN, std=STD, crop_pct=crop_pct
    )(picture)
    assert ours.shape == (3, size, size)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (40, 9000), (9000, 40), (7, 33), (64, 32), (1, 9000)])
def test_any_picture_becomes_the_size_asked_for(size):
    picture = Image.new("RGB", size, (10, 200, 30))
    preprocessing = Preprocessing((64, 32), 3, MEAN, STD)
    for transform in (
        preprocessing.transform(),
        training_transform(preprocessing, Augmentation(smallest_crop=0.5), mirrored=True),
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
        transform = training_transform(preprocessing, augmentation, mirrored=mirrored)
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
    transform = training_transform(Preprocessing((64, 32), 3, (0, 0, 0), (1, 1, 1)), augmentation, mirrored=False)
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
        return "RandomErasing" in str(training_transform(preprocessing, augmentation, mirrored=False))

    assert erases(Augmentation()) == erased
    assert erases(Augmentation(random_erasing=0.1))
    assert not erases(Augmentation(random_erasing=0.0))


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((8, 8), (10, 0.1, 0.1, 0)),
        ((15, 40), (10, 0.1, 0.1, 0)),
        ((16, 16), (0, 0.08, 0, 0)),
        ((28, 28), (0, 0.08, 0, 0)),
    ],
)
def test_by_default_pictures_are_shifted_alone_but_tiny_ones_turned_and_zoomed_too(size, changes):
    assert affine_changes(Augmentation(), size) == changes
    assert affine_changes(Augmentation(rotation=0, zoom=0.2), size) == (0, changes[1], 0.2, 0)
    assert affine_changes(Augmentation(translation=0, shear=3), size) == (changes[0], 0, changes[2], 3)


RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
STILL = Augmentation(rotation=0, translation=0, zoom=0, random_erasing=0, horizontal_flip=0)


def photograph(size: tuple[int, int] = (96, 96)) -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).resize(size)


def test_rand_augment_equals_timms_in_timms_own_transform():
    """The steps of timm's transform after its crop, on a picture of the right size."""
    theirs = create_transform(
        (3, 96, 96), is_training=True, scale=(1, 1), ratio=(1, 1), hflip=0, auto_augment=RAND_AUGMENT, re_prob=0,
        color_jitter=0.4, interpolation="bicubic", mean=MEAN, std=STD,
    )  # fmt: skip
    augmentation = replace(STILL, auto_augment=RAND_AUGMENT, color_jitter=0.4)
    ours = training_transform(Preprocessing((96, 96), 3, MEAN, STD), augmentation, mirrored=True)
    _, *after_crop = theirs.transforms
    assert [type(step).__name__ for step in after_crop] == ["RandAugment", "MaybeToTensor", "Normalize"]
    changed = 0
    for seed in range(30):
        with seeded(seed):
            mine = ours(photograph())
        with seeded(seed):
            reference = photograph()
            for step in after_crop:
                reference = step(reference)
        torch.testing.assert_close(mine, reference, rtol=0, atol=2e-6)  # x / std or x * (1 / std)
        changed += not torch.equal(mine, Preprocessing((96, 96), 3, MEAN, STD).transform()(photograph()))
    assert changed > 15


@pytest.mark.parametrize("words", ["rand-m10-n2-inc1", "rand-m0-n2", "rand-m9-n2-mstd0.5-inc1"])
def test_posterizing_keeps_a_bit_at_every_magnitude(words, monkeypatch):
    """No bit at all is what Pillow 13 refuses."""
    kept, posterize = [], ImageOps.posterize

    def watched(picture: Image.Image, bits: int) -> Image.Image:
        kept.append(bits)
        return posterize(picture, bits)

    monkeypatch.setattr(ImageOps, "posterize", watched)
    transform = training_transform(
        Preprocessing((8, 8), 3, MEAN, STD), replace(STILL, auto_augment=words), mirrored=True
    )
    picture = photograph((8, 8))
    for seed in range(200):
        with seeded(seed):
            transform(picture)
    assert kept
    assert min(kept) >= 1


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_papers_augmentation_is_a_function_of_the_seed_alone(channels, mode):
    augmentation = Augmentation(
        smallest_crop=0.08, rotation=0, translation=0, zoom=0, auto_augment=RAND_AUGMENT, color_jitter=0.4,
        random_erasing=0.5, erase_with="noise",
    )  # fmt: skip
    mean, std = MEAN[:channels], STD[:channels]
    transform = training_transform(Preprocessing((48, 48), channels, mean, std), augmentation, mirrored=True)
    found = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        random.seed(global_seed)
        np.random.seed(global_seed)  # noqa: NPY002
        pictures = []
        for seed in range(60):
            with seeded(seed):
                pictures.append(transform(photograph().convert(mode)))
        found.append(torch.stack(pictures))
    assert torch.equal(*found)
    assert len({picture.numpy().tobytes() for picture in found[0]}) == 60


def test_the_erased_rectangle_is_noise_or_the_mean():
    flat = Image.new("RGB", (64, 64), (255, 255, 255))
    for erase_with, deviation in (("noise", 1.0), ("constant", 0.0)):
        augmentation = replace(STILL, random_erasing=1.0, erase_with=erase_with)
        transform = training_transform(Preprocessing((64, 64), 3, MEAN, STD), augmentation, mirrored=False)
        white = Preprocessing((64, 64), 3, MEAN, STD).transform()(flat)
        with seeded(3):
            erased = transform(flat)
        hidden = erased[erased != white]
        assert 0.02 * 0.9 < hidden.numel() / erased.numel() < 0.34
        assert hidden.mean().item() == pytest.approx(0, abs=0.1)
        assert hidden.std().item() == pytest.approx(deviation, abs=0.1)


def test_colour_jitter_is_left_out_beside_rand_augment_as_in_timm():
    with_both = replace(STILL, auto_augment=RAND_AUGMENT, color_jitter=0.4)
    preprocessing = Preprocessing((16, 16), 3, MEAN, STD)
    assert "ColorJitter" not in str(training_transform(preprocessing, with_both, mirrored=True))
    assert "ColorJitter" in str(training_transform(preprocessing, replace(STILL, color_jitter=0.4), mirrored=True))


def test_augmentation_draws_from_torch_alone_and_as_ever():
    """Training must go on giving the same pictures from version to version."""
    affine = Augmentation(rotation=10, translation=0.1, zoom=0.1)
    transform = training_transform(Preprocessing((32, 32), 3, MEAN, STD), affine, mirrored=True)
    torch.manual_seed(11)
    picture = transform(photograph((32, 32)))
    assert picture.double().sum().item() == pytest.approx(1457.09957, abs=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"smallest_crop": 0}, "smallest_crop is 0"),
        ({"crop_ratio": (2, 1)}, r"crop_ratio is \(2, 1\)"),
        ({"random_erasing": 1.5}, "random_erasing is 1.5"),
        ({"zoom": 1.0}, "zoom is 1.0"),
        ({"color_jitter": -1}, "color_jitter is -1"),
        ({"auto_augment": "augmix-m5"}, "auto_augment is 'augmix-m5'"),
        ({"erase_with": "black"}, "erase_with is 'black'"),
    ],
)
def test_augmentation_out_of_range_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**values)


def test_what_timm_does_not_understand_and_what_full_depth_cannot_do_is_refused():
    preprocessing = Preprocessing((16, 16), 3, MEAN, STD)
    with pytest.raises(UserError, match="'rand-q7', which timm does not understand"):
        training_transform(preprocessing, Augmentation(auto_augment="rand-q7"), mirrored=True)
    with pytest.raises(UserError, match="read at full depth"):
        training_transform(
            replace(preprocessing, full_depth=True), Augmentation(auto_augment=RAND_AUGMENT), mirrored=True
        )
    with pytest.raises(UserError, match="interpolation is 'nearest'"):
        replace(preprocessing, interpolation="nearest")
    with pytest.raises(UserError, match="channels is 4"):
        Preprocessing((16, 16), 4, (0.5,) * 4, (0.5,) * 4)


def test_at_full_depth_no_value_is_lost_or_cut():
    values = np.linspace(-3, 70000, 8 * 8 * 5, dtype=np.float32).reshape(8, 8, 5)
    preprocessing = Preprocessing((8, 8), 5, (0.0,) * 5, (1.0,) * 5, full_depth=True)
    torch.testing.assert_close(
        preprocessing.transform()(values), torch.from_numpy(values).permute(2, 0, 1), rtol=0, atol=0
    )
    still = training_transform(preprocessing, STILL, mirrored=False)
    torch.testing.assert_close(still(values), torch.from_numpy(values).permute(2, 0, 1), rtol=0, atol=0)


def test_at_full_depth_pictures_are_resized_as_8_bit_ones_are():
    picture = Image.fromarray(load_sample_image("flower.jpg"))
    values = np.asarray(picture, dtype=np.float32) / 255
    for size in ((96, 96), (64, 160)):
        preprocessing = Preprocessing(size, 3, MEAN, STD, 0.875)
        deep = replace(preprocessing, full_depth=True).transform()(values)
        plain = preprocessing.transform()(picture)
        # Pillow rounds to 8 bits and clips the overshoots of the bicubic kernel, which floats keep
        assert (deep - plain).abs().mean() < 0.01
        assert (deep - plain).abs().max() < 0.3


def test_at_full_depth_any_number_of_channels_is_augmented_together():
    ramp = np.linspace(0, 1, 40 * 40, dtype=np.float32).reshape(40, 40, 1)
    values = np.repeat(ramp, 7, axis=2)
    augmentation = Augmentation(smallest_crop=0.3, color_jitter=0.4, random_erasing=1.0, horizontal_flip=0.5)
    transform = training_transform(
        Preprocessing((16, 24), 7, (0.5,) * 7, (0.5,) * 7, full_depth=True), augmentation, mirrored=True
    )
    for seed in range(20):
        with seeded(seed):
            picture = transform(values)
        assert picture.shape == (7, 16, 24)
        torch.testing.assert_close(picture, picture[:1].expand(7, -1, -1), rtol=1e-5, atol=1e-5)


def test_at_full_depth_preprocessing_survives_the_way_through_json():
    import json

    preprocessing = Preprocessing((8, 8), 5, (0.1,) * 5, (0.2,) * 5, 0.9, "bilinear", full_depth=True)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
