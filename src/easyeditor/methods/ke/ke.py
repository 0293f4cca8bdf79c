"""KE, KnowledgeEditor: gates on a gradient, conditioned on the edit (De Cao et al., 2104.08164).

A recurrent network reads the prompt, the old and the new answer, and says which part of the
gradient of the new answer's loss is taken as the change; see :mod:`easyeditor.methods.ke.nets`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.edits import Edit
from easyeditor.errors import ArchiveError, HyperParamsError
from easyeditor.lm.model import LM
from easyeditor.methods.archive import Archive
from easyeditor.methods.base import Outcome, State
from easyeditor.methods.gradient_method import GradientMethod
from easyeditor.methods.ke.learner import KELearner
from easyeditor.methods.ke.settings import KEHyperParams, KETrainingHparams
from easyeditor.patches.weight import LowRank, weight_patch
from easyeditor.timing import Stopwatch


class KE(GradientMethod[State, KELearner]):
    """One edit at a time, one forward and one backward pass. Needs a trained archive.

    ``ground_truth``, where it is given, is the old answer that the network reads. The trap: it
    learns single edits of the unedited model; several in one model were never seen.
    """

    name = "KE"
    title = "gates on a gradient, conditioned on the edit, arXiv 2104.08164"
    hyperparams_class = KEHyperParams
    training_class = KETrainingHparams
    learner_class = KELearner
    max_batch = 1

    hyperparams: KEHyperParams

    @classmethod
    def check_archive(cls, archive: Archive, config: KETrainingHparams) -> None:
        """Refuse widths that the tensors do not bear out."""
        wanted = {
            "lstm.weight_hh_l0": (4 * config.hidden, config.hidden),
            "summary.weight": (config.condition, 2 * config.hidden),
            "gates.0.first.parametrizations.weight.original1": (
                config.gate_hidden,
                config.condition,
            ),
        }
        for name, shape in wanted.items():
            stored = archive.tensors.get(name)
            if stored is None or tuple(stored.shape) != shape:
                has = "no such tensor" if stored is None else f"shape {tuple(stored.shape)}"
                raise ArchiveError(
                    f"The archive {archive.file} says hidden={config.hidden}, condition="
                    f"{config.condition}, gate_hidden={config.gate_hidden}, and {name} has {has} "
                    f"instead of {shape}. Copy it again, or train again."
                )

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """The patch for one edit, of rank tokens + 1 at most; the model is only read.

        Raises:
            HyperParamsError: no archive is given, or more than one edit.
            ArchiveError: it does not belong to this model.
            DivergedError: a number of the change is not finite.
        """
        if len(edits) != 1:
            raise HyperParamsError(f"{self.name} makes one edit at a time, not {len(edits)}.")
        watch = Stopwatch()
        with watch("archive"):
            learnt = self.learnt(lm)
        with watch("networks"), lm.at_rest(), torch.no_grad():
            changes = learnt.edited(edits)
        scale = self.hyperparams.lr_scale
        entries = {
            path: [LowRank(u[0].T.contiguous().cpu(), (scale * v[0]).contiguous().cpu())]
            for path, (u, v) in changes.items()
        }
        settings = self.places(learnt)
        return Outcome(weight_patch(lm, self.name, edits, settings, entries, watch.seconds))
