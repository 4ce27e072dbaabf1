"""Pictures of more than 8 bits of grey or RGB, from the file to a trained model."""

from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

import comvex
from comvex.data.full_depth import as_values, deep_channels, fit_channels, read_values, turn_upright
from comvex.data.reading import UnreadablePictureError
from comvex.data.sources import open_data
from comvex.errors import UserError
from comvex.training.recipe import Architecture, Recipe
from comvex.training.trainer import train


def numbers(*shape, dtype=np.uint16):
    generator = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return generator.normal(0, 1000, shape).astype(dtype)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def write_png16(file, values, *, exif=None):
    """A 16-bit PNG written by hand: Pillow writes 16 bits of grey only."""
    import struct
    import zlib

    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if exif is not None:
        chunks.insert(2, (b"eXIf", exif.tobytes()))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks))


def overwrite(file, tag, value):
    """Give a tag of a TIFF file another value, whatever its data are."""
    with tifffile.TiffFile(file, mode="r+b") as tiff:
        tiff.pages.first.tags[tag].overwrite(value)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_png_keeps_every_bit(tmp_path, channels):
    values = numbers(7, 5, channels)
    write_png16(tmp_path / "x.png", values)
    assert deep_channels(tmp_path / "x.png") == channels
    np.testing.assert_array_equal(np.round(read_values(tmp_path / "x.png", channels=channels) * 65535), values)


def test_16_bit_grey_of_pillow_keeps_every_bit(tmp_path):
    values = numbers(7, 5)
    for ending in ("png", "tif", "pgm"):
        Image.fromarray(values).save(tmp_path / f"x.{ending}")
        assert deep_channels(tmp_path / f"x.{ending}") == 1
        read = read_values(tmp_path / f"x.{ending}", channels=1)
        np.testing.assert_allclose(read[..., 0] * 65535, values, atol=0.01)


def test_transparent_16_bit_png_is_laid_on_white(tmp_path):
    values = numbers(4, 4, 4)
    values[0, 0, 3], values[1, 1, 3] = 0, 65535
    write_png16(tmp_path / "x.png", values)
    read = read_values(tmp_path / "x.png", channels=3)
    assert read[0, 0].tolist() == [1, 1, 1]
    np.testing.assert_allclose(read[1, 1] * 65535, values[1, 1, :3], atol=0.01)


