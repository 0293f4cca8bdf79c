"""Training of MALMEN: all edits of a batch in one change, their paraphrases, unrelated answers.

The loss is ``cedit`` × NLL of the targets on the paraphrases + ``cloc`` × KL of the answers to
unrelated questions, base ‖ edited, under the *one* change of all edits of the batch (arXiv
2311.04661, section 4.3). The model's passes go in chunks: each adds to the gradient at the change's
factors, and that gradient goes through the solve and the networks once, so memory does not grow
with the number of edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from easyeditor.edits import Case
from easyeditor.gradients.factors import TOKENS, answer_factors, differentiable
from easyeditor.gradients.losses import kl_per_token, mean_per_row, target_nll
from easyeditor.gradients.sites import named_projections
from easyeditor.hyperparams import Layers, resolve_layers
from easyeditor.lm.forward.batching import row_batches
from easyeditor.lm.model import LM
from easyeditor.lm.projection import Projection
from easyeditor.lm.tokens import Row
from easyeditor.methods.gradient_learner import Changes, GradientLearner
from easyeditor.methods.malmen.nets import Network
from easyeditor.methods.malmen.settings import MALMENTrainingHparams, shortened


class MALMENLearner(GradientLearner):
    """Trains a :class:`Network` beside ``lm``."""

    name = "MALMEN"
    module: Network
    config: MALMENTrainingHparams

    @property
    def network(self) -> Network:
        """What is trained."""
        return self.module

    @classmethod
    def blocks_of(cls, lm: LM, layers: Layers) -> tuple[int, ...]:
        """Absolute numbers; of a short model the usual layers are all."""
        return resolve_layers(shortened(layers, lm.n_layers), lm.n_layers)

    @classmethod
    def sites_of(cls, lm: LM, layers: Layers, inner_params: tuple[str, ...]) -> list[Projection]:
        """The weights that are named, else the down-projections at ``layers``."""
        if inner_params:
            return named_projections(lm, inner_params)
        return [site for layer in cls.blocks_of(lm, layers) for site in lm.projections(layer)]

    def build(self) -> Network:
        """One network per shape of weight."""
        return Network(
            {site.path: (site.d_in, site.d_out) for site in self.sites},
            rank=self.config.rank,
            n_blocks=self.config.n_blocks,
            edit_lr=self.config.edit_lr,
            seed=self.config.seed,
        )

    def untrained(self) -> MALMENLearner:
        """The first networks with the statistics of the training: what the training is held to."""
        result = type(self)(self.lm, self.config)
        result._logits = self._logits
        result.module.load_state_dict(dict(self.module.named_buffers()), strict=False)
        return result

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All with one step size, as published."""
        return [{"params": list(self.network.parameters()), "lr": self.config.lr}]

    @property
    def edits_at_once(self) -> int:
        """As many as in the training: the networks learn for one number of edits."""
        return self.config.batch_size

    def changes(self, cases: Sequence[Case], *, learning: bool) -> Changes:
        """Per weight ``(n, d_in)`` and ``(n, d_out)`` of all positions that predict answers."""
        rows, changes = self.rows(cases)[0], {}
        for path, (h, g) in answer_factors(self.lm, self.sites, rows, self._logits).items():
            h, g = h.to(self.network.device), g.to(self.network.device)
            if learning:
                self.network.update(path, h, g)
            changes[path] = self.network(path, h, g)
        return changes

    def applied(self, changes: Changes, groups: int) -> AbstractContextManager[None]:
        """All rows under one change."""
        return differentiable(self.lm, changes)

    def loss(self, cases: Sequence[Case]) -> dict[str, torch.Tensor]:
        """See the module; the value is that of the whole batch, its gradient the networks'."""
        with torch.enable_grad():
            changes = self.changes(cases, learning=self.module.training)
            parts, gradients = self.outer(cases, changes)
            return {"loss": carrying(parts["loss"], changes, gradients), **_logged(parts)}

    def outer(
        self, cases: Sequence[Case], changes: Changes, earlier: Changes | None = None
    ) -> tuple[dict[str, torch.Tensor], Changes]:
        """Losses of ``cases`` under ``changes``, and their gradients at its factors.

        Args:
            cases: whose paraphrases and unrelated questions are asked.
            changes: factors; the gradients are those at these, as if they were leaves.
            earlier: a constant change of which the model carries ``changes`` on top, and under
                which the unrelated answers are those to keep; None: the unedited model.
        """
        earlier = earlier or {}
        edits, rephrasings, unrelated = self.rows(cases)
        by_kind = {"prompt": edits, "rephrase": rephrasings}
        outer = [row for where in self._asked for row in by_kind[where]]
        leaves = {
            path: (u.detach().requires_grad_(), v.detach().requires_grad_())
            for path, (u, v) in changes.items()
        }
        flat = [leaf for pair in leaves.values() for leaf in pair]
        edited = joined(earlier, leaves)
        totals = [torch.zeros_like(leaf) for leaf in flat]
        nll = kl = torch.zeros((), device=self.network.device)
        with self.lm.at_rest():
            for chunk in _chunks(outer):
                with differentiable(self.lm, edited):
                    loss = target_nll(self._logits(chunk).float(), chunk).sum() / len(outer)
                _add(totals, torch.autograd.grad(self.config.cedit * loss, flat))
                nll = nll + loss.detach().to(nll.device)
            for chunk in _chunks(unrelated):
                with torch.no_grad(), differentiable(self.lm, earlier):
                    first = self._logits(chunk).float().log_softmax(-1)
                with differentiable(self.lm, edited):
                    now = self._logits(chunk).float().log_softmax(-1)
                loss = mean_per_row(kl_per_token(first, now), chunk).sum() / len(unrelated)
                _add(totals, torch.autograd.grad(self.config.cloc * loss, flat))
                kl = kl + loss.detach().to(kl.device)
        parts = {**self._total(nll, kl), "edit_nll": nll, "loc_kl": kl}
        pairs = zip(totals[::2], totals[1::2], strict=True)
        return parts, dict(zip(leaves, pairs, strict=True))


def joined(one: Changes, two: Changes) -> Changes:
    """The factors of both changes together."""
    if not one:
        return two
    return {
        path: (torch.cat([one[path][0], u]), torch.cat([one[path][1], v]))
        for path, (u, v) in two.items()
    }


def carrying(value: torch.Tensor, changes: Changes, gradients: Changes) -> torch.Tensor:
    """``value`` as a tensor whose backward pass gives ``changes`` these gradients."""
    total = sum(
        (tensor * gradient).sum()
        for path, pair in changes.items()
        for tensor, gradient in zip(pair, gradients[path], strict=True)
    )
    assert isinstance(total, torch.Tensor)
    return value + (total - total.detach())


def _add(totals: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> None:
    for total, gradient in zip(totals, gradients, strict=True):
        total += gradient


def _chunks(rows: Sequence[Row]) -> list[list[Row]]:
    return [[rows[i] for i in chunk] for chunk in row_batches(rows, TOKENS, TOKENS)]


def _logged(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: part for name, part in parts.items() if name != "loss"}
