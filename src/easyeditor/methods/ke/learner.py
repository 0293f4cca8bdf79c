"""Training of KE: an edit must answer its paraphrase and leave an unrelated answer alone.

All cases of a batch run together, each row under the change of its own edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from easyeditor.edits import Case, Edit
from easyeditor.gradients.factors import differentiable_per_row, factors_of
from easyeditor.gradients.sites import named_projections
from easyeditor.hyperparams import Layers, resolve_layers
from easyeditor.lm.model import LM
from easyeditor.lm.projection import Projection
from easyeditor.methods.gradient_learner import Changes, GradientLearner, by_row
from easyeditor.methods.ke.nets import Network
from easyeditor.methods.ke.settings import KETrainingHparams

PROMPT, OLD, NEW = range(3)


class KELearner(GradientLearner):
    """Trains a :class:`Network` beside ``lm``."""

    name = "KE"
    module: Network
    config: KETrainingHparams

    @property
    def network(self) -> Network:
        """What is trained."""
        return self.module

    @classmethod
    def blocks_of(cls, lm: LM, layers: Layers) -> tuple[int, ...]:
        """Absolute numbers of the blocks."""
        return resolve_layers(usual_blocks(lm, layers), lm.n_layers)

    @classmethod
    def sites_of(cls, lm: LM, layers: Layers, inner_params: tuple[str, ...]) -> list[Projection]:
        """The weights that are named, else every MLP projection at ``layers``."""
        if inner_params:
            return named_projections(lm, inner_params)
        return lm.mlp_projections(usual_blocks(lm, layers))

    def build(self) -> Network:
        """The reader of texts, and gates for each weight."""
        config = self.config
        return Network(
            {site.path: (site.d_in, site.d_out) for site in self.sites},
            self.lm.model.get_input_embeddings().weight.shape[1],
            edit_lr=config.edit_lr,
            hidden=config.hidden,
            condition=config.condition,
            gate_hidden=config.gate_hidden,
            seed=config.seed,
        )

    def untrained(self) -> KELearner:
        """The first networks: a step against the gradient."""
        result = type(self)(self.lm, self.config)
        result._logits = self._logits
        return result

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The networks, and the scales with a step size of their own."""
        others = [p for p in self.network.parameters() if p is not self.network.rates]
        return [
            {"params": others, "lr": self.config.lr},
            {"params": [self.network.rates], "lr": self.config.lr_lr},
        ]

    def condition(self, edits: Sequence[Edit]) -> torch.Tensor:
        """What the networks read of the edits' texts, ``(edits, condition)``."""
        texts, kinds = [], []
        for edit in edits:
            row = self._row(edit.prompt, edit.target)
            old = self._row(edit.prompt, edit.ground_truth).target if edit.ground_truth else ()
            prompt = row.ids if self.lm.encoder_decoder else row.ids[: row.prompt_length]
            texts.append((*prompt, *old, *row.target))
            kinds.append([PROMPT] * len(prompt) + [OLD] * len(old) + [NEW] * len(row.target))
        batch = self.lm.pad(texts)
        with torch.no_grad():
            embed = self.lm.model.get_input_embeddings()
            embedded = embed(batch.ids).float()
            # Families scale their embeddings differently; a network reads those of length 1.
            embedded = torch.nn.functional.normalize(embedded, dim=-1) * embedded.shape[-1] ** 0.5
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(k) for k in kinds], True)
        device = self.network.device
        return self.network.read(embedded.to(device), padded.to(device), [len(k) for k in kinds])

    def changes(self, cases: Sequence[Case], *, learning: bool) -> Changes:
        """Per weight ``(edits, tokens + 1, d_in)`` and ``(edits, tokens + 1, d_out)``."""
        return self.edited([case.edit for case in cases])

    def edited(self, edits: Sequence[Edit]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """The same for edits; of shorter texts the rows of missing tokens are 0."""
        rows = [self._row(edit.prompt, edit.target) for edit in edits]
        factors_by_path = factors_of(self._logits, self.sites, rows)
        condition, changes = self.condition(edits), {}
        device = self.network.device
        for path, factors in factors_by_path.items():
            x, delta = factors.x.to(device), factors.delta.to(device)
            (u, v), (shift, gate) = self.network(path, condition, x, delta, factors.row.to(device))
            changes[path] = (
                torch.cat([by_row(factors, u, len(rows)), shift[:, None]], 1),
                torch.cat([by_row(factors, v, len(rows)), gate[:, None]], 1),
            )
        return changes

    def applied(self, changes: Changes, groups: int) -> AbstractContextManager[None]:
        """Each row under its own edit."""
        count = len(next(iter(changes.values()))[0])
        return differentiable_per_row(self.lm, changes, list(range(count)) * groups)


def usual_blocks(lm: LM, layers: Layers) -> Layers:
    """The last blocks as many as a model has; of an encoder-decoder the last two of each column."""
    if tuple(layers) != tuple(KETrainingHparams.model_fields["layers"].default):
        return layers
    return (-2, -1) if lm.encoder_decoder else layers[-lm.n_layers :]
