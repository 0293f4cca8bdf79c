"""What a model that sees makes of an image: one vector, from its own tower and projector."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.data.flag_pictures import COUNTRIES, draw
from easyeditor.errors import UnsupportedModelError
from easyeditor.lm.caches import LMCache
from easyeditor.lm.forward.context import forward_generation
from easyeditor.lm.image_tokens import Instructed
from easyeditor.lm.model import LM
from easyeditor.prompts import ImageRef

SEGMENTS = 16
"""The features of an image are averaged to so many, in their order."""
PRESENCE = 2.0
"""The coordinate that tells an image from none."""
INSTRUCTION = "The picture shows"
REFERENCES = 20
"""So many drawn flags give the mean that is taken off."""
MEANS: LMCache[tuple[()], torch.Tensor] = LMCache(
    "mean features of drawn pictures", forward_generation
)


@torch.inference_mode()
def image_vectors(lm: LM, images: Sequence[Sequence[ImageRef]]) -> torch.Tensor:
    """Of each row of images one vector by which images are compared.

    The features that the text column reads, averaged to ``SEGMENTS``, less their mean over some
    drawn pictures, at length one, and behind them ``PRESENCE``; zeros for a row without images. So
    the squared distance of two images is 0 to 4, and that of one and none 5.

    Returns:
        Float32 on the CPU, ``(rows, SEGMENTS · width + 1)``.

    Raises:
        UnsupportedModelError: the model does not give the features of an image by themselves.
    """
    width = lm.model.get_input_embeddings().weight.shape[1]
    rows = [torch.zeros(SEGMENTS * width + 1)] * len(images)
    if not any(images):
        return torch.stack(rows)
    with lm.at_rest():
        means = MEANS(lm)
        if () not in means:
            drawn = [ImageRef.of(draw(country)) for country in COUNTRIES[:REFERENCES]]
            means[()] = torch.stack([_features(lm, image) for image in drawn]).mean(0)
        for i, row in enumerate(images):
            if row:
                vector = torch.stack([_features(lm, image) for image in row]).mean(0) - means[()]
                vector = vector / vector.norm().clamp(min=1e-6)
                rows[i] = torch.cat([vector, vector.new_tensor([PRESENCE])])
    return torch.stack(rows)


def _features(lm: LM, image: ImageRef) -> torch.Tensor:
    """One image's features as the text column reads them, averaged to ``SEGMENTS``, flat."""
    assert lm.images is not None
    features = getattr(lm.model, "get_image_features", None)
    if features is None:
        raise UnsupportedModelError(
            f"{type(lm.model).__name__} gives no features of an image by themselves."
        )
    weight = lm.model.get_input_embeddings().weight
    # Read under an instruction, images are compared as they are under one and the same.
    seen = Instructed(image, INSTRUCTION) if lm.images.instructs else image
    tensors = {
        name: tensor.to(lm.device, weight.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in lm.images.reading(seen).tensors.items()
    }
    out = features(**tensors, return_dict=True)
    values = getattr(out, "pooler_output", out)
    if isinstance(values, (list, tuple)):
        values = torch.cat([value.reshape(-1, value.shape[-1]) for value in values])
    flat = values.reshape(-1, values.shape[-1]).float().cpu()
    pooled = torch.nn.functional.adaptive_avg_pool1d(flat.T[None], SEGMENTS)[0].T
    return pooled.reshape(-1)
