"""Settings under the names that classic code for images uses, with the folders of the pictures.

Each is the method's own settings: the method needs no others for images. Fields that describe how
BLIP-2 and MiniGPT-4 were loaded by another library mean nothing here and are dropped by name.
"""

from __future__ import annotations

from typing import ClassVar

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


class FTMultimodalHyperParams(FTHyperParams, PictureFolders):
    """Settings of FT."""

    ignored: ClassVar[frozenset[str]] = FTHyperParams.ignored | LOADING


class LoRAMultimodalHyperParams(LoRAHyperParams, PictureFolders):
    """Settings of LoRA."""

    ignored: ClassVar[frozenset[str]] = LoRAHyperParams.ignored | LOADING


class IKEMultimodalHyperParams(IKEHyperParams, PictureFolders):
    """Settings of IKE."""

    ignored: ClassVar[frozenset[str]] = IKEHyperParams.ignored | LOADING


class GraceMultimodalHyperParams(GraceHyperParams, PictureFolders):
    """Settings of GRACE."""

    ignored: ClassVar[frozenset[str]] = GraceHyperParams.ignored | LOADING


class WISEMultimodalHyperParams(WISEHyperParams, PictureFolders):
    """Settings of WISE."""

    ignored: ClassVar[frozenset[str]] = WISEHyperParams.ignored | LOADING


class MENDMultimodalHparams(MENDHyperParams, PictureFolders):
    """Settings of MEND for editing."""

    ignored: ClassVar[frozenset[str]] = MENDHyperParams.ignored | LOADING


class MENDMultimodalTrainingHparams(MENDTrainingHparams, PictureFolders):
    """Settings of MEND's training; rephrases in words and in images weigh the same."""

    ignored: ClassVar[frozenset[str]] = MENDTrainingHparams.ignored | LOADING


class SERACMultimodalHparams(SERACHyperParams, PictureFolders):
    """Settings of SERAC for editing."""

    ignored: ClassVar[frozenset[str]] = SERACHyperParams.ignored | LOADING


class SERACMultimodalTrainingHparams(SERACTrainingHparams, PictureFolders):
    """Settings of SERAC's training."""

    ignored: ClassVar[frozenset[str]] = SERACTrainingHparams.ignored | LOADING
