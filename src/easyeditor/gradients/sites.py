"""Which weights of linear maps a list of names means."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from easyeditor.errors import HyperParamsError, did_you_mean
from easyeditor.lm.model import LM
from easyeditor.lm.projection import Projection


def named_projections(lm: LM, names: Sequence[str]) -> list[Projection]:
    """The linear maps called ``names``: parameters, or the modules that hold them.

    Raises:
        HyperParamsError: names that are no weights of linear maps of this model; lists all.
    """
    parameters = dict(lm.model.named_parameters())
    kind = Conv1D if lm.family.conv1d else nn.Linear
    problems, paths = [], []
    for name in names:
        path = name if name in parameters else f"{name}.weight"
        owner, _, leaf = path.rpartition(".")
        if path not in parameters:
            problems.append(f"{name!r} is no parameter.{did_you_mean(name, parameters)}")
        elif leaf != "weight" or not isinstance(lm.model.get_submodule(owner), kind):
            problems.append(f"{name!r} is not the weight of a {kind.__name__}.")
        elif parameters[path] is getattr(lm.head, "weight", None):
            problems.append(f"{name!r} is the output embedding, which is left alone.")
        paths.append(path)
    if problems:
        raise HyperParamsError(
            f"inner_params does not fit {type(lm.model).__name__}: {' '.join(problems)} Leave it "
            "out for the method's usual MLP weights."
        )
    unique = dict.fromkeys(paths)
    return [Projection(lm.model, path.rpartition(".")[0], lm.family.conv1d) for path in unique]
