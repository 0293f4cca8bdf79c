"""SERAC: a memory of edits with a scope classifier (Mitchell et al., arXiv 2206.06520).

No weight of the model changes. What an edit concerns is decided by a classifier, and answered
there by a small counterfactual model that is told the edit; both are trained once, see
:mod:`easyeditor.methods.serac.learner`.
"""

from __future__ import annotations

from collections.abc import Sequence

from easyeditor.edits import Edit, check_consistent
from easyeditor.errors import ArchiveError, HyperParamsError
from easyeditor.lm.model import LM
from easyeditor.methods.archive import Archive, read_archive
from easyeditor.methods.base import Method, Need, Outcome, State
from easyeditor.methods.learning import Learner, TrainingHyperParams
from easyeditor.methods.serac.learner import SERACLearner
from easyeditor.methods.serac.nets import nets_of, scope_of
from easyeditor.methods.serac.patch import Remembered, Scope, ScopePatch
from easyeditor.methods.serac.settings import SERACHyperParams, SERACTrainingHparams
from easyeditor.patches.patch import PatchInfo
from easyeditor.timing import Stopwatch


class SERAC(Method[State]):
    """Any number of edits, each one line of a memory. Needs a trained archive.

    The memory is the patch's: patches that a model carries act as one memory, and each can be
    undone by itself.
    """

    name = "SERAC"
    title = "scope classifier and counterfactual model, arXiv 2206.06520"
    hyperparams_class = SERACHyperParams
    training_class = SERACTrainingHparams
    needs = frozenset({Need.ARCHIVE})

    hyperparams: SERACHyperParams

    def __init__(self, hyperparams: SERACHyperParams) -> None:
        super().__init__(hyperparams)
        self._cache: tuple[LM, Scope] | None = None

    @classmethod
    def learner(cls, lm: LM, config: TrainingHyperParams) -> Learner:
        """The networks that are trained beside ``lm``."""
        assert isinstance(config, SERACTrainingHparams)
        return SERACLearner(lm, config)

    def initial_state(self, lm: LM) -> None:
        """Read the archive, once per model; edits have no state.

        Raises:
            HyperParamsError: none is given, or its networks are not those that are named.
            ArchiveError: it cannot be read, or is of another method or for another tokenizer.
        """
        self._open(lm)

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """A patch that remembers ``edits``; the model is only read.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            HyperParamsError, ArchiveError: see :meth:`initial_state`.
        """
        check_consistent(edits)
        watch = Stopwatch()
        with watch("archive"):
            scope = self._open(lm)
        with watch("classifier"):
            vectors = scope.vectors([edit.prompt for edit in edits], lm)
        info = PatchInfo.of(lm, self.name, edits, self.hyperparams, watch.seconds)
        return Outcome(ScopePatch(info, [Remembered.of(edit) for edit in edits], vectors, scope))

    def _open(self, lm: LM) -> Scope:
        if self._cache is not None and self._cache[0] is lm:
            return self._cache[1]
        settings = self.hyperparams
        if settings.archive is None:
            raise HyperParamsError(
                f"{self.name} edits with a trained scope classifier and counterfactual model, and "
                "no archive= names them; untrained they would not know what an edit concerns. "
                "Train them once: easyedit train --method serac --data FILE --model MODEL, or "
                "EditTrainer(config, train_set, val_set).run(); it says where the archive is."
            )
        archive = read_archive(settings.archive, self.name)
        nets = nets_of(archive, lm)
        try:
            config = SERACTrainingHparams(**archive.hyperparams)
        except HyperParamsError as error:
            raise ArchiveError(f"The archive {archive.file} cannot be used: {error}") from None
        self._check_names(archive, config)
        self._cache = lm, scope_of(archive, nets, config, settings)
        return self._cache[1]

    def _check_names(self, archive: Archive, config: SERACTrainingHparams) -> None:
        wrong = []
        for name in ("small_name", "cls_name"):
            wanted, trained = getattr(self.hyperparams, name), getattr(config, name)
            if wanted and trained and _last(wanted) != _last(trained):
                wrong.append(f"{name}={trained!r}, not {wanted!r}")
        if wrong:
            raise HyperParamsError(
                f"The archive {archive.file} was trained with {' and '.join(wrong)}. Leave these "
                "out, or give another archive."
            )


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
