"""From the bytes of a picture file to an 8-bit Pillow picture that is grey or RGB and the right way up."""

import errno
import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageOps

from comvex.errors import UserError

SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
"""Endings of the files that count as pictures in a folder, in lower case."""

CHANNEL_MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for each number of channels that 8-bit pictures can be read with."""

WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes with more than eight bits of grey."""

DECODING_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""What decoders raise for a damaged file: by now many kinds of error. See also ``machine_is_short``."""

LARGEST_ARRAY = 2**34
"""Bytes; for a larger array no machine is to blame, but a damaged header."""

JPEG_START = b"\xff\xd8\xff"
ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)
"""EXIF's number for how the camera was held, and its values that exchange height and width."""


class UnreadablePictureError(UserError):
    """A file that is no picture, or a damaged one; the message names it and says why."""


class StoredPicture(Protocol):
    """An encoded picture inside something larger, such as a tar file; ``str()`` of it is its name in messages."""

    def content(self) -> bytes:
        """The bytes that would be its file; raises ``OSError`` if they cannot be had."""
        ...


PictureFile = str | Path | StoredPicture


def read_picture(file: PictureFile, *, channels: int = 3) -> Image.Image:
    """The picture in a file, turned as its EXIF orientation says, with 1 (grey) or 3 (RGB) channels of 8 bits.

    Raises ``UnreadablePictureError`` if there is no such file, or Pillow cannot decode all of it; ``MemoryError`` or
    ``OSError`` if it is the machine that has no memory or no open files left.
    """
    with blamed(file), open_picture(file) as stream:
        return decode(stream, channels=channels)


@dataclass(frozen=True)
class ReducibleJpeg:
    """A JPEG file whose header has been decoded; the rest can be had at a fraction of its size, which costs less."""

    file: PictureFile
    content: bytes
    size: tuple[int, int]
    """(height, width) in pixels of the whole picture, the right way up."""
    channels: int
    """1 (grey) or 3 (RGB)."""

    def decode(self, *, reduction: int = 1) -> Image.Image:
        """The picture as ``read_picture`` gives it, its sides divided by 1, 2, 4 or 8 and rounded up.

        A reduced one is the low frequencies of the file's own cosine transform (libjpeg's scaling). Raises
        ``UnreadablePictureError`` if the file is damaged.
        """
        with blamed(self.file):
            return decode(io.BytesIO(self.content), channels=self.channels, reduction=reduction)


def read_reducible(file: PictureFile, *, channels: int = 3) -> Image.Image | ReducibleJpeg:
    """A JPEG file with all but its header still to be decoded, any other picture as ``read_picture`` gives it.

    Raises what ``read_picture`` does; that a JPEG file is damaged may show only when it is decoded.
    """
    with blamed(file), open_picture(file) as stream:
        start = stream.read(len(JPEG_START))
        stream.seek(0)
        if start != JPEG_START:
            return decode(stream, channels=channels)
        content = stream.read()
        with Image.open(io.BytesIO(content)) as picture:
            width, height = picture.size
            if picture.getexif().get(ORIENTATION) in ON_ITS_SIDE:
                width, height = height, width
            return ReducibleJpeg(file, content, (height, width), channels)


def decode(stream: BinaryIO, *, channels: int, reduction: int = 1) -> Image.Image:
    """An encoded picture, upright, with 1 or 3 channels of 8 bits; a JPEG one divided by 1, 2, 4 or 8."""
    with Image.open(stream) as picture:
        if reduction > 1:
            picture.draft(None, (picture.width // reduction, picture.height // reduction))
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)  # a copy of a large picture takes as long as much of the rest
        return to_channels(picture, channels=channels)


@contextmanager
def blamed(file: PictureFile) -> Iterator[None]:
    """Within it what a decoder raises becomes an ``UnreadablePictureError`` that names the file."""
    try:
        yield
    except DECODING_ERRORS as error:
        if machine_is_short(error):
            raise
        raise unreadable(file, error) from error


def machine_is_short(error: Exception) -> bool:
    """Whether memory or open files have run out, of which the picture in hand is innocent."""
    if isinstance(error, OSError):
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    if not isinstance(error, MemoryError):
        return False
    shape, dtype = getattr(error, "shape", ()), getattr(error, "dtype", None)  # NumPy's kind says what it was asked for
    return dtype is None or math.prod(shape) * dtype.itemsize <= LARGEST_ARRAY


def open_picture(file: PictureFile) -> BinaryIO:
    """The bytes of a picture as a stream."""
    return Path(file).open("rb") if isinstance(file, str | Path) else io.BytesIO(file.content())


def unreadable(file: PictureFile, error: Exception) -> UnreadablePictureError:
    """The error that names the file and says what is wrong with it."""
    if isinstance(error, FileNotFoundError):
        return UnreadablePictureError(f"There is no picture {printable(file)}.")
    if isinstance(error, Image.UnidentifiedImageError):
        with open_picture(file) as stream:
            is_empty = not stream.read(1)
        reason = "it is empty" if is_empty else "it is in no picture format that Pillow knows"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = str(error).strip().rstrip(".") or type(error).__name__
    return UnreadablePictureError(f"The picture {printable(file)} cannot be read: {reason}.")


def printable(name: object) -> str:
    """A name that can be printed and written as UTF-8, also where a file system has bytes that are no text."""
    return os.fsencode(str(name)).decode("utf-8", errors="backslashreplace")


def to_channels(picture: Image.Image, *, channels: int) -> Image.Image:
    """Any Pillow picture as 8-bit grey (1 channel) or RGB (3 channels).

    Grey of more than eight bits is scaled by the picture's own range, darkest to 0 and lightest to 255 (Pillow alone
    would clip it to white). Transparent pictures are laid on white. What is so already is not copied.

    Raises ``ValueError`` for another number of channels.
    """
    if channels not in CHANNEL_MODES:
        raise UserError(f"channels is {channels}: pictures are read with 1 (grey) or 3 (RGB) channels.")
    if picture.mode in WIDE_MODES:
        picture = scale_wide_grey(picture)
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    mode = CHANNEL_MODES[channels]
    return picture if picture.mode == mode else picture.convert(mode)


def scale_wide_grey(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits as 8-bit grey by its own range; a picture of one value becomes black."""
    values = np.asarray(picture).astype(np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    scaled = (np.where(finite, values, low) - low) * (255 / (high - low) if high > low else 0)
    return Image.fromarray(np.round(scaled).astype(np.uint8))
