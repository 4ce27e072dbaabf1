"""How a picture gets the model's size: exactly as timm for evaluation, and quickly for training."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from timm.data.transforms_factory import create_transform
from torchvision import transforms as T

from comvex.data.augmentation import Augmentation
from comvex.data.crops import (
    SPARE,
    Cover,
    MiddleCrop,
    RandomCrop,
    largest_reduction,
    on_reduced_pixels,
    quickly_resized,
    resized_part,
)
from comvex.data.full_depth import read_values
from comvex.data.loading import Key, StepOrder, TrainingPictures, training_loader
from comvex.data.picture_set import PictureSet
from comvex.data.reading import ReducibleJpeg, read_picture, read_reducible
from comvex.data.training_transforms import training_transform
from comvex.data.transforms import Preprocessing
from comvex.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from comvex.randomness import seeded

PAPER = Augmentation(
    smallest_crop=0.08, rotation=0, translation=0, zoom=0, auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4,
    random_erasing=0.25, erase_with="noise",
)  # fmt: skip
STILL = Augmentation(rotation=0, translation=0, zoom=0, random_erasing=0, horizontal_flip=0)


def photograph(name: str = "china.jpg") -> Image.Image:
    """640 x 427 pixels."""
    return Image.fromarray(load_sample_image(name))


def large_photograph() -> Image.Image:
    """1280 x 854 pixels as sharp as a photograph: it beside its mirror images."""
    values = load_sample_image("china.jpg")
    row = np.concatenate([values, values[:, ::-1]], axis=1)
    return Image.fromarray(np.concatenate([row, row[::-1]]))


def written(picture: Image.Image, file, **options):
    picture.save(file, **options)
    return file


# Evaluation: equal to timm's transform, to the last bit, for every kind of file


def turned_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    "JPEG": lambda folder: written(photograph(), folder / "a.jpg", quality=90),
    "large JPEG": lambda folder: written(large_photograph(), folder / "a.jpg", quality=90),
    "progressive JPEG": lambda folder: written(photograph(), folder / "a.jpg", progressive=True),
    "grey JPEG": lambda folder: written(photograph().convert("L"), folder / "a.jpg"),
    "CMYK JPEG": lambda folder: written(photograph().convert("CMYK"), folder / "a.jpg"),
    "turned JPEG": lambda folder: written(photograph(), folder / "a.jpg", exif=turned_exif(6)),
    "mirrored JPEG": lambda folder: written(photograph(), folder / "a.jpg", exif=turned_exif(7)),
    "PNG": lambda folder: written(photograph("flower.jpg"), folder / "a.png"),
    "grey PNG": lambda folder: written(photograph().convert("L"), folder / "a.png"),
    "palette PNG": lambda folder: written(photograph().quantize(64), folder / "a.png"),
    "opaque RGBA PNG": lambda folder: written(photograph().convert("RGBA"), folder / "a.png"),
    "turned PNG": lambda folder: written(photograph(), folder / "a.png", exif=turned_exif(8)),
    "WebP": lambda folder: written(photograph(), folder / "a.webp"),
}


def timms_tensor(picture: Image.Image, *, size: int = 224, crop_pct: float = 0.875) -> torch.Tensor:
    transform = create_transform(
        (3, size, size), is_training=False, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD,
        crop_pct=crop_pct,
    )  # fmt: skip
    return transform(picture)


def our_tensor(file, *, size: int = 224, crop_pct: float = 0.875) -> torch.Tensor:
    return Preprocessing((size, size), 3, IMAGENET_MEAN, IMAGENET_STD, crop_pct).transform()(read_picture(file))


@pytest.mark.parametrize("kind", FILES)
def test_evaluation_of_a_file_is_timms_of_the_upright_picture(kind, tmp_path):
    file = FILES[kind](tmp_path)
    with Image.open(file) as picture:
        theirs = timms_tensor(ImageOps.exif_transpose(picture).convert("RGB"))
    assert torch.equal(our_tensor(file), theirs)


def test_evaluation_of_a_transparent_file_is_timms_of_it_on_white(tmp_path):
    picture = photograph().convert("RGBA")
    opacity = np.linspace(0, 255, picture.width).astype(np.uint8)
    picture.putalpha(Image.fromarray(np.tile(opacity, (picture.height, 1))))
    file = written(picture, tmp_path / "a.png")
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    # Pillow's two ways to lay one picture on another round differently by one level
    level = 1 / 255 / min(IMAGENET_STD)
    torch.testing.assert_close(our_tensor(file), timms_tensor(white), rtol=0, atol=2.5 * level)


def test_evaluation_of_16_bits_is_timms_of_them_as_8(tmp_path):
    """timm itself would clip them to white; ours are scaled by their own range."""
    grey = np.asarray(photograph().convert("L"))
    file = written(Image.fromarray(grey.astype(np.uint16) * 100 + 500), tmp_path / "a.png")
    low, high = int(grey.min()), int(grey.max())
    scaled = np.rint((grey.astype(np.float64) - low) * 255 / (high - low)).astype(np.uint8)
    assert torch.equal(our_tensor(file), timms_tensor(Image.fromarray(scaled).convert("RGB")))


def test_evaluation_of_16_bits_at_full_depth_is_timms_but_for_the_rounding_to_8(tmp_path):
    grey = np.asarray(photograph().convert("L"))
    file = written(Image.fromarray(grey.astype(np.uint16) * 257), tmp_path / "a.png")  # 0 to 65535
    deep = Preprocessing((224, 224), 3, IMAGENET_MEAN, IMAGENET_STD, 0.875, full_depth=True).transform()
    apart = (deep(read_values(file, channels=3)) - timms_tensor(Image.fromarray(grey).convert("RGB"))).abs()
    levels = apart * 255 * torch.tensor(IMAGENET_STD)[:, None, None]
    # Pillow rounds after either direction and clips what the bicubic kernel overshoots, which floats keep
    assert levels.mean() < 0.6
    assert levels.quantile(0.99) < 2


# Training: the quick way beside the written-out one


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (60, 91), (500, 700)])
def test_quick_resizing_is_pillows_to_two_levels(mode, interpolation, size):
    picture = photograph().convert(mode)
    ours = quickly_resized(picture, size, interpolation)
    theirs = picture.resize((size[1], size[0]), Image.Resampling[interpolation.upper()])
    assert (ours.size, ours.mode) == (theirs.size, theirs.mode)
    apart = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
    assert apart.max() <= 2  # either rounds after rows and after columns; PyTorch's weights have 16 bits, Pillow's 22
    assert apart.mean() < 0.02


def test_a_picture_of_the_size_wanted_is_not_touched():
    picture = photograph()
    assert quickly_resized(picture, (427, 640), "bicubic") is picture


def test_a_random_crop_is_the_one_that_torchvision_draws():
    picture, scale, ratio = photograph(), (0.2, 1.0), (0.6, 1.4)
    ours = RandomCrop((96, 64), scale, ratio, "bicubic")
    theirs = T.RandomResizedCrop((96, 64), scale, ratio, T.InterpolationMode.BICUBIC)
    for seed in range(25):
        with seeded(seed):
            mine = np.asarray(ours(picture), int)
        with seeded(seed):
            reference = np.asarray(theirs(picture), int)
        assert np.abs(mine - reference).mean() < 0.02
        assert np.abs(mine - reference).max() <= 2


@pytest.mark.parametrize("picture_size", [(640, 427), (300, 601), (20, 900), (64, 64), (40, 30)])
def test_the_middle_crop_is_that_of_evaluation(picture_size):
    picture = photograph().resize(picture_size)
    ours = np.asarray(MiddleCrop((64, 48), "bicubic")(picture), int)
    theirs = np.asarray(T.CenterCrop((64, 48))(Cover(64, 48)(picture)), int)
    assert ours.shape == theirs.shape == (64, 48, 3)
    assert np.abs(ours - theirs).max() <= 2


@pytest.mark.parametrize(
    ("have", "wanted", "reduction"),
    [
        ((447, 900), (112, 112), 1),
        ((448, 448), (112, 112), 2),
        ((895, 4000), (112, 112), 2),
        ((896, 4000), (112, 112), 4),
        ((9000, 9000), (112, 112), 8),
        ((448, 896), (112, 224), 2),
        ((448, 895), (112, 224), 1),
    ],
)
def test_a_file_is_reduced_only_where_it_stays_twice_as_fine_as_it_is_shown(have, wanted, reduction):
    assert SPARE == 2
    assert largest_reduction(have, wanted) == reduction


def test_a_crop_of_a_reduced_file_is_close_to_pillows_of_the_whole(tmp_path):
    """On average to less than a level of 255, where they show the same part."""
    whole = read_picture(written(large_photograph(), tmp_path / "a.jpg", quality=90))
    picture = read_reducible(tmp_path / "a.jpg")
    assert isinstance(picture, ReducibleJpeg)
    reductions = set()
    for part in ((0, 0, 854, 1280), (100, 203, 518, 600), (13, 7, 601, 999)):
        for size in ((48, 64), (96, 128)):
            reduction = largest_reduction(part[2:], size)
            reductions.add(reduction)
            ours = np.asarray(resized_part(picture, part, size, "bicubic"), int)
            top, left, height, width = (reduction * edge for edge in on_reduced_pixels(part, reduction))
            assert part[0] <= top <= top + height <= part[0] + part[2]
            assert part[1] <= left <= left + width <= part[1] + part[3]
            same = whole.crop((left, top, left + width, top + height)).resize(
                (size[1], size[0]), Image.Resampling.BICUBIC
            )
            assert np.abs(ours - np.asarray(same, int)).mean() < 1
            drawn = whole.crop((part[1], part[0], part[1] + part[3], part[0] + part[2]))
            as_drawn = np.asarray(drawn.resize((size[1], size[0]), Image.Resampling.BICUBIC), int)
            assert np.abs(ours - as_drawn).mean() < 5  # which is half a pixel larger at each edge, at most
    assert reductions == {2, 4, 8}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_shows_the_same_of_a_file_as_of_its_picture_however_the_camera_was_held(tmp_path, orientation, channels):
    """A ramp to the right and one downwards tell where the crop is."""
    down, right = np.mgrid[:480, :720]
    ramps = np.stack([right / 4, down / 4, 128 + 0 * down], axis=2).astype(np.uint8)
    file = written(Image.fromarray(ramps), tmp_path / "a.jpg", quality=95, exif=turned_exif(orientation))
    whole, reducible = read_picture(file, channels=channels), read_reducible(file, channels=channels)
    assert reducible.size == (whole.height, whole.width)
    crop = RandomCrop((32, 32), (0.3, 1.0), (0.75, 1.33), "bicubic")
    for seed in range(5):
        with seeded(seed):
            from_file = np.asarray(crop(reducible), int)
        with seeded(seed):
            from_picture = np.asarray(crop(whole), int)
        assert from_file.shape == from_picture.shape
        assert np.abs(from_file - from_picture).max() <= 3  # of 180 between the corners


def training_pictures(files, *, size=(48, 48), augmentation=PAPER) -> TrainingPictures:
    preprocessing = Preprocessing(size, 3, IMAGENET_MEAN, IMAGENET_STD)
    return TrainingPictures(
        PictureSet(files, np.arange(len(files))),
        training_transform(preprocessing, augmentation, mirrored=True),
        channels=3,
        seed=5,
    )


def test_a_file_that_is_not_reduced_trains_as_its_pixels_do(tmp_path):
    """So do files without loss, to the bit: what is shown depends on the pixels, and not on the file."""
    file = written(photograph().resize((300, 200)), tmp_path / "a.jpg")
    pixels = read_picture(file)
    assert largest_reduction((200, 300), (64, 64)) == 1
    written(pixels, tmp_path / "a.png")
    jpeg, png = training_pictures([file], size=(64, 64)), training_pictures([tmp_path / "a.png"], size=(64, 64))
    memory = training_pictures(np.asarray(pixels)[None], size=(64, 64))
    for repeat in range(20):
        key = Key(0, 0, repeat)
        assert torch.equal(jpeg[key].picture, memory[key].picture)
        assert torch.equal(png[key].picture, memory[key].picture)


@pytest.fixture(scope="module")
def large_files(tmp_path_factory):
    """JPEG files that are divided by 2 or 4, depending on the crop."""
    folder = tmp_path_factory.mktemp("large")
    picture = large_photograph()
    return [
        written(picture.crop((8 * index, 0, 900 + 8 * index, 700)), folder / f"{index}.jpg") for index in range(6)
    ]  # fmt: skip


@pytest.mark.parametrize("augmentation", [PAPER, Augmentation(), replace(STILL, smallest_crop=0.3)])
def test_reduced_files_are_the_same_with_any_number_of_workers_threads_and_from_any_step(large_files, augmentation):
    def batches(*, workers=0, start=0):
        order = StepOrder(6, 3, seed=5, start=start, stop=4)
        loader = training_loader(
            training_pictures(large_files, augmentation=augmentation), order, workers=workers, pin_memory=False
        )
        return [batch.pictures for batch in loader]

    alone = batches()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threaded = batches()
    finally:
        torch.set_num_threads(threads)
    for others, start in ((batches(workers=2), 0), (batches(start=3), 3), (threaded, 0)):
        for one, other in zip(alone[start:], others, strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(alone[0], alone[2])


def test_training_decodes_no_more_of_a_large_file_than_it_needs(large_files, monkeypatch):
    decoded = []
    decode = ReducibleJpeg.decode

    def watched(self, *, reduction=1):
        picture = decode(self, reduction=reduction)
        decoded.append((reduction, picture.size))
        return picture

    monkeypatch.setattr(ReducibleJpeg, "decode", watched)
    middle = training_pictures(large_files, size=(64, 64), augmentation=STILL)
    assert middle[Key(0, 0, 0)].picture.shape == (3, 64, 64)
    assert decoded == [(4, (225, 175))]
    decoded.clear()
    cropped = training_pictures(large_files, size=(64, 64), augmentation=replace(STILL, smallest_crop=0.08))
    for repeat in range(30):
        cropped[Key(0, 0, repeat)]
    assert {reduction for reduction, _ in decoded} == {2, 4}


def test_evaluation_decodes_the_whole_of_every_file(large_files):
    pixels = Image.open(io.BytesIO(large_files[0].read_bytes())).convert("RGB")
    theirs = timms_tensor(pixels, size=64, crop_pct=1.0)
    assert torch.equal(our_tensor(large_files[0], size=64, crop_pct=1.0), theirs)


def test_a_damaged_jpeg_is_left_out_of_its_training_batch_and_named(large_files, tmp_path):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(large_files[0].read_bytes()[:-2000])
    no_header = tmp_path / "no-header.jpg"
    no_header.write_bytes(large_files[0].read_bytes()[:20])
    dataset = training_pictures([large_files[1], cut, no_header, tmp_path / "missing.jpg"])
    order = StepOrder(4, 4, seed=0, start=0, stop=1)
    [batch] = training_loader(dataset, order, workers=0, pin_memory=False)
    assert batch.indices.tolist() == [0]
    assert len(batch.unreadable) == 3
    told = " ".join(batch.unreadable)
    for name in ("cut.jpg cannot be read: ", "no-header.jpg cannot be read", "There is no picture"):
        assert name in told
