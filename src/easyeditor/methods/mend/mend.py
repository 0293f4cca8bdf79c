"""MEND: editing by transformed gradients (Mitchell et al., arXiv 2110.11309).

A trained network turns the gradient of the target's loss into the change of a few MLP weights: one
forward and one backward pass per batch of edits, whatever the facts are. What it has learnt is an
archive, which belongs to one model; see :mod:`easyeditor.methods.mend.learner`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.edits import Edit, check_consistent
from easyeditor.errors import ArchiveError, HyperParamsError
from easyeditor.gradients.factors import factors_of
from easyeditor.lm.model import LM
from easyeditor.methods.archive import check_count, read_archive
from easyeditor.methods.base import Method, Need, Outcome, State
from easyeditor.methods.learning import Learner, TrainingHyperParams
from easyeditor.methods.mend.learner import MENDLearner
from easyeditor.methods.mend.nets import check_rank
from easyeditor.methods.mend.settings import (
    USUAL,
    MENDHyperParams,
    MENDTrainingHparams,
    sites_of,
)
from easyeditor.patches.weight import LowRank, weight_patch
from easyeditor.timing import Stopwatch


class MEND(Method[State]):
    """Any number of edits at once, each as if it were alone, summed. Needs a trained archive.

    The trap: the networks saw one edit at a time on the unedited model; many edits at once, or
    one on top of another, disturb each other more than they do in methods that solve for them.
    """

    name = "MEND"
    title = "learnt transformation of gradients, arXiv 2110.11309"
    hyperparams_class = MENDHyperParams
    training_class = MENDTrainingHparams
    needs = frozenset({Need.ARCHIVE})

    hyperparams: MENDHyperParams

    def __init__(self, hyperparams: MENDHyperParams) -> None:
        super().__init__(hyperparams)
        self._cache: tuple[LM, MENDLearner] | None = None

    @property
    def batch_size(self) -> int:
        """``hyperparams.batch_size``."""
        return self.hyperparams.batch_size

    @classmethod
    def learner(cls, lm: LM, config: TrainingHyperParams) -> Learner:
        """The networks that are trained beside ``lm``."""
        assert isinstance(config, MENDTrainingHparams)
        return MENDLearner(lm, config)

    def initial_state(self, lm: LM) -> None:
        """Read the archive, once per model; edits have no state.

        Raises:
            HyperParamsError: none is given, or it was trained for other weights than
                ``inner_params`` or ``layers`` name.
            ArchiveError: it cannot be read, or is of another method or model.
        """
        self._open(lm)

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """The low-rank patch the networks make of the gradient; the model is only read.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            HyperParamsError: no archive is given.
            ArchiveError: it does not belong to this model.
            DivergedError: a number of the change is not finite.
        """
        check_consistent(edits)
        watch = Stopwatch()
        with watch("archive"):
            learnt = self._open(lm)
        rows = [lm.text.row(edit.prompt, edit.target) for edit in edits]
        with watch("gradient"), lm.at_rest():
            factors = factors_of(lm.target_logits, learnt.sites, rows)
        entries = {}
        network = learnt.network
        with watch("networks"), torch.no_grad():
            for site in learnt.sites:
                result = factors[site.path]
                u, v = network(
                    site.path, result.x.to(network.device), result.delta.to(network.device)
                )
                scaled = v * self.hyperparams.lr_scale
                entries[site.path] = [LowRank(u.T.contiguous().cpu(), scaled.contiguous().cpu())]
        settings = self.hyperparams.replace(
            layers=learnt.config.layers, inner_params=learnt.config.inner_params
        )
        return Outcome(weight_patch(lm, self.name, edits, settings, entries, watch.seconds))

    def _open(self, lm: LM) -> MENDLearner:
        if self._cache is not None and self._cache[0] is lm:
            return self._cache[1]
        settings = self.hyperparams
        if settings.archive is None:
            raise HyperParamsError(
                f"{self.name} edits with networks trained beside the model, and no archive= names "
                "them. Train them once: easyedit train --method mend --data FILE --model MODEL, "
                "or EditTrainer(config, train_set, val_set).run(); it says where the archive is."
            )
        archive = read_archive(settings.archive, self.name)
        archive.check(lm, self.name)
        try:
            config = MENDTrainingHparams(**archive.hyperparams)
            check_count(archive, "n_hidden", config.n_hidden)
            check_rank(archive, config.rank)
            learnt = MENDLearner(lm, config)
        except HyperParamsError as error:
            raise ArchiveError(f"The archive {archive.file} cannot be used: {error}") from None
        self._check_places(lm, learnt)
        learnt.fill(archive)
        self._cache = lm, learnt
        return learnt

    def _check_places(self, lm: LM, learnt: MENDLearner) -> None:
        settings = self.hyperparams
        if not settings.inner_params and tuple(settings.layers) == USUAL:
            return
        wanted = {site.path for site in sites_of(lm, settings.layers, settings.inner_params)}
        trained = {site.path for site in learnt.sites}
        if wanted != trained:
            raise HyperParamsError(
                f"The archive {settings.archive} was trained to edit {sorted(trained)}, not "
                f"{sorted(wanted)}. Leave layers and inner_params out, or train another."
            )
