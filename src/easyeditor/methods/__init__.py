"""The editing methods: one file each, imported when asked for."""

from easyeditor.errors import UnknownMethodError
from easyeditor.registry import Registry

METHODS = Registry(
    "method",
    UnknownMethodError,
    {
        "ROME": "easyeditor.methods.rome:ROME",
        "MEMIT": "easyeditor.methods.memit:MEMIT",
        "FT": "easyeditor.methods.ft:FT",
        "KN": "easyeditor.methods.kn:KN",
        "IKE": "easyeditor.methods.ike:IKE",
        "MEND": "easyeditor.methods.mend.mend:MEND",
        "SERAC": "easyeditor.methods.serac.serac:SERAC",
    },
)
