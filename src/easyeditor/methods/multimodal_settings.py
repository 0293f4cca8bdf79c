"""Settings under the names that classic code for images uses, with the folders of the pictures.

Each is the method's own settings: the method needs no others for images. Fields that describe how
BLIP-2 and MiniGPT-4 were loaded by another library mean nothing here and are dropped by name.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from easyeditor.hyperparams import HyperParams
from easyeditor.methods.ft import FTHyperParams
from easyeditor.methods.grace import GraceHyperParams
from easyeditor.methods.ike.ike import IKEHyperParams
from easyeditor.methods.lora import LoRAHyperParams
from easyeditor.methods.mend.settings import MENDHyperParams, MENDTrainingHparams
from easyeditor.methods.serac.settings import SERACHyperParams, SERACTrainingHparams
from easyeditor.methods.wise.wise import WISEHyperParams

LOADING = frozenset(
    [
        "qformer_checkpoint",
        "qformer_name_or_path",
        "state_dict_file",
        "pretrained_ckpt",
        "name",
        "iedit",
        "exact_match",
        "freeze_qformer",
        "task_name",
        "file_type",
        "hidden_act",
        "numbers",
        "using_extra",
        "continuous_sample",
        "real_world_eval",
        "tokenizer_class",
        "tokenizer_name",
    ]
)


class PictureFolders(HyperParams):
    """Where a dataset's pictures lie: ``coco_image``, and ``rephrase_image`` for other pictures."""

    # Where files lie is no setting of a method: neither archives nor patches hold it.
    coco_image: str | None = Field(None, exclude=True)
    rephrase_image: str | None = Field(None, exclude=True)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.ignored |= LOADING


class FTMultimodalHyperParams(FTHyperParams, PictureFolders):
    """Settings of FT."""


class LoRAMultimodalHyperParams(LoRAHyperParams, PictureFolders):
    """Settings of LoRA."""


class IKEMultimodalHyperParams(IKEHyperParams, PictureFolders):
    """Settings of IKE."""


class GraceMultimodalHyperParams(GraceHyperParams, PictureFolders):
    """Settings of GRACE."""


class WISEMultimodalHyperParams(WISEHyperParams, PictureFolders):
    """Settings of WISE."""


class MENDMultimodalHparams(MENDHyperParams, PictureFolders):
    """Settings of MEND for editing."""


class MENDMultimodalTrainingHparams(MENDTrainingHparams, PictureFolders):
    """Settings of MEND's training; rephrases in words and in images weigh the same."""


class SERACMultimodalHparams(SERACHyperParams, PictureFolders):
    """Settings of SERAC for editing."""


class SERACMultimodalTrainingHparams(SERACTrainingHparams, PictureFolders):
    """Settings of SERAC's training."""
