"""Knowledge editing of language models: change one fact, see what else changed, undo it exactly.

Example:
    >>> from easyeditor import BaseEditor, ROMEHyperParams
    >>> editor = BaseEditor.from_hparams(ROMEHyperParams.preset("smollm2-135m"))  # doctest: +SKIP
    >>> metrics, edited_model, patch = editor.edit(  # doctest: +SKIP
    ...     prompts="The Eiffel Tower is located in the city of", subject="The Eiffel Tower",
    ...     target_new="Rome", ground_truth="Paris")
    >>> editor.undo(patch)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from easyeditor.methods import METHODS
from easyeditor.version import VERSION

if TYPE_CHECKING:
    from easyeditor.data.concepts import ConceptDataset as ConceptDataset
    from easyeditor.data.counterfact import CounterFactDataset as CounterFactDataset
    from easyeditor.data.dataset import CaseDataset as CaseDataset
    from easyeditor.data.edits_file import EditsDataset as EditsDataset
    from easyeditor.data.knowedit import KnowEditDataset as KnowEditDataset
    from easyeditor.data.mquake import MQuAKEDataset as MQuAKEDataset
    from easyeditor.data.multimodal import CaptionDataset as CaptionDataset
    from easyeditor.data.multimodal import MultimodalDataset as MultimodalDataset
    from easyeditor.data.multimodal import VLKEBDataset as VLKEBDataset
    from easyeditor.data.multimodal import VQADataset as VQADataset
    from easyeditor.data.open import open_dataset as open_dataset
    from easyeditor.data.personality import PersonalityDataset as PersonalityDataset
    from easyeditor.data.qaedit import QAEditDataset as QAEditDataset
    from easyeditor.data.rippleedits import RippleEditsDataset as RippleEditsDataset
    from easyeditor.data.safety import SafetyDataset as SafetyDataset
    from easyeditor.data.unstructured import UnstructuredDataset as UnstructuredDataset
    from easyeditor.data.zsre import ZsreDataset as ZsreDataset
    from easyeditor.editors.base import BaseEditor as BaseEditor
    from easyeditor.editors.base import EditResult as EditResult
    from easyeditor.editors.concepts import ConceptEditor as ConceptEditor
    from easyeditor.editors.expanding import Expansion as Expansion
    from easyeditor.editors.multimodal import MultiModalEditor as MultiModalEditor
    from easyeditor.editors.multimodal import MultimodalEditor as MultimodalEditor
    from easyeditor.editors.personality import PerEditor as PerEditor
    from easyeditor.editors.safety import SafetyEditor as SafetyEditor
    from easyeditor.editors.steering import BaseVectorApplier as BaseVectorApplier
    from easyeditor.editors.steering import BaseVectorGenerator as BaseVectorGenerator
    from easyeditor.editors.steering import SteerEditor as SteerEditor
    from easyeditor.edits import Case as Case
    from easyeditor.edits import Edit as Edit
    from easyeditor.edits import Generate as Generate
    from easyeditor.edits import ImageRef as ImageRef
    from easyeditor.edits import Probe as Probe
    from easyeditor.edits import Prompt as Prompt
    from easyeditor.edits import Score as Score
    from easyeditor.errors import EasyEditError as EasyEditError
    from easyeditor.interpret.causal_trace import TraceOptions as TraceOptions
    from easyeditor.interpret.causal_trace import causal_trace as causal_trace
    from easyeditor.interpret.logit_lens import logit_lens as logit_lens
    from easyeditor.lm.loading import load as load
    from easyeditor.lm.model import LM as LM
    from easyeditor.methods.adalora import AdaLoRAHyperParams as AdaLoRAHyperParams
    from easyeditor.methods.alphaedit import AlphaEditHyperParams as AlphaEditHyperParams
    from easyeditor.methods.anyedit import AnyEditHyperParams as AnyEditHyperParams
    from easyeditor.methods.calinet import CaliNetHyperParams as CaliNetHyperParams
    from easyeditor.methods.dinm import DINMHyperParams as DINMHyperParams
    from easyeditor.methods.dpo import DPOHyperParams as DPOHyperParams
    from easyeditor.methods.emmet import EMMETHyperParams as EMMETHyperParams
    from easyeditor.methods.encore import ENCOREHyperParams as ENCOREHyperParams
    from easyeditor.methods.ft import FTHyperParams as FTHyperParams
    from easyeditor.methods.gated_rome.gated_rome import (
        GatedROMEHyperParams as GatedROMEHyperParams,
    )
    from easyeditor.methods.grace import GraceHyperParams as GraceHyperParams
    from easyeditor.methods.ike.ike import IKEHyperParams as IKEHyperParams
    from easyeditor.methods.ke.settings import KEHyperParams as KEHyperParams
    from easyeditor.methods.ke.settings import KETrainingHparams as KETrainingHparams
    from easyeditor.methods.kn import KNHyperParams as KNHyperParams
    from easyeditor.methods.locft_bf import LocFTBFHyperParams as LocFTBFHyperParams
    from easyeditor.methods.lora import LoRAHyperParams as LoRAHyperParams
    from easyeditor.methods.malmen.settings import MALMENHyperParams as MALMENHyperParams
    from easyeditor.methods.malmen.settings import MALMENTrainingHparams as MALMENTrainingHparams
    from easyeditor.methods.melo.melo import MELOHyperParams as MELOHyperParams
    from easyeditor.methods.memit import MEMITHyperParams as MEMITHyperParams
    from easyeditor.methods.memoir import MEMOIRHyperParams as MEMOIRHyperParams
    from easyeditor.methods.mend.settings import MENDHyperParams as MENDHyperParams
    from easyeditor.methods.mend.settings import MENDTrainingHparams as MENDTrainingHparams
    from easyeditor.methods.multimodal_settings import (
        FTMultimodalHyperParams as FTMultimodalHyperParams,
    )
    from easyeditor.methods.multimodal_settings import (
        GraceMultimodalHyperParams as GraceMultimodalHyperParams,
    )
    from easyeditor.methods.multimodal_settings import (
        IKEMultimodalHyperParams as IKEMultimodalHyperParams,
    )
    from easyeditor.methods.multimodal_settings import (
        LoRAMultimodalHyperParams as LoRAMultimodalHyperParams,
    )
    from easyeditor.methods.multimodal_settings import (
        MENDMultimodalHparams as MENDMultimodalHparams,
    )
    from easyeditor.methods.multimodal_settings import (
        MENDMultimodalTrainingHparams as MENDMultimodalTrainingHparams,
    )
    from easyeditor.methods.multimodal_settings import (
        SERACMultimodalHparams as SERACMultimodalHparams,
    )
    from easyeditor.methods.multimodal_settings import (
        SERACMultimodalTrainingHparams as SERACMultimodalTrainingHparams,
    )
    from easyeditor.methods.multimodal_settings import (
        WISEMultimodalHyperParams as WISEMultimodalHyperParams,
    )
    from easyeditor.methods.pmet import PMETHyperParams as PMETHyperParams
    from easyeditor.methods.qlora import QLoRAHyperParams as QLoRAHyperParams
    from easyeditor.methods.r_rome import R_ROMEHyperParams as R_ROMEHyperParams
    from easyeditor.methods.rledit import RLEditHyperParams as RLEditHyperParams
    from easyeditor.methods.rledit import RLEditTrainingHparams as RLEditTrainingHparams
    from easyeditor.methods.rome import ROMEHyperParams as ROMEHyperParams
    from easyeditor.methods.serac.settings import SERACHyperParams as SERACHyperParams
    from easyeditor.methods.serac.settings import SERACTrainingHparams as SERACTrainingHparams
    from easyeditor.methods.t_patcher import TPatcherHyperParams as TPatcherHyperParams
    from easyeditor.methods.ultraedit import UltraEditHyperParams as UltraEditHyperParams
    from easyeditor.methods.unke import UnKEHyperParams as UnKEHyperParams
    from easyeditor.methods.wise.wise import WISEHyperParams as WISEHyperParams
    from easyeditor.patches.files import load_patch as load_patch
    from easyeditor.patches.files import save_patch as save_patch
    from easyeditor.patches.patch import Patch as Patch
    from easyeditor.patches.weight import WeightPatch as WeightPatch
    from easyeditor.train.multimodal import MultimodalTrainer as MultimodalTrainer
    from easyeditor.train.trainer import EditTrainer as EditTrainer

__version__ = VERSION

# Imported on first use: `import easyeditor` is quick, and the command line parses before torch
# loads.
_PUBLIC = {
    "BaseEditor": "editors.base",
    "BaseVectorApplier": "editors.steering",
    "BaseVectorGenerator": "editors.steering",
    "Case": "edits",
    "CaseDataset": "data.dataset",
    "ConceptDataset": "data.concepts",
    "ConceptEditor": "editors.concepts",
    "CounterFactDataset": "data.counterfact",
    "EasyEditError": "errors",
    "Edit": "edits",
    "EditResult": "editors.base",
    "EditTrainer": "train.trainer",
    "EditsDataset": "data.edits_file",
    "Expansion": "editors.expanding",
    "Generate": "edits",
    "ImageRef": "edits",
    "KnowEditDataset": "data.knowedit",
    "KETrainingHparams": "methods.ke.settings",
    "LM": "lm.model",
    "MALMENTrainingHparams": "methods.malmen.settings",
    "MENDTrainingHparams": "methods.mend.settings",
    "MQuAKEDataset": "data.mquake",
    "Patch": "patches.patch",
    "PerEditor": "editors.personality",
    "PersonalityDataset": "data.personality",
    "Probe": "edits",
    "Prompt": "edits",
    "QAEditDataset": "data.qaedit",
    "RLEditTrainingHparams": "methods.rledit",
    "RippleEditsDataset": "data.rippleedits",
    "SERACTrainingHparams": "methods.serac.settings",
    "SafetyEditor": "editors.safety",
    "SafetyDataset": "data.safety",
    "Score": "edits",
    "SteerEditor": "editors.steering",
    "TraceOptions": "interpret.causal_trace",
    "CaptionDataset": "data.multimodal",
    "MultiModalEditor": "editors.multimodal",
    "MultimodalDataset": "data.multimodal",
    "MultimodalTrainer": "train.multimodal",
    "VLKEBDataset": "data.multimodal",
    "VQADataset": "data.multimodal",
    "FTMultimodalHyperParams": "methods.multimodal_settings",
    "LoRAMultimodalHyperParams": "methods.multimodal_settings",
    "IKEMultimodalHyperParams": "methods.multimodal_settings",
    "GraceMultimodalHyperParams": "methods.multimodal_settings",
    "WISEMultimodalHyperParams": "methods.multimodal_settings",
    "MENDMultimodalHparams": "methods.multimodal_settings",
    "MENDMultimodalTrainingHparams": "methods.multimodal_settings",
    "SERACMultimodalHparams": "methods.multimodal_settings",
    "SERACMultimodalTrainingHparams": "methods.multimodal_settings",
    "MultimodalEditor": "editors.multimodal",
    "WeightPatch": "patches.weight",
    "UnstructuredDataset": "data.unstructured",
    "ZsreDataset": "data.zsre",
    "causal_trace": "interpret.causal_trace",
    "load": "lm.loading",
    "load_patch": "patches.files",
    "logit_lens": "interpret.logit_lens",
    "open_dataset": "data.open",
    "save_patch": "patches.files",
}

# The settings of every method, as ``<NAME>HyperParams``, come from the table of methods; some
# names have been written otherwise since they were first published, and none has a hyphen.
_SPELLING = {"GRACE": "Grace", "R-ROME": "R_ROME"}
_SETTINGS = {
    f"{_SPELLING.get(name, name).replace('-', '')}HyperParams": name for name in METHODS.built_in
}

__all__ = ["__version__", *_PUBLIC, *_SETTINGS]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"easyeditor.{_PUBLIC[name]}"), name)
    if name in _SETTINGS:
        return METHODS.get(_SETTINGS[name]).hyperparams_class
    if name.endswith("HyperParams"):
        method = name.removesuffix("HyperParams")
        if method in METHODS:
            return METHODS.get(method).hyperparams_class
    raise AttributeError(f"module 'easyeditor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
