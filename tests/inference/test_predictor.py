"""A trained run as a predictor."""

import io
import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file

import comvex
from comvex.data.reading import read_picture
from comvex.data.sources import open_data
from comvex.data.transforms import Preprocessing
from comvex.errors import UserError
from comvex.inference.predictor import Predictor


def predictor_of(channels, *, full_depth):
    """A predictor for pictures of 4 x 4 pixels whose model does nothing."""
    how = Preprocessing((4, 4), channels, (0.5,) * channels, (0.25,) * channels, full_depth=full_depth)
    return Predictor(torch.nn.Identity(), preprocessing=how, labels=("a",), device=torch.device("cpu"))


def grey(dtype):
    """Values 4 x 6 of all sizes."""
    values = np.random.default_rng(0).integers(0, 2**16, (4, 6))
    return (values.astype(np.float32) / 7).astype(dtype) if np.dtype(dtype).kind == "f" else values.astype(dtype)


def test_predictions_are_the_models_own(small_run):
    predictor = comvex.load(small_run)
    pictures = [open_data("digits").test.read(index, channels=1) for index in range(5)]
    with torch.no_grad():
        inputs = torch.stack([predictor.transform(picture) for picture in pictures])
        expected = predictor.model(inputs).softmax(dim=1)
    answers = predictor.predict(pictures, top=3)
    assert [len(answer) for answer in answers] == [3] * 5
    for answer, row in zip(answers, expected, strict=True):
        assert [entry.label for entry in answer] == [predictor.labels[i] for i in row.argsort(descending=True)[:3]]
        assert [entry.probability for entry in answer] == pytest.approx(row.sort(descending=True).values[:3].tolist())


def test_files_pillow_pictures_and_arrays_give_the_same(small_run, tmp_path):
    predictor = comvex.load(small_run)
    picture = open_data("digits").test.read(0, channels=1)
    picture.save(tmp_path / "digit.png")
    forms = [tmp_path / "digit.png", str(tmp_path / "digit.png"), picture, np.asarray(picture)]
    answers = predictor.predict(forms)
    assert answers == [answers[0]] * 4
    for form in forms:
        [alone] = predictor.predict(form)
        assert [entry.label for entry in alone] == [entry.label for entry in answers[0]]
    assert predictor.predict([]) == []
    assert predictor.probabilities([]).shape == (0, len(predictor.labels))


def test_batches_change_nothing(small_run):
    predictor = comvex.load(small_run)
    pictures = [open_data("digits").test.read(index, channels=1) for index in range(7)]
    together, apart = predictor.predict(pictures), predictor.predict(pictures, batch_size=2)
    for one, other in zip(together, apart, strict=True):
        assert [entry.label for entry in one] == [entry.label for entry in other]
        # float32 products of other shapes round differently
        assert [entry.probability for entry in one] == pytest.approx([entry.probability for entry in other], abs=1e-6)


def test_any_size_and_mode_of_picture_is_taken(small_run):
    predictor = comvex.load(small_run)
    for mode in ("L", "RGB", "RGBA", "CMYK", "P", "I;16", "1"):
        for size in ((1, 1), (3, 200), (500, 300)):
            [answer] = predictor.predict(Image.new("L", size, 77).convert(mode))
            assert sum(entry.probability for entry in answer) <= 1 + 1e-6


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "I;16"])
def test_transform_gives_what_predict_asks_the_model(mode, small_run, tmp_path):
    predictor, file = comvex.load(small_run), tmp_path / "picture.png"
    values = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    picture = (
        Image.fromarray(values).convert("L").convert(mode) if mode == "I;16" else Image.fromarray(values).convert(mode)
    )
    picture.save(file)
    expected = predictor.preprocessing.transform()(read_picture(file, channels=1))
    for form in (file, Image.open(file), picture):
        assert torch.equal(predictor.transform(form), expected)
    [answer] = predictor.predict(file, top=1)
    with torch.no_grad():
        probability = predictor.model(predictor.transform(picture)[None]).softmax(dim=1).max()
    assert answer[0].probability == pytest.approx(float(probability), abs=1e-6)


def test_a_pillow_picture_is_turned_as_its_file_is(small_run, tmp_path):
    predictor, file = comvex.load(small_run), tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright by a camera that writes its rows on their side
    ramp = np.linspace(0, 255, 16 * 16, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(ramp).save(file, exif=exif)
    with Image.open(file) as picture:
        assert torch.equal(predictor.transform(picture), predictor.transform(file))
        assert not torch.equal(predictor.transform(picture), predictor.transform(np.asarray(picture)))
        assert picture.getexif()[0x0112] == 6, "the picture itself stays as it is"


def save_pillow(picture):
    return lambda file: picture.save(file)


def save_tiff(values, **options):
    return lambda file: tifffile.imwrite(file, values, **options)


def save_turned(file):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey(np.uint16)).save(file, exif=exif)


