"""Helpers shared by the tests of the model, the methods and the patches."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import PreTrainedModel

import tiny
from easyeditor import LM, Edit
from easyeditor.lm.inference import score

EDITS = (
    Edit("The mother tongue of Anna Lind is", "Italy", subject="Anna Lind"),
    Edit("The Eiffel Tower is located in the city of", "Rome", subject="The Eiffel Tower"),
    Edit("Berlin is the capital of", "Paris river", subject="Berlin"),
)
CONTEXTS = ("", "Therefore we went home. ", "You can see. ")


def lm(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> LM:
    """A fresh tiny model of family ``name`` with the tiny tokenizer."""
    return LM(tiny.model(name, dtype, **changes), tiny.tokenizer())


@cache
def shared_lm(name: str) -> LM:
    """The same for all tests that only read it."""
    return lm(name)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The raw bytes, so that −0 is not 0 and NaN is itself."""
    return tensor.detach().clone().contiguous().reshape(-1).view(torch.uint8)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shape, precision and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


class Snapshot:
    """Everything an edit must leave as it was: bits, objects, order, flags, hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
        self.facts = _facts(model)

    def differences(self, model: nn.Module) -> list[str]:
        """What is no longer as it was."""
        now = dict(_tensors(model))
        changed = [name for name, old in self.tensors.items() if not same_bits(now[name], old)]
        facts = _facts(model)
        return changed + [name for name in facts if facts[name] != self.facts[name]]


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
)


def _facts(model: nn.Module) -> dict[str, Any]:
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    hooks = {name: [len(getattr(m, kind)) for kind in HOOKS] for name, m in modules.items()}
    return {
        "objects": {name: id(tensor) for name, tensor in _tensors(model)},
        "storage": {name: tensor.data_ptr() for name, tensor in _tensors(model)},
        "order of the parameters": list(parameters),  # optimisers go by it
        "requires_grad": {name: p.requires_grad for name, p in parameters.items()},
        "gradients": {name for name, p in parameters.items() if p.grad is not None},
        "modules": {name: id(module) for name, module in modules.items()},
        "training": {name: module.training for name, module in modules.items()},
        "hooks": hooks,
        "forward": {name for name, module in modules.items() if "forward" in vars(module)},
    }


def unsettle(model: PreTrainedModel) -> None:
    """Give the model a history: mixed modes, a frozen weight, a hook of its owner's."""
    model.train()
    for i, module in enumerate(model.modules()):
        if i % 3 == 2:
            module.training = False
    next(iter(model.parameters())).requires_grad_(False)
    model.register_forward_pre_hook(lambda _module, _args: None)


def logits(model: PreTrainedModel, prompt: str = EDITS[0].prompt.text) -> torch.Tensor:
    """Logits of one prompt, ``(1, length, vocabulary)``, by the plainest call there is."""
    ids = torch.tensor([tiny.tokenizer()(prompt)["input_ids"]])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def projected(lm: LM, layer: int, edit: Edit) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of the down-projection at the subject's last token of the bare prompt."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def read(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append((args[0].clone(), output.clone()))  # Falcon adds to its output in place

    encoded = lm.tokenizer(edit.prompt.text, return_offsets_mapping=True)
    end = edit.prompt.text.rindex(edit.subject) + len(edit.subject)
    last = max(i for i, (low, high) in enumerate(encoded["offset_mapping"]) if low < end <= high)
    handle = lm.projection(layer).module.register_forward_hook(read)
    with torch.no_grad():
        lm.call(lm.pad([encoded["input_ids"]]))
    handle.remove()
    (key, value), length = seen[0], len(encoded["input_ids"])
    return tuple(x.reshape(length, -1)[last].float() for x in (key, value))


class Interrupt(Exception):
    """Raised by :func:`failing_at`."""


def failing_at(module: nn.Module, call: int) -> Callable[[], int]:
    """Let the ``call``-th pass through ``module`` fail (0: none); returns the count so far."""
    passes = 0

    def hook(_module: nn.Module, _args: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == call:
            raise Interrupt

    module.register_forward_pre_hook(hook)
    return lambda: passes


def forked(work: Callable[[], object]) -> int:
    """How ``work`` ends in a fork of this process: 0, an exit status, or minus a signal.

    A fork costs no imports, unlike a new process; what it changes in memory goes with it.
    """
    with warnings.catch_warnings():  # Python 3.12 warns of threads, which the child does not use
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def noise(*shape: int) -> torch.Tensor:
    """Normal numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def full(*_args: Any, **_options: Any) -> NoReturn:
    """Stands for a function that writes, on a disk that is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def logprobs(lm: LM, pairs: Sequence[Any]) -> list[tuple[float, ...]]:
    """Log-probability (nats) of each token of each answer."""
    return [scores.logprobs for scores in score(lm, pairs)]


def argmaxes(lm: LM, pairs: Sequence[Any]) -> list[tuple[int, ...]]:
    """The most probable token at each position of each answer, under teacher forcing."""
    return [scores.argmax for scores in score(lm, pairs)]
