"""Editing with networks that turn gradients into a change: what such methods do with an archive."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from easyeditor.errors import ArchiveError, HyperParamsError
from easyeditor.lm.model import LM
from easyeditor.methods.archive import Archive, read_archive
from easyeditor.methods.base import Method, Need, S
from easyeditor.methods.gradient_learner import GradientHyperParams, GradientLearner
from easyeditor.methods.learning import Learner, TrainingHyperParams

L = TypeVar("L", bound=GradientLearner)


class GradientMethod(Method[S], Generic[S, L]):
    """Base of the methods whose networks a :class:`GradientLearner` trains.

    Attributes:
        learner_class: trains the networks, and holds them for an edit.
    """

    needs = frozenset({Need.ARCHIVE})
    learner_class: ClassVar[type[GradientLearner]]

    hyperparams: GradientHyperParams

    def __init__(self, hyperparams: GradientHyperParams) -> None:
        super().__init__(hyperparams)
        self._cache: tuple[LM, L] | None = None

    @classmethod
    def learner(cls, lm: LM, config: TrainingHyperParams) -> Learner:
        """The networks that are trained beside ``lm``."""
        kind: Any = cls.learner_class
        learner: Learner = kind(lm, config)
        return learner

    @classmethod
    @abstractmethod
    def check_archive(cls, archive: Archive, config: Any) -> None:
        """Refuse sizes in an archive's header that its tensors do not bear out, before building.

        Raises:
            ArchiveError: header and tensors say different things.
        """

    def initial_state(self, lm: LM) -> S | None:
        """Read the archive, once per model; edits have no state but where a method says so.

        Raises:
            HyperParamsError: none is given, or it was trained for other weights than
                ``inner_params`` or ``layers`` name.
            ArchiveError: it cannot be read, or is of another method or model.
        """
        self.learnt(lm)
        return None

    def learnt(self, lm: LM) -> L:
        """The learner with what the archive holds, read once per model.

        Raises:
            HyperParamsError: no archive is given, or it was trained for other weights than
                ``inner_params`` or ``layers`` name.
            ArchiveError: it cannot be read, or is of another method or model.
        """
        if self._cache is not None and self._cache[0] is lm:
            return self._cache[1]
        settings, name = self.hyperparams, self.name
        if settings.archive is None:
            raise HyperParamsError(
                f"{name} edits with networks trained beside the model, and no archive= names "
                f"them. Train them once: easyedit train --method {name.lower()} --data FILE "
                "--model MODEL, or EditTrainer(config, train_set, val_set).run(); it says where "
                "the archive is."
            )
        archive = read_archive(settings.archive, name)
        archive.check(lm, name)
        training, kind = self.training_class, self.learner_class
        assert training is not None
        try:
            config: Any = training(**archive.hyperparams)
            self.check_archive(archive, config)
            learnt: Any = kind(lm, config)
        except HyperParamsError as error:
            raise ArchiveError(f"The archive {archive.file} cannot be used: {error}") from None
        self._check_places(lm, learnt)
        learnt.fill(archive)
        self._cache = lm, learnt
        result: L = learnt
        return result

    def _check_places(self, lm: LM, learnt: GradientLearner) -> None:
        settings = self.hyperparams
        default = type(settings).model_fields["layers"].default
        if not settings.inner_params and tuple(settings.layers) == tuple(default):
            return
        wanted = {s.path for s in learnt.sites_of(lm, settings.layers, settings.inner_params)}
        trained = {site.path for site in learnt.sites}
        if wanted != trained:
            raise HyperParamsError(
                f"The archive {settings.archive} was trained to edit {sorted(trained)}, not "
                f"{sorted(wanted)}. Leave layers and inner_params out, or train another."
            )

    def places(self, learnt: GradientLearner) -> GradientHyperParams:
        """The settings with the layers and weights that the archive says, for a patch's record."""
        config = learnt.config
        return self.hyperparams.replace(layers=config.layers, inner_params=config.inner_params)
