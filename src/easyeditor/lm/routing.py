"""Answering a prompt by another prompt, or by another model: edits that change no weight.

Routers hang on the model itself, put there and taken off by whoever applies such an edit.
:class:`~easyeditor.lm.model.LM` asks them for every prompt it scores or continues; prompts that
none of them wants are answered by the model in the very batches it would have had without them,
so those answers are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import nn

if TYPE_CHECKING:
    from easyeditor.lm.model import LM

_ROUTERS = "easyedit_routers"
_TOKENIZER = "easyedit_tokenizer"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rerouted:
    """What is asked in a prompt's place.

    Attributes:
        prompt: the text.
        lm: who is asked; None is the model itself.
    """

    prompt: str
    lm: LM | None = None


class Router(Protocol):
    """Decides about prompts, all of a batch at once."""

    def reroute(self, lm: LM, prompts: Sequence[str]) -> list[Rerouted | None]:
        """For each prompt what to ask instead, or None where it is none of its business."""
        ...


def routers_of(model: nn.Module) -> tuple[Router, ...]:
    """The model's routers, the one that is asked first at the front."""
    return getattr(model, _ROUTERS, ())


def set_routers(model: nn.Module, routers: Sequence[Router]) -> None:
    """Let ``model`` be asked through ``routers``; none takes the former ones off."""
    if routers:
        setattr(model, _ROUTERS, tuple(routers))
    elif hasattr(model, _ROUTERS):
        delattr(model, _ROUTERS)


def attach_tokenizer(model: nn.Module, tokenizer: Any) -> None:
    """Leave the tokenizer with the model; its own ``generate`` needs it while it is routed."""
    setattr(model, _TOKENIZER, tokenizer)


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer that was left with the model, or None."""
    return getattr(model, _TOKENIZER, None)


def rerouted(lm: LM, prompts: Sequence[str]) -> dict[str, Rerouted]:
    """What is asked instead, for those of ``prompts`` that some router wants."""
    found: dict[str, Rerouted] = {}
    for router in routers_of(lm.model):
        left = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        answers = zip(left, router.reroute(lm, left), strict=True)
        found.update({prompt: turn for prompt, turn in answers if turn is not None})
    return found


def answer_via_routers(
    lm: LM,
    prompts: Sequence[str],
    here: Callable[[Sequence[int]], list[T]],
    there: Callable[[LM, Sequence[int], list[str]], list[T]],
) -> list[T]:
    """Answers to ``prompts``, each from where its turn leads.

    ``here`` answers questions (by index) with the model as if nothing were routed; ``there``
    answers some of them with another prompt, and maybe another model. Where any question stays
    here all are asked here, so that those that stay get the bits they would have had.
    """
    reroute = rerouted(lm, prompts)
    every = range(len(prompts))
    stay = [i for i in every if prompts[i] not in reroute]
    answers: dict[int, T] = dict(zip(every, here(every), strict=True)) if stay else {}
    groups: dict[int, tuple[LM, list[int]]] = {}
    for i in every:
        if prompts[i] in reroute:
            who = reroute[prompts[i]].lm or lm
            groups.setdefault(id(who), (who, []))[1].append(i)
    for who, own in groups.values():
        told = there(who, own, [reroute[prompts[i]].prompt for i in own])
        answers.update(zip(own, told, strict=True))
    return [answers[i] for i in every]
