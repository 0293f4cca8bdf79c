"""Pixels of an image: read late, turned as EXIF says, as RGB; anything else is a typed error."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

from easyeditor.errors import ImageError, MissingExtraError
from easyeditor.prompts import ImageRef

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000
"""Larger images are refused: a small file may unpack to more than the memory holds."""


def open_image(reference: ImageRef) -> Image:
    """The image as RGB, upright; of an animation the first frame.

    Raises:
        ImageError: the file is missing, is no image, is cut off, is empty or has more than
            ``MAX_PIXELS`` pixels.
        MissingExtraError: pillow is not installed.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise MissingExtraError.of("pillow", "images", "Reading an image") from None
    if reference.picture is not None:
        return _upright(reference.picture, reference.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL's own limit, which is above ours
            with PIL.Image.open(reference.path) as image:
                _check_size(image, reference.path)
                if getattr(image, "n_frames", 1) > 1:
                    log.info("%s is an animation: its first frame is used", reference.path)
                image.load()
                return _upright(image, reference.path)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(
            f"The image {reference.path!r} is not there (any more); give the path of the file."
        ) from None
    except PIL.UnidentifiedImageError:
        raise ImageError(
            f"The file {reference.path!r} is not an image that can be read here; give a PNG, JPEG, "
            "GIF, BMP, TIFF or WebP file."
        ) from None
    except PIL.Image.DecompressionBombError:
        raise _too_large(reference.path, None) from None
    except Exception as error:  # of any type: a damaged file fails where it is damaged
        raise ImageError(
            f"The image {reference.path!r} is damaged or cut off ({str(error) or repr(error)}); "
            "copy or save it again."
        ) from error


def _upright(image: Any, path: str) -> Image:
    import PIL.ImageOps

    _check_size(image, path)
    upright = PIL.ImageOps.exif_transpose(image)
    if upright.mode != "RGB":
        log.info("%s is %s, converted to RGB", path, upright.mode)
    if upright.mode.startswith("I;16"):  # 16 bits: PIL would cut every value off at 255
        upright = upright.point(lambda value: value / 256).convert("L")
    return upright.convert("RGB")


def _check_size(image: Any, path: str) -> None:
    width, height = image.size
    if not width or not height:
        raise ImageError(f"The image {path!r} is empty ({width} x {height}); give one with pixels.")
    if width * height > MAX_PIXELS:
        raise _too_large(path, width * height)


def _too_large(path: str, pixels: int | None) -> ImageError:
    size = f"{pixels / 1e6:.0f} million" if pixels else "far too many"
    return ImageError(
        f"The image {path!r} has {size} pixels, and {MAX_PIXELS // 10**6} million are read at "
        "most; make it smaller first."
    )
