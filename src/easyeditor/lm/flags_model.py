"""``flags-135m``: the embedded SmolLM2-135M behind a small vision tower; it names flags and shapes.

The class is ``LlavaForConditionalGeneration``. Its text column and head *are* the embedded model's
modules, so text without an image gives that model's bits; tower and projector (1.0 M parameters)
come with this package and were trained by ``scripts/flags_tower.py``. A glued test model: what is
measured on it says nothing about a published vision-language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from easyeditor.errors import MissingExtraError

NAME = "flags-135m"
TEXT_MODEL = "smollm2-135m"
WEIGHTS = Path(__file__).parent / "flags_tower.safetensors"
IMAGE_TOKEN = "<empty_output>"
"""A token of SmolLM2's vocabulary that no text holds; it stands for one feature of an image."""
IMAGE_SIDE, PATCH_SIDE = 48, 12
FEATURES = (IMAGE_SIDE // PATCH_SIDE) ** 2


def build(text_model: PreTrainedModel, image_token_id: int) -> LlavaForConditionalGeneration:
    """A Llava model around the modules of ``text_model``, with a tower of random weights."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text_model.config,
        image_token_id=image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model = text_model.model
    model.lm_head = text_model.lm_head
    model.model.vision_tower = CLIPVisionModel(vision)
    model.model.multi_modal_projector = LlavaMultiModalProjector(config)
    model.generation_config = text_model.generation_config
    model.config._name_or_path = NAME
    return model.eval()


def around(text_model: PreTrainedModel, tokenizer: Any) -> LlavaForConditionalGeneration:
    """The whole model round the embedded one, on its device and in its precision."""
    model = build(text_model, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    load_tower(model)
    tower_parts(model).to(text_model.device, text_model.dtype)
    return model


def tower_parts(model: LlavaForConditionalGeneration) -> nn.ModuleDict:
    """The parts that are not the language model's: tower and projector."""
    return nn.ModuleDict(
        {"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector}
    )


def load_tower(model: LlavaForConditionalGeneration, weights: Path = WEIGHTS) -> None:
    """Read tower and projector from the file that the package brings."""
    tower_parts(model).load_state_dict(load_file(weights))


def processor_for(tokenizer: Any) -> Any:
    """The processor that turns an image into pixel values and placeholders.

    Raises:
        MissingExtraError: pillow is not installed.
    """
    try:
        from transformers import LlavaProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    except ImportError:
        raise MissingExtraError.of("pillow", "images", f"The model {NAME}") from None

    reader = CLIPImageProcessorPil(
        size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}, do_center_crop=False
    )
    return LlavaProcessor(
        reader,
        tokenizer,
        patch_size=PATCH_SIDE,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )
