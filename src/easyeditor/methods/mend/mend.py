"""MEND: editing by transformed gradients (Mitchell et al., arXiv 2110.11309).

A trained network turns the gradient of the target's loss into the change of a few MLP weights: one
forward and one backward pass per batch of edits, whatever the facts are. What it has learnt is an
archive, which belongs to one model; see :mod:`easyeditor.methods.mend.learner`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.edits import Edit, check_consistent
from easyeditor.gradients.factors import factors_of
from easyeditor.lm.model import LM
from easyeditor.methods.archive import Archive, check_count
from easyeditor.methods.base import Outcome, State
from easyeditor.methods.gradient_learner import check_rank
from easyeditor.methods.gradient_method import GradientMethod
from easyeditor.methods.mend.learner import MENDLearner
from easyeditor.methods.mend.settings import MENDHyperParams, MENDTrainingHparams
from easyeditor.patches.weight import LowRank, weight_patch
from easyeditor.timing import Stopwatch


class MEND(GradientMethod[State, MENDLearner]):
    """Any number of edits at once, each as if it were alone, summed. Needs a trained archive.

    The trap: the networks saw one edit at a time on the unedited model; many edits at once, or
    one on top of another, disturb each other more than they do in methods that solve for them.
    """

    name = "MEND"
    title = "learnt transformation of gradients, arXiv 2110.11309"
    hyperparams_class = MENDHyperParams
    training_class = MENDTrainingHparams
    learner_class = MENDLearner

    hyperparams: MENDHyperParams

    @classmethod
    def check_archive(cls, archive: Archive, config: MENDTrainingHparams) -> None:
        """Refuse sizes that the tensors do not bear out."""
        check_count(archive, "n_hidden", config.n_hidden)
        check_rank(archive, ".u", 1, config.rank)

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
            learnt = self.learnt(lm)
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
        settings = self.places(learnt)
        return Outcome(weight_patch(lm, self.name, edits, settings, entries, watch.seconds))
