"""Images inside a patch: their files' bytes as tensors, so that the patch is used elsewhere."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from easyeditor.edits import Edit, ImageRef, Prompt
from easyeditor.lm.image_files import decoded, read_content

PREFIX = "image:"


def stored_images(prompts: Iterable[Prompt]) -> dict[str, torch.Tensor]:
    """The bytes of every image, uint8, by ``image:`` and its digest; one in memory as PNG.

    Raises:
        ImageError: a file is missing, or has changed.
    """
    result: dict[str, torch.Tensor] = {}
    for image in dict.fromkeys(image for prompt in prompts for image in prompt.images):
        if image.picture is None:
            content = read_content(image.path)
            if hashlib.sha256(content).hexdigest() != image.sha256:
                decoded(content, image)
        else:
            stream = io.BytesIO()
            image.picture.save(stream, "PNG")
            content = stream.getvalue()
        result[PREFIX + image.sha256] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return result


def with_stored(edits: Sequence[Edit], stored: Mapping[str, torch.Tensor]) -> tuple[Edit, ...]:
    """The edits with the pictures that are stored; other images stay references to files.

    Raises:
        ImageError: what is stored is not the image of its digest.
        MissingExtraError: there are some, and pillow is not installed.
    """
    pictures: dict[str, ImageRef] = {}

    def seen(image: ImageRef) -> ImageRef:
        tensor = stored.get(PREFIX + image.sha256)
        if tensor is None:
            return image
        if image.sha256 not in pictures:
            content = bytes(tensor.to(torch.uint8).flatten().numpy())
            pictures[image.sha256] = replace(image, picture=decoded(content, image))
        return pictures[image.sha256]

    return tuple(
        replace(edit, prompt=replace(edit.prompt, images=tuple(map(seen, edit.prompt.images))))
        if edit.prompt.images
        else edit
        for edit in edits
    )
