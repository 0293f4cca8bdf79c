"""MALMEN: many edits at once by learnt value differences (Tan et al., arXiv 2311.04661).

Networks trained beside the model turn each answer position's gradient factors into the change that
the position wants, and one least-squares solve with a learnt regularization finds the weights'
change for all edits together; see :mod:`easyeditor.methods.malmen.nets`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.edits import Edit, check_consistent
from easyeditor.gradients.factors import answer_factors
from easyeditor.lm.model import LM
from easyeditor.methods.archive import Archive, check_count
from easyeditor.methods.base import Outcome, State
from easyeditor.methods.gradient_learner import check_rank
from easyeditor.methods.gradient_method import GradientMethod
from easyeditor.methods.malmen.learner import MALMENLearner
from easyeditor.methods.malmen.settings import MALMENHyperParams, MALMENTrainingHparams
from easyeditor.patches.weight import Part, smallest_part, weight_patch
from easyeditor.timing import Stopwatch


class MALMEN(GradientMethod[State, MALMENLearner]):
    """Any number of edits at once, solved for together. Needs a trained archive.

    The trap: the networks learn for one number of edits on the unedited model. A batch after batch
    in one model drifts.
    """

    name = "MALMEN"
    title = "learnt value differences and one solve for many edits, arXiv 2311.04661"
    hyperparams_class = MALMENHyperParams
    training_class = MALMENTrainingHparams
    learner_class = MALMENLearner

    hyperparams: MALMENHyperParams

    @classmethod
    def check_archive(cls, archive: Archive, config: MALMENTrainingHparams) -> None:
        """Refuse sizes that the tensors do not bear out."""
        check_count(archive, "n_blocks", config.n_blocks)
        check_rank(archive, ".a", 1, config.rank)

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """The patch for all ``edits``; the model is only read.

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
        with watch("gradient"):
            factors = answer_factors(lm, learnt.sites, rows)
        entries: dict[str, list[Part]] = {}
        network = learnt.network
        with watch("solve"), torch.no_grad():
            for path, (h, g) in factors.items():
                u, v = network(path, h.to(network.device), g.to(network.device))
                entries[path] = [smallest_part(u.T.cpu(), self.hyperparams.lr_scale * v.cpu())]
        settings = self.places(learnt)
        return Outcome(weight_patch(lm, self.name, edits, settings, entries, watch.seconds))