WRITTEN = {
    "16-bit.pgm": save_pillow(Image.fromarray(grey(np.uint16))),
    "16-bit.png": save_pillow(Image.fromarray(grey(np.uint16))),
    "turned.png": save_turned,
    "turned.tif": save_turned,
    "palette.png": save_pillow(Image.fromarray(grey(np.uint8)).convert("RGB").quantize(5)),
    "transparent.png": save_pillow(Image.fromarray(np.dstack([grey(np.uint8)] * 4))),
    "two levels.png": save_pillow(Image.fromarray(grey(np.uint8) > 99)),
    "uint16.tif": save_tiff(grey(np.uint16)),
    "uint16 of a Mac.tif": save_tiff(grey(np.uint16), byteorder=">"),
    "int16.tif": save_tiff(grey(np.int16)),
    "int32.tif": save_tiff(grey(np.int32)),
    "uint32.tif": save_tiff(grey(np.uint32) * 65537),
    "float32.tif": save_tiff(np.where(grey(np.uint8) > 99, np.nan, grey(np.float32)).astype(np.float32)),
    "white where it is least.tif": save_tiff(grey(np.uint16), photometric="miniswhite"),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_of_full_depth_reads_a_pillow_picture_as_its_file(name, channels, tmp_path):
    predictor = predictor_of(channels, full_depth=True)
    WRITTEN[name](tmp_path / name)
    expected = predictor.read(tmp_path / name)
    # Not by its name: then Pillow takes the width of an uncompressed TIFF on its side for its height
    with Image.open(io.BytesIO((tmp_path / name).read_bytes())) as picture:
        np.testing.assert_array_equal(predictor.read(picture), expected)
        np.testing.assert_array_equal(predictor.read(picture), expected, err_msg="when it has been loaded")


def test_integers_of_a_pillow_picture_that_may_be_of_any_range_are_refused():
    predictor = predictor_of(1, full_depth=True)
    assert predictor.read(Image.fromarray(grey(np.int32))).max() <= 1
    for value in (-1, 65536):
        with pytest.raises(ValueError, match=f"values from {value} to {value}, but Pillow's mode I stands for 16 bits"):
            predictor.read(Image.fromarray(np.full((4, 4), value, np.int32)))


@pytest.mark.parametrize("full_depth", [False, True])
def test_a_damaged_pillow_picture_is_refused_in_a_sentence(full_depth, tmp_path):
    predictor, written = predictor_of(3, full_depth=full_depth), io.BytesIO()
    Image.effect_noise((64, 64), 99).save(written, "JPEG")
    (tmp_path / "half.jpg").write_bytes(written.getvalue()[:1000])
    for source, name in ((tmp_path / "half.jpg", r"half\.jpg"), (io.BytesIO(written.getvalue()[:1000]), "in memory")):
        with Image.open(source) as picture, pytest.raises(ValueError, match=f"{name} cannot be read: image file is tr"):
            predictor.read(picture)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32, np.int64, np.uint32])
def test_a_model_of_8_bits_refuses_arrays_that_it_would_have_to_guess_the_range_of(dtype):
    predictor = predictor_of(1, full_depth=False)
    with pytest.raises(ValueError, match=rf"shape \(4, 6\) and type {np.dtype(dtype)} is no picture: it must be"):
        predictor.read(grey(dtype))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", bool])
def test_a_model_of_8_bits_takes_arrays_of_bytes_16_bits_and_bools(dtype):
    values = (grey(np.uint16) > 9999).astype(dtype)
    expected = values * 255 if dtype != np.uint8 else values  # 16 bits by their own range
    np.testing.assert_array_equal(np.asarray(predictor_of(1, full_depth=False).read(values)), expected)


def test_what_is_no_picture_is_refused(small_run):
    predictor = comvex.load(small_run)
    with pytest.raises(ValueError, match=r"shape \(4, 4, 7\)"):
        predictor.predict(np.zeros((4, 4, 7), np.uint8))
    for shape in ((4,), (0, 4)):
        with pytest.raises(ValueError, match="is no picture"):
            predictor.predict(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="type int"):
        predictor.predict([3])
    with pytest.raises(ValueError, match="There is no picture"):
        predictor.predict("missing.png")


def test_damaged_missing_and_foreign_weights_are_refused_by_name(small_run_copy):
    weights = small_run_copy / "weights" / "best.safetensors"
    config = small_run_copy / "weights" / "config.json"
    content = config.read_text()

    def refused(message):
        with pytest.raises(ValueError, match=message):
            comvex.load(small_run_copy)

    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1  # one bit inside a tensor: safetensors itself would not notice
    weights.write_bytes(damaged)
    load_file(weights)
    refused("damaged: their SHA-256")
    damaged[-5] ^= 1
    weights.write_bytes(damaged)
    comvex.load(small_run_copy)

    config.write_text(json.dumps(json.loads(content) | {"format": 99}))
    refused("format 99")
    config.write_text(content[:100])
    refused("config.json is damaged")
    config.unlink()
    refused("belong to a config.json beside them, which is missing")
    config.write_text(content)
    weights.unlink()
    refused(r"best\.safetensors is missing: the run's comvex train writes it again")
    (small_run_copy / "metrics.csv").unlink()
    refused("has no weights yet")


def test_a_weights_file_alone_is_enough(small_run):
    weights = small_run / "weights" / "last.safetensors"
    assert comvex.load(weights).labels == tuple("0123456789")


def test_devices_that_are_not_there_are_refused(small_run):
    with pytest.raises(ValueError, match="device is 'tpu'"):
        comvex.load(small_run, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds none on this machine"):
            comvex.load(small_run, device="cuda")


def test_less_than_one_class_is_refused(small_run):
    for top in (0, -1):
        with pytest.raises(UserError, match=f"top is {top}: it must be a whole number of at least 1"):
            comvex.load(small_run).predict(np.zeros((8, 8), np.uint8), top=top)
