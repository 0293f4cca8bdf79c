"""Pixels of an image: read late, held against the digest, turned as EXIF says, as RGB."""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

from easyeditor.errors import ImageError, MissingExtraError
from easyeditor.pictures import check_file, check_size, pixel_digest, too_large, upright
from easyeditor.prompts import ImageRef

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


def open_image(reference: ImageRef) -> Image:
    """The image as RGB, upright; of an animation the first frame.

    The file's bytes are read once, and their digest, or that of the pixels for what was an image
    in memory, must be the reference's.

    Raises:
        ImageError: the file is missing, holds something else than when the reference was made, is
            no image, is cut off, is empty or is too large.
        MissingExtraError: pillow is not installed.
    """
    pillow()
    if reference.picture is not None:
        return upright(reference.picture, reference.path)
    return decoded(read_content(reference.path), reference)


def pillow() -> Any:
    """The package PIL, with ``PIL.Image``.

    Raises:
        MissingExtraError: pillow is not installed.
    """
    try:
        import PIL.Image
    except ImportError:
        raise MissingExtraError.of("pillow", "images", "Reading an image") from None
    return PIL


def decoded(content: bytes, reference: ImageRef) -> Image:
    """The image that the bytes of a file hold, which must be that of the reference's digest.

    Raises:
        ImageError: it is another one, or cannot be read.
        MissingExtraError: pillow is not installed.
    """
    pil = pillow()
    path = reference.path
    same = hashlib.sha256(content).hexdigest() == reference.sha256
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL's own limit, which is above ours
            image = pil.Image.open(io.BytesIO(content))
            check_size(image, path)
            if getattr(image, "n_frames", 1) > 1:
                log.info("%s is an animation: its first frame is used", path)
            image.load()
    except ImageError:
        raise
    except pil.Image.DecompressionBombError:
        raise too_large(path, None) from None
    except Exception as error:  # of any type: a damaged file fails where it is damaged
        if not same:
            raise _changed(path) from None
        if isinstance(error, pil.UnidentifiedImageError):
            raise ImageError(
                f"The file {path!r} is not an image that can be read here; give a PNG, JPEG, GIF, "
                "BMP, TIFF or WebP file."
            ) from None
        raise ImageError(
            f"The image {path!r} is damaged or cut off ({str(error) or repr(error)}); "
            "copy or save it again."
        ) from error
    picture = upright(image, path)
    if not same and pixel_digest(picture) != reference.sha256:
        raise _changed(path)
    return picture


def read_content(path: str) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: it is missing, no regular file, too large or unreadable.
    """
    try:
        check_file(path)
        with open(path, "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        raise ImageError(
            f"The image {path!r} is not there (any more); give the path of the file."
        ) from None
    except (OSError, ValueError) as error:
        raise ImageError(
            f"The image {path!r} cannot be read ({error}); give the path of an image file."
        ) from None


def _changed(path: str) -> ImageError:
    return ImageError(
        f"The image {path!r} has changed since its digest was taken: it is not the picture that "
        "the prompt is about. Put the former file there, or name the new one: ImageRef.of(path)."
    )
