"""Answering a prompt by another prompt, or by another model: edits that change no weight.

Routers hang on the model itself, put there and taken off by whoever applies such an edit.
:mod:`easyeditor.lm.inference` asks them for every prompt that is scored or continued; prompts that
none of them reroutes are answered by the model in the very batches they would have had without
routers, so those answers are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import nn

from easyeditor.edits import Prompt, as_prompt
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import tokenizer_of as tokenizer_of

_ROUTERS = "easyedit_routers"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rerouted:
    """What is asked in a prompt's place.

    Attributes:
        prompt: the text.
        lm: who is asked; None is the model itself.
    """

    prompt: Prompt | str
    lm: LM | None = None


class Router(Protocol):
    """Decides about prompts, all of a batch at once."""

    def reroute(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[Rerouted | None]:
        """For each prompt what to ask instead, or None where the router does not apply."""
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


def rerouted(lm: LM, prompts: Sequence[Prompt | str]) -> dict[Prompt | str, Rerouted]:
    """What is asked instead, for those of ``prompts`` that some router reroutes."""
    targets: dict[Prompt | str, Rerouted] = {}
    for router in routers_of(lm.model):
        left = [prompt for prompt in dict.fromkeys(prompts) if prompt not in targets]
        decisions = zip(left, router.reroute(lm, left), strict=True)
        targets.update({prompt: target for prompt, target in decisions if target is not None})
    return targets


def answer_via_routers(
    lm: LM,
    prompts: Sequence[Prompt],
    here: Callable[[Sequence[int]], list[T]],
    there: Callable[[LM, Sequence[int], list[Prompt]], list[T]],
) -> list[T]:
    """Replies to ``prompts`` through the model's routers.

    ``here`` answers prompts (by index) with the model as if it had no router; ``there`` answers
    some of them with another prompt, and maybe another model. Where any prompt is not rerouted all
    are answered ``here``, so that those get the bits they would have had.
    """
    everything = range(len(prompts))
    targets = rerouted(lm, prompts) if routers_of(lm.model) else {}
    if not targets:
        return here(everything)
    stay = any(prompt not in targets for prompt in prompts)
    replies: dict[int, T] = dict(zip(everything, here(everything), strict=True)) if stay else {}
    groups: dict[int, tuple[LM, list[int]]] = {}
    for i in everything:
        if prompts[i] in targets:
            who = targets[prompts[i]].lm or lm
            groups.setdefault(id(who), (who, []))[1].append(i)
    for who, rows in groups.values():
        texts = there(who, rows, [as_prompt(targets[prompts[i]].prompt) for i in rows])
        replies.update(zip(rows, texts, strict=True))
    return [replies[i] for i in everything]
