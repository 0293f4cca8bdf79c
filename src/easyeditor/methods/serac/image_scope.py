"""The part of an edit's scope that is its picture.

The classifier reads the question alone, so without this every picture with one question would be
in the scope of an edit (the published image locality of SERAC is next to nothing). A vector of what
the edited model's own tower and projector make of the image is put beside the classifier's; the
squared distances of both add up. A question without an image is far from one with an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.edits import Prompt, as_prompt
from easyeditor.lm.image_features import image_vectors
from easyeditor.lm.model import LM


def with_images(
    vectors: torch.Tensor, lm: LM, prompts: Sequence[Prompt | str], weight: float
) -> torch.Tensor:
    """``(prompts, width)`` with the images' part behind it, where the model sees."""
    if lm.images is None:
        return vectors
    parts = image_vectors(lm, [as_prompt(prompt).images for prompt in prompts])
    return torch.cat([vectors, weight**0.5 * parts], 1)


def of_one_width(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with zeros in place of a part for images that they lack."""
    width = max(one.shape[1], other.shape[1])
    first, second = (
        torch.nn.functional.pad(vectors, (0, width - vectors.shape[1])) for vectors in (one, other)
    )
    return first, second


def stacked(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of several memories one below the other, filled up as :func:`of_one_width` does."""
    width = max(one.shape[1] for one in vectors)
    return torch.cat([torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in vectors])
