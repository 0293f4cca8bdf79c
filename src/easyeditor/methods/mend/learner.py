"""Training of MEND: an edit must answer its paraphrase and leave an unrelated answer alone.

For each case the gradient is taken at the edit's own prompt, the change it becomes is laid over
the weights, and the loss is ``cedit`` × NLL of the target on the *paraphrase* + ``cloc`` × KL of
the answer positions of an unrelated question, base ‖ edited (arXiv 2110.11309, section 3.2). All
cases of a batch run together, each row under its own edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from easyeditor.edits import Case
from easyeditor.gradients.factors import differentiable_per_row, factors_of
from easyeditor.hyperparams import Layers, resolve_layers
from easyeditor.lm.model import LM
from easyeditor.lm.projection import Projection
from easyeditor.methods.gradient_learner import Changes, GradientLearner, by_row
from easyeditor.methods.mend.nets import Network
from easyeditor.methods.mend.settings import MENDTrainingHparams, blocks_of, sites_of


class MENDLearner(GradientLearner):
    """Trains a :class:`Network` beside ``lm``."""

    name = "MEND"
    module: Network
    config: MENDTrainingHparams

    @property
    def network(self) -> Network:
        """What is trained."""
        return self.module

    @classmethod
    def blocks_of(cls, lm: LM, layers: Layers) -> tuple[int, ...]:
        """Absolute numbers of the blocks."""
        return resolve_layers(blocks_of(lm, layers), lm.n_layers)

    @classmethod
    def sites_of(cls, lm: LM, layers: Layers, inner_params: tuple[str, ...]) -> list[Projection]:
        """The weights that are named, else every MLP projection at ``layers``."""
        return sites_of(lm, layers, inner_params)

    def build(self) -> Network:
        """One network per shape of weight."""
        return Network(
            {site.path: (site.d_in, site.d_out) for site in self.sites},
            rank=self.config.rank,
            n_hidden=self.config.n_hidden,
            edit_lr=self.config.edit_lr,
            seed=self.config.seed,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The networks, and the rates with a step size of their own."""
        others = [p for p in self.network.parameters() if p is not self.network.rates]
        return [
            {"params": others, "lr": self.config.lr},
            {"params": [self.network.rates], "lr": self.config.lr_lr},
        ]

    def changes(self, cases: Sequence[Case], *, learning: bool) -> Changes:
        """Per weight ``(rows, positions, d_in)`` and ``(rows, positions, d_out)``."""
        rows, changes = self.rows(cases)[0], {}
        for path, factors in factors_of(self._logits, self.sites, rows).items():
            x, delta = factors.x.to(self.network.device), factors.delta.to(self.network.device)
            if learning:
                self.network.update(path, x, delta)
            u, v = self.network(path, x, delta)
            changes[path] = by_row(factors, u, len(rows)), by_row(factors, v, len(rows))
        return changes

    def applied(self, changes: Changes, groups: int) -> AbstractContextManager[None]:
        """Each row under its own edit."""
        count = len(next(iter(changes.values()))[0])
        return differentiable_per_row(self.lm, changes, list(range(count)) * groups)
