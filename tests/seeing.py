"""Tiny random models of the real vision-language classes, each with a processor of images.

Small weights say nothing about what a model sees; they pin positions, caches, batches and undo on
every architecture. Classes whose own processor needs torchvision are driven by their image
processor and the tokenizer (:class:`Plain`).
"""

from __future__ import annotations

import copy
import random
import struct
import zlib
from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

import tiny
from easyeditor.edits import ImageRef
from easyeditor.lm.model import LM

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
CLIP = {"model_type": "clip_vision_model", **TOWER, "projection_dim": 16}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER}
LLAMA = {"model_type": "llama", **tiny.USUAL}
QWEN_VISION = {
    "hidden_size": 16,
    "embed_dim": 16,
    "intermediate_size": 32,
    "depth": 2,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "mlp_ratio": 2,
    "fullatt_block_indexes": [1],
    "deepstack_visual_indexes": [0, 1],
    "num_position_embeddings": 16,
    "spatial_merge_size": 2,
}
QWEN3_TEXT = {
    **tiny.USUAL,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}
QWEN_TEXT = {**tiny.QWEN_TEXT, "hidden_size": 32}
SPECIALS = {
    "image_token": "<image>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_boundary_token": "<fake_token_around_image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<image>",
    "video_token": "<video>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
CLASSES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "llava": (LLAMA, CLIP, {"vision_feature_layer": -1}),
    "llava_next": (
        LLAMA,
        CLIP,
        {"vision_feature_layer": -1, "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]},
    ),
    "llava_onevision": (
        {"model_type": "qwen2", **tiny.USUAL},
        SIGLIP,
        {"vision_feature_layer": -1, "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]},
    ),
    "qwen2_vl": (QWEN_TEXT, {**QWEN_VISION, "hidden_size": 32}, {}),
    "qwen2_5_vl": (QWEN_TEXT, QWEN_VISION, {}),
    "qwen3_vl": (QWEN3_TEXT, QWEN_VISION, {}),
    "idefics2": (
        {"model_type": "mistral", **tiny.USUAL},
        TOWER,
        {
            "perceiver_config": {
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 8,
                "num_key_value_heads": 1,
                "hidden_size": 32,
            }
        },
    ),
    "idefics3": (LLAMA, TOWER, {"scale_factor": 2}),
    "smolvlm": (LLAMA, TOWER, {"scale_factor": 2}),
    "internvl": (
        {"model_type": "qwen2", **tiny.USUAL},
        {**TOWER, "model_type": "internvl_vision", "image_size": [16, 16], "patch_size": [4, 4]},
        {"downsample_ratio": 0.5, "vision_feature_layer": -1},
    ),
    "gemma3": (
        {**tiny.USUAL, "sliding_window": 32, "query_pre_attn_scalar": 8},
        TOWER,
        {"mm_tokens_per_image": 4},
    ),
    "paligemma": (
        {"model_type": "gemma", **tiny.USUAL},
        {"model_type": "siglip_vision_model", **TOWER, "projection_dim": 32},
        {"projection_dim": 32},
    ),
    "mllama": (
        {**tiny.USUAL, "cross_attention_layers": [1], "num_hidden_layers": 4},
        {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "vision_output_dim": 48,
            "intermediate_layers_indices": [0, 1],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "max_num_tiles": 2,
        },
        {},
    ),
    "blip-2": (
        {"model_type": "opt", **tiny.CONFIGS["opt"]},
        TOWER,
        {
            "qformer_config": {**TOWER, "encoder_hidden_size": 16, "vocab_size": 300},
            "num_query_tokens": 3,
        },
    ),
    "instructblip": (
        {"model_type": "opt", **tiny.CONFIGS["opt"]},
        TOWER,
        {
            "qformer_config": {**TOWER, "encoder_hidden_size": 16, "vocab_size": 600},
            "num_query_tokens": 3,
        },
    ),
}
FAST = ("llava", "qwen2_vl", "paligemma")
"""Structural classes of the fast tier: plain, 3-D positions, a prefix language model."""

WITH_VIDEOS = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm",
)  # fmt: skip
"""Classes whose own processors have a part for videos, which needs torchvision; the others' do with
pillow alone."""


def tiered(fast: Iterable[str]) -> list[Any]:
    """Every class; those that are not in ``fast`` are of the slow tier."""
    return [
        name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in CLASSES
    ]


class Plain:
    """An image processor and a tokenizer as one processor, without the parts for videos."""

    def __init__(self, image_processor: Any, tokenizer: Any, expand: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.image_token, self._expand = tokenizer.image_token, expand

    def __call__(self, images: list[Any], text: list[str], return_tensors: str) -> dict[str, Any]:
        out = dict(self.image_processor(images, return_tensors=return_tensors))
        words = text[0].replace(self.image_token, self._expand(out))
        return {**out, **self.tokenizer([words], return_tensors=return_tensors)}


def tokenizer(named: bool = True) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer of tests/tiny.py with the special tokens of every class.

    ``named``: it has them as attributes, too, which BLIP-2's does not. A copy, as saving a
    processor writes its class into its tokenizer.
    """
    return copy.deepcopy(_tokenizer(named))


@cache
def _tokenizer(named: bool) -> PreTrainedTokenizerFast:
    core = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=SPECIALS if named else {},
    )
    core.add_special_tokens({"additional_special_tokens": [*dict.fromkeys(SPECIALS.values())]})
    core.add_special_tokens(
        {"additional_special_tokens": [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]}
    )
    return core


def model(name: str, seed: int = 0, **of_the_tower: int) -> Any:
    """A fresh tiny model of a class, in evaluation mode."""
    text, tower, more = CLASSES[name]
    tower = {**tower, **{key: value for key, value in of_the_tower.items() if key in tower}}
    words = tokenizer()
    special = {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    token = words.image_token_id
    config = AutoConfig.for_model(
        name, text_config={**text, **special}, vision_config=tower, **more
    )
    for owner in (config, config.get_text_config()):
        owner.image_token_id = token
        if hasattr(owner, "image_token_index"):
            owner.image_token_index = token
    if hasattr(config, "vision_start_token_id"):
        config.vision_start_token_id = words.vision_bos_token_id
        config.vision_end_token_id = words.vision_eos_token_id
        config.video_token_id = words.video_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = AutoModelForImageTextToText.from_config(config).eval()
        for parameter in built.parameters():
            if parameter.abs().max() < 1e-6:  # gates of cross-attention, projectors, BLIP-2
                torch.nn.init.normal_(parameter, std=0.1)
            if parameter.dim() > 1:
                parameter.data.mul_(4)
    return built


def processor(name: str, built: Any) -> Any:
    """The processor of images of a class, by PIL alone."""
    words, side = tokenizer("blip" not in name), {"height": 16, "width": 16}
    if name == "llava":
        from transformers import LlavaProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        return LlavaProcessor(
            CLIPImageProcessorPil(size=side, do_center_crop=False),
            words,
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    if name == "llava_next":
        from transformers import LlavaNextProcessor
        from transformers.models.llava_next.image_processing_pil_llava_next import (
            LlavaNextImageProcessorPil,
        )

        reader = LlavaNextImageProcessorPil(
            size={"shortest_edge": 16},
            crop_size=side,
            image_grid_pinpoints=built.config.image_grid_pinpoints,
        )
        return LlavaNextProcessor(
            reader,
            words,
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    if name == "llava_onevision":
        from transformers.models.llava_onevision import processing_llava_onevision as module
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )

        reader = LlavaOnevisionImageProcessorPil(
            size=side, image_grid_pinpoints=built.config.image_grid_pinpoints
        )
        whole = module.LlavaOnevisionProcessor.__new__(module.LlavaOnevisionProcessor)
        whole.image_processor, whole.image_token = reader, "<image>"
        whole.vision_aspect_ratio = "anyres_max_9"
        whole.num_image_tokens, whole.vision_feature_select_strategy = 16, "full"
        return Plain(reader, words, lambda out: whole.replace_image_token(out, 0))
    if name.startswith("qwen"):
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        reader = Qwen2VLImageProcessorPil(
            patch_size=4,
            merge_size=2,
            temporal_patch_size=2,
            size={"shortest_edge": 64, "longest_edge": 1024},
        )
        return Plain(
            reader,
            words,
            lambda out: (
                "<|vision_start|>"
                + "<image>" * int(out["image_grid_thw"].prod() // 4)
                + "<|vision_end|>"
            ),
        )
    if name == "idefics2":
        from transformers import Idefics2Processor
        from transformers.models.idefics2.image_processing_pil_idefics2 import (
            Idefics2ImageProcessorPil,
        )

        reader = Idefics2ImageProcessorPil(
            size={"shortest_edge": 8, "longest_edge": 16}, do_image_splitting=False
        )
        return Idefics2Processor(reader, words, image_seq_len=4)
    if name in {"idefics3", "smolvlm"}:
        from transformers import Idefics3Processor
        from transformers.models.idefics3.image_processing_pil_idefics3 import (
            Idefics3ImageProcessorPil,
        )

        reader = Idefics3ImageProcessorPil(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
        )
        return Idefics3Processor(reader, words, image_seq_len=4)
    if name == "internvl":
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
            GotOcr2ImageProcessorPil,
        )

        reader = GotOcr2ImageProcessorPil(
            size=side, crop_to_patches=True, min_patches=1, max_patches=2
        )
        return Plain(
            reader,
            words,
            lambda out: f"<img>{'<image>' * 4 * int(out['pixel_values'].shape[0])}</img>",
        )
    if name == "gemma3":
        from transformers import Gemma3Processor
        from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

        return Gemma3Processor(Gemma3ImageProcessorPil(size=side), words, image_seq_length=4)
    if name == "paligemma":
        from transformers import PaliGemmaProcessor
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        reader = SiglipImageProcessorPil(size=side)
        reader.image_seq_length = 16
        return PaliGemmaProcessor(reader, words)
    if name == "mllama":
        from transformers import MllamaProcessor
        from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

        return MllamaProcessor(MllamaImageProcessorPil(size=side, max_image_tiles=2), words)
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    reader = BlipImageProcessorPil(size=side)
    if name == "blip-2":
        from transformers import Blip2Processor

        return Blip2Processor(reader, words, num_query_tokens=3)
    from transformers import InstructBlipProcessor

    return InstructBlipProcessor(reader, words, qformer_tokenizer=words, num_query_tokens=3)


def lm(name: str) -> LM:
    """A fresh tiny model of a class with its processor."""
    built = model(name)
    return LM(built, tokenizer("blip" not in name), processor=processor(name, built))


def bomb() -> bytes:
    """A PNG file of a hundred bytes that says it has 3.6 thousand million pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99)))


def picture(seed: int, size: tuple[int, int] = (24, 18)) -> ImageRef:
    """An image of random colours; sizes may differ."""
    from PIL import Image

    rng = random.Random(seed)
    small = Image.new("RGB", (3, 3))
    small.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(9)])
    return ImageRef.of(small.resize(size))
