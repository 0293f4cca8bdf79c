"""``Method``: what every editing method declares and computes.

A method is a pure function of the model, the edits and an explicit state, as an optimizer of optax
is (``init``, ``update``): ``initial_state(lm)`` computes what must come from the unedited model,
``edit(lm, edits, state)`` returns the patch and the next state. An instance holds hyper-parameters
and caches, never results, so a sequence of edits can be saved, resumed in another process and
undone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

import torch

from easyeditor.edits import Case, Edit
from easyeditor.errors import EditError, TrainingError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.model import LM
from easyeditor.methods.learning import Learner, TrainingHyperParams
from easyeditor.patches.patch import Patch

ST = TypeVar("ST", bound="State")


class Need(Enum):
    """What a method needs beside prompts and targets."""

    SUBJECT = "subject"
    """Every edit names the words of its prompt that the fact is about."""
    ARCHIVE = "archive"
    """Networks trained beside the model, named by ``hyperparams.archive``."""
    DEMONSTRATIONS = "demonstrations"
    """Other edits to show as examples; taken by :meth:`Method.use_corpus`."""
    REJECTED = "rejected"
    """Every edit names an answer that shall no longer be given."""
    IMAGES = "images"
    """Prompts with images."""


class State:
    """Base of the states of methods: a frozen dataclass of tensors and JSON values.

    Fields may be tensors, mappings of names to tensors, or what JSON holds (lists are read back as
    tuples). The trap: what is a *sum over edits* (keys, Gram matrices) does not belong here but
    into the patch of each edit (:attr:`Patch.extras`), so that undoing an edit removes its share.
    """

    def dump(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors by name, and everything else as JSON values."""
        tensors: dict[str, torch.Tensor] = {}
        data: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, torch.Tensor):
                tensors[field.name] = value
            elif isinstance(value, Mapping) and any(
                isinstance(item, torch.Tensor) for item in value.values()
            ):
                tensors |= {f"{field.name}/{key}": item for key, item in value.items()}
            else:
                data[field.name] = value
        return tensors, data

    @classmethod
    def load(cls: type[ST], tensors: Mapping[str, torch.Tensor], data: Mapping[str, Any]) -> ST:
        """The state that :meth:`dump` wrote.

        Raises:
            TypeError: fields are missing, or unknown.
        """
        values: dict[str, Any] = {name: _as_tuples(value) for name, value in data.items()}
        for name, tensor in tensors.items():
            field, _, key = name.partition("/")
            if key:
                values.setdefault(field, {})[key] = tensor
            else:
                values[field] = tensor
        return cls(**values)


def _as_tuples(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_as_tuples(item) for item in value)
    return value


S = TypeVar("S", bound=State)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[S]):
    """The result of one call of :meth:`Method.edit`.

    Attributes:
        patch: the change that carries out the edits.
        state: the state to give to the next call; None leaves it as it was.
    """

    patch: Patch
    state: S | None = None


class Method(ABC, Generic[S]):
    """Computes patches. Subclasses declare the members below and implement :meth:`edit`.

    Attributes:
        name: as it is registered.
        title: one line for lists of methods.
        hyperparams_class: its settings.
        training_class: its settings while it is trained; None for a method that is not.
        state_class: the class of its states; None for a method without any.
        max_batch: how many edits one call takes: 1, or None for any number.
        needs: see :class:`Need`.
        searches_expansions: :meth:`edit` makes an edit and its expansions as one; otherwise they
            are given to it as edits of their own.
        keeps: :meth:`edit` leaves the answers to :attr:`Edit.keep` as they are, as well as it can.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    hyperparams_class: ClassVar[type[HyperParams]]
    training_class: ClassVar[type[TrainingHyperParams] | None] = None
    state_class: ClassVar[type[State] | None] = None
    max_batch: ClassVar[int | None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()
    searches_expansions: ClassVar[bool] = False
    keeps: ClassVar[bool] = False

    hyperparams: HyperParams

    def __init__(self, hyperparams: HyperParams) -> None:
        self.hyperparams = hyperparams

    @property
    def batch_size(self) -> int:
        """How many edits an editor gives to one call: ``hyperparams.batch_size``, else one."""
        return int(getattr(self.hyperparams, "batch_size", 1))

    def initial_state(self, lm: LM) -> S | None:
        """Compute what must come from the unedited model: contexts, statistics, archives.

        It gives the same value whatever patches the model carries
        (:func:`~easyeditor.patches.stack.without_patches`), and nothing is kept on ``lm``.
        """
        return None

    @abstractmethod
    def edit(self, lm: LM, edits: Sequence[Edit], state: S | None = None) -> Outcome[S]:
        """The patch that makes all ``edits`` true at once, and the next state.

        The model is bit-identical afterwards, also when an exception is raised. ``state`` is
        :meth:`initial_state`'s, or the one that the edit before returned; None stands for the
        initial one.

        Raises:
            EditError: the edits cannot be carried out as they are written.
            EditFailedError: they were tried without success.
        """

    def edit_each(self, lm: LM, edits: Sequence[Edit], state: S | None = None) -> list[Outcome[S]]:
        """The outcomes of :meth:`edit` for edits that are made alone, each from the same model.

        A method that can share work between them overrides this.

        Raises:
            EditError, EditFailedError: as :meth:`edit`, for any of them.
        """
        return [self.edit(lm, [edit], state) for edit in edits]

    def use_corpus(self, cases: Iterable[Case]) -> None:
        """Take demonstrations from these cases; for methods with :attr:`Need.DEMONSTRATIONS`.

        Raises:
            EditError: this method takes none.
            DataError: there are no cases, or one cannot be read.
        """
        raise EditError(f"{self.name} takes no train_ds: it learns from the edits alone.")

    @classmethod
    def learner(cls, lm: LM, config: TrainingHyperParams) -> Learner:
        """The networks to be trained beside ``lm``; for methods with a ``training_class``.

        Raises:
            TrainingError: this method is not trained.
        """
        raise TrainingError(f"{cls.name} needs no training: edit with it as it is.")
