"""Safe reading of image files: 8-bit RGB as a viewer would show it, or a DataError naming the file."""

from __future__ import annotations

import contextlib
import io
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from tbkin_core.errors import DataError
from tbkin_core.features.regions import Pixels

MAX_PIXELS = 150_000_000
"""Largest image that is decoded, such as a page of A4 scanned at 1,200 dpi (139 megapixels).

As Pillow keeps it, of 4 bytes a pixel, and laid over white beside that it takes 1.2 GB. Decoders of some
formats keep more beside it, and decode smaller ones (`_MOST_OF`), so that no picture takes 2 GB.
"""

_MOST_OF = {"WEBP": 60_000_000, "JPEG2000": 60_000_000, "AVIF": 60_000_000}
_STRIP = 1 << 24  # pixels that are converted at once

# Raster formats only: EPS and WMF would run other programs, PDF and the stubs cannot be read at all.
_FORMATS = (
    "JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "MPO", "PPM", "JPEG2000", "AVIF", "TGA", "ICO"
)  # fmt: skip

# EXIF tag 0x0112 to the operation that shows the image upright.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_LOOKED_AT = 40  # pictures, evenly over all
_SMALL = 256  # pixels along the longer side
_EQUAL = 2  # of 255, the most that a step to a neighbour may be for the two to be of one colour
_FLAT = 0.45  # share of pixels; from it on a picture is drawn

_WHITE = 65535  # of 16 bits
_BITS_PER_SAMPLE, _TILE_WIDTH, _TILE_LENGTH = 258, 322, 323  # tags of TIFF

# Filters of the warnings module are global to the process, so threads change them one at a time.
_warnings_lock = threading.Lock()
# Our own limits tell what is too large; some formats warn again while they are decoded.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_ANOTHER = "name another file, or take it from where it came from again"


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """An image file that lies in memory alone; `load_image` reads it as it reads those on disk."""

    name: str  # what messages call it
    content: bytes

    @property
    def stem(self) -> str:
        """Its name without the suffix, as of a path."""
        return Path(self.name).stem

    def open(self, mode: str = "rb") -> BinaryIO:
        """Its content to read from."""
        return io.BytesIO(self.content)

    def __str__(self) -> str:
        return self.name


def load_image(path: Path | ImageBytes, max_side: int | None = None) -> tuple[Pixels, int, int]:
    """Read an image file as 8-bit RGB.

    The EXIF orientation is applied; of an animation or a multi-page file the first frame is taken;
    transparency is laid over white; 16-bit values are scaled to 8 bits, and those of a TIFF that says that
    it has 12 bits from 12 (`used_bits` finds other files that use fewer than 16).

    Args:
        path: The image file, or its content.
        max_side: Longest side of the returned array in pixels; larger images are scaled down while they
            are decoded where the format allows it, smaller ones are left as they are. None: full size.

    Returns:
        The pixels (H, W, 3) uint8, and the width and height of the full image (after EXIF orientation),
        which differ from W and H where `max_side` scaled it.

    Raises:
        DataError: The file is missing, empty, truncated, broken, not an image, or larger than `MAX_PIXELS`.
    """
    path = path if isinstance(path, ImageBytes) else Path(path)
    if max_side is not None and max_side < 1:
        raise DataError(f"{path}: max_side must be at least 1, got {max_side}")
    if (len(path.content) if isinstance(path, ImageBytes) else _file_size(path)) == 0:
        raise DataError(
            f"{path}: is empty (0 bytes), expected an image", hint="copy or download the file again"
        )
    try:
        with _open(path) as image:
            return _decode(image, path, max_side)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{path}: is not an image that can be read (JPEG, PNG, GIF, WebP, BMP, TIFF, ...)",
            hint="remove the file from the directory, or convert it to PNG or JPEG",
        ) from None
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        pixels = f"{int(found[1]):,} pixels" if found else "of more pixels than Pillow decodes"
        raise _too_large(path, pixels) from None
    # Pillow's decoders let all of these through on broken input.
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: the image is truncated or broken ({reason})", hint="copy or download the file again"
        ) from None
    except (MemoryError, OverflowError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: the image cannot be decoded ({reason})", hint=_ANOTHER) from None


def _file_size(path: Path) -> int:
    """Bytes of a file; DataError where it is none that can be read."""
    try:
        size = path.stat().st_size
    except OSError as error:
        reason = "the link leads nowhere" if path.is_symlink() else error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason})", hint=_ANOTHER) from None
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "no file"
        raise DataError(f"{path}: is {kind}, expected an image file", hint=_ANOTHER)
    return size


@contextlib.contextmanager
def _open(path: Path | ImageBytes) -> Iterator[Image.Image]:
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    # Of a path Pillow maps uncompressed pixels into memory, and turned ones in the wrong shape.
    with path.open("rb") as file:
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=formats)
        with image:
            yield image


def _decode(image: Image.Image, path: Path | ImageBytes, max_side: int | None) -> tuple[Pixels, int, int]:
    width, height = image.size
    if width < 1 or height < 1:
        raise DataError(f"{path}: the image has no pixels ({width} x {height})", hint=_ANOTHER)
    _refuse_large(image, path)
    longest = max(width, height)
    scale = min(1.0, (max_side or longest) / longest)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    if target != (width, height) and image.format in ("JPEG", "MPO"):
        image.draft(image.mode, target)  # decodes at 1/2, 1/4 or 1/8, never below the target
    image.load()
    _refuse_large(image, path)  # an icon's own picture may be larger than the icon says
    orientation = _orientation(image)  # after loading: the TIFF plugin applies it itself and removes the tag
    flat = _flat(image)
    if flat.size != target:
        flat = flat.resize(target, Image.Resampling.BILINEAR, reducing_gap=3.0)
    if orientation in _TRANSPOSE:
        flat = flat.transpose(_TRANSPOSE[orientation])
        if orientation >= 5:  # the four orientations with a quarter turn
            width, height = height, width
    pixels = np.empty((flat.height, flat.width, 3), np.uint8)
    for top, strip in _strips(flat):
        pixels[top : top + strip.height] = np.asarray(strip.convert("RGB"))
    return pixels, width, height


