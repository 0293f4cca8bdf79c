"""The editing methods: one file each, imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from easyeditor.errors import UnknownMethodError
from easyeditor.registry import Registry

if TYPE_CHECKING:
    from easyeditor.methods.base import Method

METHODS: Registry[type[Method[Any]]] = Registry(
    "method",
    UnknownMethodError,
    {
        "ROME": "easyeditor.methods.rome:ROME",
        "MEMIT": "easyeditor.methods.memit:MEMIT",
        "GatedROME": "easyeditor.methods.gated_rome.gated_rome:GatedROME",
        "R-ROME": "easyeditor.methods.r_rome:RROME",
        "EMMET": "easyeditor.methods.emmet:EMMET",
        "AlphaEdit": "easyeditor.methods.alphaedit:AlphaEdit",
        "PMET": "easyeditor.methods.pmet:PMET",
        "ENCORE": "easyeditor.methods.encore:ENCORE",
        "UltraEdit": "easyeditor.methods.ultraedit:UltraEdit",
        "FT": "easyeditor.methods.ft:FT",
        "LocFT-BF": "easyeditor.methods.locft_bf:LocFTBF",
        "LoRA": "easyeditor.methods.lora:LoRA",
        "AdaLoRA": "easyeditor.methods.adalora:AdaLoRA",
        "QLoRA": "easyeditor.methods.qlora:QLoRA",
        "DPO": "easyeditor.methods.dpo:DPO",
        "DINM": "easyeditor.methods.dinm:DINM",
        "AnyEdit": "easyeditor.methods.anyedit:AnyEdit",
        "UnKE": "easyeditor.methods.unke:UnKE",
        "KN": "easyeditor.methods.kn:KN",
        "IKE": "easyeditor.methods.ike.ike:IKE",
        "MEND": "easyeditor.methods.mend.mend:MEND",
        "MALMEN": "easyeditor.methods.malmen.malmen:MALMEN",
        "RLEdit": "easyeditor.methods.rledit:RLEdit",
        "KE": "easyeditor.methods.ke.ke:KE",
        "SERAC": "easyeditor.methods.serac.serac:SERAC",
        "GRACE": "easyeditor.methods.grace:GRACE",
        "WISE": "easyeditor.methods.wise.wise:WISE",
        "MEMOIR": "easyeditor.methods.memoir:MEMOIR",
        "MELO": "easyeditor.methods.melo.melo:MELO",
        "CaliNet": "easyeditor.methods.calinet:CaliNet",
        "T-Patcher": "easyeditor.methods.t_patcher:TPatcher",
    },
    group="easyeditor.methods",
)