LAYOUTS = {
    "samples of a pixel together": ((9, 11, 5), {"photometric": "minisblack", "planarconfig": "contig"}, False),
    "planes of samples": ((5, 9, 11), {"photometric": "minisblack", "planarconfig": "separate"}, True),
    "pages": ((5, 9, 11), {}, True),
    "pages without a word about them": ((5, 9, 11), {"metadata": None}, True),
    "channels last, written as pages": ((9, 11, 5), {}, False),
    "ImageJ": ((5, 9, 11), {"imagej": True}, True),
    "OME": ((5, 9, 11), {"ome": True, "metadata": {"axes": "CYX"}}, True),
    "compressed": ((9, 11, 5), {"planarconfig": "contig", "photometric": "minisblack", "compression": "zlib"}, False),
    "big-endian BigTIFF": ((5, 9, 11), {"bigtiff": True, "byteorder": ">"}, True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_tiff_with_channels_keeps_its_values_however_it_is_laid_out(tmp_path, layout, dtype):
    shape, options, channels_first = LAYOUTS[layout]
    values = numbers(*shape, dtype=dtype)
    tifffile.imwrite(tmp_path / "x.tif", values, **options)
    assert deep_channels(tmp_path / "x.tif") == 5
    read = read_values(tmp_path / "x.tif", channels=5)
    expected = np.moveaxis(values, 0, -1) if channels_first else values
    largest = 65535 if dtype == np.uint16 else 1
    np.testing.assert_allclose(read, expected.astype(np.float64) / largest, rtol=1e-6)
    assert read.dtype == np.float32


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [(np.uint8, 255), (np.int16, 32767), (np.uint32, 2**32 - 1), (np.int8, 127), (np.float64, 1), (np.float16, 1)],
)
def test_integers_are_divided_by_the_largest_of_their_type_and_floats_are_as_they_are(tmp_path, dtype, largest):
    values = numbers(6, 7, 5, dtype=dtype)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack", planarconfig="contig")
    np.testing.assert_allclose(
        read_values(tmp_path / "x.tif", channels=5), values.astype(np.float64) / largest, rtol=1e-6
    )


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_8_bit_tiff_of_pillow_is_read_as_ever(tmp_path, mode):
    Image.new("RGB", (8, 6), (200, 30, 40)).convert("L").convert(mode).save(tmp_path / "x.tif")
    assert deep_channels(tmp_path / "x.tif") is None
    read = read_values(tmp_path / "x.tif", channels=3)
    assert read.shape == (6, 8, 3)
    assert 0 <= read.min() <= read.max() <= 1


def test_pages_of_an_8_bit_document_are_not_channels(tmp_path):
    pages = [Image.new("L", (8, 6), value) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    assert deep_channels(tmp_path / "scan.tif") is None


# No program is at hand that writes these, so the tag of what is not packed says so
LZW, ZSTD = 5, 50000
without_imagecodecs = pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs is installed")


@pytest.mark.parametrize(
    ("dtype", "predictor"), [(np.uint16, 1), (np.uint16, 2), (np.int32, 1), (np.float32, 1), (np.float32, 3)]
)
def test_one_channel_in_a_compression_that_tifffile_lacks_keeps_every_bit(tmp_path, dtype, predictor):
    values = numbers(70, 50, dtype=dtype)
    Image.fromarray(values).save(tmp_path / "x.tif", compression="tiff_lzw", tiffinfo={317: predictor})
    assert deep_channels(tmp_path / "x.tif") == 1
    np.testing.assert_array_equal(read_values(tmp_path / "x.tif", channels=1), as_values(values))


def test_a_picture_with_lzw_is_turned_once_and_white_where_it_is_least_if_its_header_says_so(tmp_path):
    values, exif = numbers(4, 6), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "x.tif", compression="tiff_lzw", exif=exif)
    expected = as_values(np.rot90(values, -1))
    np.testing.assert_array_equal(read_values(tmp_path / "x.tif", channels=1), expected)
    overwrite(tmp_path / "x.tif", "PhotometricInterpretation", 0)
    np.testing.assert_array_equal(read_values(tmp_path / "x.tif", channels=1), 1 - expected)


@without_imagecodecs
@pytest.mark.parametrize(
    ("compression", "name"),
    [
        (LZW, "LZW"),
        pytest.param(
            ZSTD, "ZSTD", marks=pytest.mark.skipif(find_spec("compression") is not None, reason="Python has it")
        ),
    ],
)
def test_what_needs_another_package_is_said_with_its_name(tmp_path, compression, name):
    write_tiff(tmp_path / "x.tif", numbers(8, 8, 5))
    overwrite(tmp_path / "x.tif", "Compression", compression)
    message = rf"compression {name}, predictor NONE, 16 bits\) need the package imagecodecs: pip install imagecodecs\.$"
    with pytest.raises(UnreadablePictureError, match=message):
        read_values(tmp_path / "x.tif", channels=5)


@without_imagecodecs
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_big_endian_files_that_pillow_reads_with_exchanged_bytes_are_left_to_imagecodecs(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "x.tif", numbers(8, 8, dtype=dtype), byteorder=">")
    overwrite(tmp_path / "x.tif", "Compression", LZW)
    with pytest.raises(UnreadablePictureError, match="pip install imagecodecs"):
        read_values(tmp_path / "x.tif", channels=1)


@pytest.mark.parametrize("premultiplied", [False, True])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("colours", range(1, 6))
def test_opacity_after_any_number_of_channels_lays_them_on_white(tmp_path, colours, planes, premultiplied):
    values = numbers(6, 7, colours + 1)
    tifffile.imwrite(
        tmp_path / "x.tif",
        values if planes == "contig" else np.moveaxis(values, -1, 0),
        photometric="minisblack",
        planarconfig=planes,
        extrasamples=[0] * (colours - 1) + [1 if premultiplied else 2],
    )
    assert deep_channels(tmp_path / "x.tif") == colours
    channels, opacity = values[..., :-1] / 65535, values[..., -1:] / 65535
    expected = (channels if premultiplied else channels * opacity) + 1 - opacity
    np.testing.assert_allclose(read_values(tmp_path / "x.tif", channels=colours), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_opacity_of_16_bits_does_what_that_of_8_bits_does(tmp_path, kind):
    values = numbers(9, 8, 4, dtype=np.uint8)
    values[..., :3] = np.minimum(values[..., :3], values[..., 3:])  # none is brighter than its opacity allows
    for name, array in (("8.tif", values), ("16.tif", values.astype(np.uint16) * 257)):
        tifffile.imwrite(tmp_path / name, array, photometric="rgb", extrasamples=[kind])
    of_8_bits, of_16_bits = (read_values(tmp_path / name, channels=3) for name in ("8.tif", "16.tif"))
    np.testing.assert_allclose(of_16_bits, of_8_bits, atol=1.5 / 255)  # Pillow rounds twice


def test_what_is_white_where_it_is_least_is_put_right_at_every_depth(tmp_path):
    values = numbers(9, 8, dtype=np.uint8)
    for name, array in (("8.tif", values), ("16.tif", values.astype(np.uint16) * 257)):
        tifffile.imwrite(tmp_path / name, array, photometric="miniswhite")
        read = read_values(tmp_path / name, channels=1)[..., 0]
        np.testing.assert_allclose(read, 1 - values / 255, atol=1e-6)


def test_white_opaque_and_least_in_one_file(tmp_path):
    values = numbers(5, 4, 2)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="miniswhite", planarconfig="contig", extrasamples=[2])
    darkness, opacity = np.moveaxis(values / 65535, -1, 0)
    read = read_values(tmp_path / "x.tif", channels=1)[..., 0]
    np.testing.assert_allclose(read, 1 - darkness * opacity, atol=1e-6)


def test_a_single_sample_is_never_the_opacity(tmp_path):
    values = numbers(5, 4)
    Image.fromarray(values).save(tmp_path / "x.tif", tiffinfo={338: 2})
    assert deep_channels(tmp_path / "x.tif") == 1
    np.testing.assert_array_equal(read_values(tmp_path / "x.tif", channels=1), as_values(values))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_16_bit_png_is_applied_as_that_of_8_bits(tmp_path, channels, orientation):
    values, exif = numbers(4, 6, channels, dtype=np.uint8), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values.squeeze()).save(tmp_path / "8.png", exif=exif)
    write_png16(tmp_path / "16.png", values.astype(np.uint16) * 257, exif=exif)
    of_8_bits, of_16_bits = (read_values(tmp_path / name, channels=min(channels, 3)) for name in ("8.png", "16.png"))
    np.testing.assert_allclose(of_16_bits, of_8_bits, atol=1.5 / 255 if channels == 4 else 1e-6)  # Pillow rounds


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(orientation):
    values = numbers(4, 6, 3, dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(values)
    picture.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(turn_upright(values, orientation), np.asarray(ImageOps.exif_transpose(picture)))


def test_orientation_of_a_deep_tiff_is_applied(tmp_path):
    values = numbers(4, 6)
    tifffile.imwrite(tmp_path / "x.tif", values, extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(
        np.round(read_values(tmp_path / "x.tif", channels=1)[..., 0] * 65535), np.rot90(values, -1)
    )


def test_what_is_not_finite_takes_the_smallest_value_of_its_channel(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    values[0, 0, 1], values[2, 2, 1], values[1, 1, 0] = np.nan, -np.inf, np.inf
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack", planarconfig="contig")
    read = read_values(tmp_path / "x.tif", channels=2)
    assert (read[0, 0, 1], read[2, 2, 1], read[1, 1, 0]) == (3, 3, 0)


@given(found=st.integers(1, 6), wanted=st.integers(1, 6))
def test_channels_are_never_guessed(found, wanted):
    values = np.random.default_rng(0).random((2, 3, found)).astype(np.float32)
    possible = found in (1, wanted) or (found, wanted) == (3, 1)
    if not possible:
        with pytest.raises(UserError, match=f"has {found} channels, but {wanted} are wanted"):
            fit_channels(values, wanted)
        return
    fitted = fit_channels(values, wanted)
    assert fitted.shape == (2, 3, wanted)
    if found == wanted or found == 1:
        assert all((fitted[..., index] == values[..., min(index, found - 1)]).all() for index in range(wanted))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
def test_damaged_files_are_named(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", numbers(60, 60, 5), photometric="minisblack", planarconfig="contig")
    write_png16(tmp_path / "x.png", numbers(60, 60, 3))
    Image.fromarray(numbers(60, 60)).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    for name in ("x.tif", "x.png", "lzw.tif"):
        content = (tmp_path / name).read_bytes()
        for kept in (len(content) // 2, 40, 9, 0):
            (tmp_path / name).write_bytes(content[:kept])
            with pytest.raises(UnreadablePictureError, match=name) as caught:
                read_values(tmp_path / name, channels=5)
            assert "\n" not in str(caught.value)
    with pytest.raises(UnreadablePictureError, match="There is no picture"):
        read_values(tmp_path / "missing.tif", channels=5)


def test_what_is_no_picture_is_refused():
    for array in (np.zeros(3), np.zeros((2, 2, 2, 2)), np.zeros((0, 4)), np.zeros((2, 2), complex)):
        with pytest.raises(UserError, match="is no picture"):
            as_values(array)


# Whole data sets


def write_classes(root, *, num=30, channels=5, write=tifffile.imwrite, ending="tif"):
    """Two classes that differ in one channel, by less than one step of 8 bits of the 16-bit range."""
    generator = np.random.default_rng(0)
    for label in range(2):
        folder = root / f"class {label}"
        folder.mkdir(parents=True)
        for index in range(num):
            values = generator.integers(1000, 1100, (20, 24, channels), dtype=np.uint16)
            values[..., -1] += 120 * label
            write(folder / f"{index}.{ending}", values)


def write_tiff(file, values):
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig")


def test_a_folder_of_deep_pictures_is_read_at_full_depth_with_its_own_mean_and_deviation(tmp_path):
    write_classes(tmp_path, write=write_tiff)
    (tmp_path / "class 0" / "0.tif").write_text("damaged")
    data = open_data(str(tmp_path))
    assert (data.full_depth, data.channels) == (True, 5)
    everything = [
        part.read(index, channels=5)
        for part in [data.train]
        for index in range(len(part))
        if part.name(index) != str(tmp_path / "class 0" / "0.tif")
    ]
    np.testing.assert_allclose(data.mean, np.mean(everything, axis=(0, 1, 2), dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(data.std, np.std(everything, axis=(0, 1, 2), dtype=np.float64), rtol=1e-5)
    again = open_data(str(tmp_path))
    assert (data.mean, data.std) == (again.mean, again.std)


@without_imagecodecs
def test_why_no_picture_can_be_read_is_said(tmp_path):
    write_classes(tmp_path, write=write_tiff)
    for file in tmp_path.rglob("*.tif"):
        overwrite(file, "Compression", LZW)
    message = r"^None of the training pictures can be read: The picture .*\.tif cannot be read: .*LZW.* pip install"
    with pytest.raises(UserError, match=message):
        open_data(str(tmp_path))


def test_one_deep_picture_among_photographs_changes_nothing(tmp_path, caplog):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(8):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{index}.png")
    Image.fromarray(numbers(8, 8)).save(tmp_path / "a" / "3.png")
    data = open_data(str(tmp_path))
    assert (data.full_depth, data.channels) == (False, 3)


@pytest.mark.parametrize(("channels", "ending"), [(5, "tif"), (1, "png")])
def test_a_model_learns_what_8_bits_would_have_lost_and_carries_how_to_read(tmp_path, channels, ending):
    def write(file, values):
        write_tiff(file, values) if ending == "tif" else write_png16(file, values)

    write_classes(tmp_path / "data", channels=channels, write=write, ending=ending)
    model = Architecture(dim=32, num_local_layers=1, num_nonlocal_layers=1, image_size=16, patch_size=8)
    recipe = Recipe(data=str(tmp_path / "data"), model=model, steps=25, batch_size=16, learning_rate=5e-3)
    summary = train(recipe, tmp_path / "run")
    assert summary["top1"] == 100
    predictor = comvex.load(tmp_path / "run")
    assert predictor.preprocessing.full_depth
    assert predictor.preprocessing.channels == channels
    file = tmp_path / "data" / "class 1" / f"7.{ending}"
    array = tifffile.imread(file) if ending == "tif" else np.asarray(Image.open(file))
    from_file, from_array = predictor.probabilities([file]), predictor.probabilities([array])
    assert torch.equal(from_file, from_array)
    assert predictor.predict(file)[0][0].label == "class 1"
    with pytest.raises(UserError, match="has 2 channels"):
        predictor.predict(np.zeros((4, 4, 2), np.uint16))