def _refuse_large(image: Image.Image, path: Path | ImageBytes) -> None:
    pixels, most = image.width * image.height, _MOST_OF.get(image.format or "", MAX_PIXELS)
    if pixels > most:
        raise _too_large(path, f"{image.width:,} x {image.height:,}, which is {pixels:,} pixels", most)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = [image.tag_v2.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        if not all(isinstance(side, int) for side in tile) or tile[0] * tile[1] > MAX_PIXELS:
            raise _too_large(path, f"in tiles of {tile[0]} x {tile[1]}")


def count_photos(paths: Sequence[Path]) -> tuple[int, int]:
    """How many of some pictures are photographs rather than drawings, and how many were looked at.

    In a photograph few pixels equal their neighbours. Of the medians seen, three photo collections had 9 to
    16 % of such pixels, drawn scenes and shapes 71 to 92 %. Pictures that cannot be read do not count.
    """
    photos = looked_at = 0
    for path in paths[:: max(-(-len(paths) // _LOOKED_AT), 1)]:
        with contextlib.suppress(DataError):
            small = Image.fromarray(load_image(path, max_side=_SMALL)[0])
            small.thumbnail((_SMALL, _SMALL), Image.Resampling.BOX)
            pixels = np.asarray(small, np.int16)
            here = pixels[:-1, :-1]
            steps = np.maximum(np.abs(pixels[1:, :-1] - here), np.abs(pixels[:-1, 1:] - here)).max(axis=-1)
            if steps.size:
                looked_at += 1
                photos += float((steps <= _EQUAL).mean()) < _FLAT
    return photos, looked_at


def used_bits(path: Path | ImageBytes) -> int:
    """How many bits the values of a 16-bit picture take, where these are 14 or fewer; 0 for all others.

    Medical pictures are often kept so, and are then read as nearly black. A file does not say whether it is
    meant to be.
    """
    try:
        with _open(path) as image:
            deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
            if not deep or _white(image) != _WHITE or image.width * image.height > MAX_PIXELS:
                return 0
            bits = int(max(np.asarray(strip).max() for _, strip in _strips(image))).bit_length()
    except Exception:  # whatever is wrong with it, reading it has told already
        return 0
    return max(bits, 8) if 0 < bits <= 14 else 0


def darkness(bits: int) -> str:
    """What people should know of a 16-bit picture that uses so many bits, behind its name and a verb."""
    return (
        f"read as dark: of 16 bits, values below {1 << bits:,}; where they are meant to have {bits} bits,"
        f" multiply them by {1 << (16 - bits)}"
    )


def is_turned(path: Path) -> bool:
    """Whether an EXIF tag shows a picture otherwise than its pixels lie; False where it cannot be read."""
    try:
        with _open(path) as image:
            return image.width * image.height <= MAX_PIXELS and _orientation(image) != 1
    except Exception:  # whatever is wrong with it, reading it has told already
        return False


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1-8; 1 where there is none or the EXIF block is broken."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = image.getexif().get(0x0112, 1)
        except Exception:  # any kind of damage in metadata must not cost the picture
            return 1
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """An image from top to bottom in parts, each with its first row: what is made of one takes little."""
    rows = max(_STRIP // image.width, 1)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _flat(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB, or L where it is grey."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":  # 16-bit, 32-bit and floating point, one channel
        return _converted(image, "L", _to_8_bit(image))
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _converted(image, "RGB", _over_white)
    return image if mode == "RGB" else image.convert("RGB")


def _converted(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    whole = Image.new(mode, image.size)
    for top, strip in _strips(image):
        whole.paste(convert(strip), (0, top))
    return whole


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _white(image: Image.Image) -> int:
    """The value of white in a picture of up to 16 bits; Pillow reads TIFFs of 12 bits as if of 16."""
    twelve = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_BITS_PER_SAMPLE) == (12,)
    return 4095 if twelve else _WHITE


def _to_8_bit(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What takes parts of an image of one channel, of 16 or 32 bits or floating point, to 8 bits."""

    def rounded(values: NDArray) -> Image.Image:
        return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))

    arrays = (np.asarray(strip) for _, strip in _strips(image))
    if image.mode == "F":
        peak = max(float(_finite(values).max()) for values in arrays)
        factor = np.float32(255.0 if peak <= 1.0 else 1.0 if peak <= 255.0 else 255.0 / peak)
        return lambda strip: rounded(_finite(np.asarray(strip)) * factor)
    top, bytes_each = 0, 0
    for values in arrays:
        top, bytes_each = max(top, int(values.max())), values.dtype.itemsize
    white = _white(image)
    divisor = np.float32(1.0 if bytes_each > 2 and top <= 255 else (white if top <= _WHITE else top) / 255.0)
    return lambda strip: rounded(np.asarray(strip).astype(np.float32) / divisor)


def _finite(values: NDArray) -> NDArray[np.float32]:
    return np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _too_large(path: Path | ImageBytes, pixels: str, most: int = MAX_PIXELS) -> DataError:
    return DataError(
        f"{path}: the image is too large ({pixels}; at most {most:,} pixels are decoded, such as"
        f" {'15,000 x 10,000' if most == MAX_PIXELS else '7,500 x 8,000'}): scale it down, or leave it out"
    )
