"""R-ROME: ROME with the averaged key everywhere (Gupta et al., arXiv 2403.07175).

It is :mod:`easyeditor.methods.rome` with ``key="averaged"``, under the name that published settings
and scripts have for it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from easyeditor.methods.rome import ROME, ROMEHyperParams


class R_ROMEHyperParams(ROMEHyperParams):
    """Settings of R-ROME: those of ROME, with the averaged key."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        name: ROMEHyperParams.presets[name]
        for name in ("gpt2-xl", "gpt-j-6B", "llama-2-7b", "smollm2-135m")
    }

    alg_name: str = "R-ROME"
    key: Literal["ridge", "paper", "averaged", "joint"] = "averaged"


class RROME(ROME):
    """One fact, one layer, one rank; safe where ROME may ruin a model. Needs the subject."""

    name = "R-ROME"
    title = "ROME with the averaged key, arXiv 2403.07175"
    hyperparams_class = R_ROMEHyperParams
