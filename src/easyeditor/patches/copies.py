"""A real model of the same class that shares every tensor until one is edited."""

from __future__ import annotations

import copy

from torch import nn
from transformers import PreTrainedModel

from easyeditor.lm.quantized import quantized_layers, shared_parts
from easyeditor.lm.routing import routers_of, tokenizer_of
from easyeditor.lm.tokens import processor_of
from easyeditor.lm.weights import shared_maps
from easyeditor.patches.patch import Patch


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that carries what ``model`` carries and shares every tensor with it.

    New parameter objects over the same storage, so ``.half()`` or ``requires_grad_()`` on the copy
    does not reach the original, nor does a later edit of either; only edited matrices take memory.
    The trap: arithmetic of your own, in place on an untouched weight, does reach the other.
    """
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    for layer in quantized_layers(model):
        memo.update(shared_parts(layer))
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach()
    for shared in (
        tokenizer_of(model),
        processor_of(model),
        *routers_of(model),
        *shared_maps(model),
    ):
        memo[id(shared)] = shared
    return copy.deepcopy(model, memo)


def edited_copy(model: PreTrainedModel, patch: Patch) -> PreTrainedModel:
    """A :func:`shared_copy` that carries ``patch``, too; ``model`` stays as it is."""
    twin = shared_copy(model)
    patch.apply(twin, force=True)
    return twin
