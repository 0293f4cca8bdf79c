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
    },
)
