"""Files and pixels of images before a model sees them: limits, digests, the upright RGB form."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from typing import TYPE_CHECKING, Any

from easyeditor.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000
"""Larger images are refused: a small file may unpack to more than the memory holds."""
MAX_BYTES = 256 * 2**20
"""Larger files are refused before they are read."""
_CHUNK = 2**20


def check_file(path: str) -> None:
    """Refuse what is no regular file of at most ``MAX_BYTES``, before it is opened.

    Raises:
        ImageError: it is a folder, a device or a pipe, or larger.
        OSError: there is no such file.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise ImageError(
            f"The image {path!r} cannot be read (it is {kind}); give the path of an image file, "
            "e.g. a PNG or JPEG."
        )
    if status.st_size > MAX_BYTES:
        raise ImageError(
            f"The file {path!r} has {status.st_size / 2**20:.0f} MiB, and images of at most "
            f"{MAX_BYTES // 2**20} MiB are read; make it smaller first."
        )


def file_digest(path: str) -> str:
    """The sha256 of a regular file's bytes, in hexadecimal, read in pieces.

    Raises:
        ImageError: see :func:`check_file`.
        OSError: the file cannot be read.
    """
    check_file(path)
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def pixel_digest(picture: Image) -> str:
    """The sha256 of an upright RGB picture's size and pixels, in hexadecimal."""
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def upright(image: Any, path: str) -> Image:
    """A copy of a PIL image as RGB, turned as its EXIF data say.

    The trap: of 16 bits per pixel the upper eight stay.

    Raises:
        ImageError: it is damaged, empty or too large, or its pixels have a form (32-bit numbers)
            that does not say which value is white.
    """
    import PIL.ImageOps

    check_size(image, path)
    try:
        image.load()
    except Exception as error:  # of any type: a damaged file fails where it is damaged
        raise ImageError(
            f"The image {path!r} is damaged or cut off ({str(error) or repr(error)}); "
            "copy or save it again."
        ) from error
    if image.mode in {"I", "F"}:
        raise ImageError(
            f"The image {path!r} has 32 bits per pixel (mode {image.mode!r}), which do not say "
            "what is white; save it with 8 or 16 bits per channel."
        )
    if image.mode != "RGB":
        log.info("%s is %s, converted to RGB", path, image.mode)
    turned = PIL.ImageOps.exif_transpose(image)
    if turned.mode.startswith("I;16"):  # PIL would cut every value off at 255
        turned = turned.convert("I").point(lambda value: value / 256).convert("L")
    try:
        return turned.convert("RGB")
    except ValueError:
        raise ImageError(
            f"The image {path!r} has pixels of a form (mode {image.mode!r}) that cannot be read as "
            "RGB; save it as RGB or grey."
        ) from None


def check_size(image: Any, path: str) -> None:
    """Refuse an image without pixels, or with more than ``MAX_PIXELS``.

    Raises:
        ImageError: it is one.
    """
    width, height = image.size
    if not width or not height:
        raise ImageError(f"The image {path!r} is empty ({width} x {height}); give one with pixels.")
    if width * height > MAX_PIXELS:
        raise too_large(path, width * height)


def too_large(path: str, pixels: int | None) -> ImageError:
    """The error of an image with more than ``MAX_PIXELS`` pixels."""
    size = f"{pixels / 1e6:.0f} million" if pixels else "far too many"
    return ImageError(
        f"The image {path!r} has {size} pixels, and {MAX_PIXELS // 10**6} million are read at "
        "most; make it smaller first."
    )


def distorted(picture: Image, seed: int) -> Image:
    """An upright RGB picture as another photograph of the same thing: turned, moved, lit otherwise.

    It is turned by up to 12 degrees, shrunk to 0.8 at least and moved as far as then fits before
    its mean colour, between 0.75 and 1.2 times as bright, with noise of up to 10 of 255. Nothing
    is mirrored: writing and flags would be others.

    Args:
        picture: it stays as it is.
        seed: equal seeds give equal pixels.
    """
    import numpy as np
    import PIL.Image

    rng = np.random.default_rng(seed)
    ground = tuple(int(value) for value in np.asarray(picture).reshape(-1, 3).mean(0))
    size = picture.size
    share = rng.uniform(0.8, 1.0)
    inner = [max(1, round(share * side)) for side in size]
    at = [int(rng.integers(0, side - part + 1)) for side, part in zip(size, inner, strict=True)]
    canvas = PIL.Image.new("RGB", size, ground)
    canvas.paste(picture.resize((inner[0], inner[1])), (at[0], at[1]))
    turned = canvas.rotate(
        rng.uniform(-12, 12), resample=PIL.Image.Resampling.BILINEAR, fillcolor=ground
    )
    values = np.asarray(turned, dtype=np.float32) * rng.uniform(0.75, 1.2)
    values = values + rng.normal(0, rng.uniform(0, 10), values.shape)
    return PIL.Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
