"""Training of MEND: an edit must answer its paraphrase and leave an unrelated answer alone.

For each case the gradient is taken at the edit's own prompt, the change it becomes is laid over
the weights, and the loss is ``cedit`` × NLL of the target on the *paraphrase* + ``cloc`` × KL of
the answer positions of an unrelated question, base ‖ edited (arXiv 2110.11309, section 3.2). All
cases of a batch run together, each row under its own edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from easyeditor.edits import Case
from easyeditor.gradients.factors import Logits, differentiable_per_row, factors_of
from easyeditor.gradients.losses import kl_per_token, mean_per_row, target_nll
from easyeditor.hyperparams import resolve_layers
from easyeditor.lm.forward.lower_block_cache import LowerBlockCache, first_block
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.methods.archive import Archive, fill, read_archive, write_archive
from easyeditor.methods.learning import probe_of
from easyeditor.methods.mend.nets import Network
from easyeditor.methods.mend.settings import MENDTrainingHparams, blocks_of, sites_of

NAME = "MEND"


class MENDLearner:
    """Trains a :class:`Network` beside ``lm``; see :class:`easyeditor.methods.learning.Learner`."""

    module: nn.Module

    def __init__(self, lm: LM, config: MENDTrainingHparams) -> None:
        self.lm, self.config = lm, config
        self.sites = sites_of(lm, config.layers, config.inner_params)
        self.network = Network(
            {site.path: (site.d_in, site.d_out) for site in self.sites},
            rank=config.rank,
            n_hidden=config.n_hidden,
            edit_lr=config.edit_lr,
            seed=config.seed,
        ).to(lm.device)
        self.module = self.network
        self._row = lru_cache(maxsize=50_000)(lm.text.row)
        where = config.edit_loss_on
        self._asked = ("prompt", "rephrase") if where == "both" else (where,)
        self._logits: Logits = lm.target_logits

    def prepare(self, cases: Sequence[Case]) -> None:
        """Compute what never changes once, where these cases' share of it fits into memory."""
        rows = [row for of_kind in self._rows(cases) for row in of_kind]
        start = first_block(self.lm, [site.path for site in self.sites])
        if start and LowerBlockCache.bytes_for(self.lm, rows) <= self.config.cache_mb * 2**20:
            trunk = LowerBlockCache(self.lm, start)
            if trunk.agrees(rows[: self.config.batch_size]):
                self._logits = trunk.target_logits

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The networks, and the rates with a step size of their own."""
        others = [p for p in self.network.parameters() if p is not self.network.rates]
        return [
            {"params": others, "lr": self.config.lr},
            {"params": [self.network.rates], "lr": self.config.lr_lr},
        ]

    def loss(self, cases: Sequence[Case]) -> dict[str, torch.Tensor]:
        """``cedit`` × edit NLL + ``cloc`` × KL, means over the cases; both parts are logged."""
        edits, rephrasings, unrelated = self._rows(cases)
        by_kind = {"prompt": edits, "rephrase": rephrasings}
        outer = [row for where in self._asked for row in by_kind[where]]
        with self.lm.at_rest():
            changes = self._changes(edits, learning=self.network.training)
            with torch.no_grad():
                before = self._logits(unrelated).float().log_softmax(-1)
            change_of_row = list(range(len(cases))) * (1 + len(outer) // len(edits))
            with differentiable_per_row(self.lm, changes, change_of_row):
                logits = self._logits(outer + unrelated).float()
        cut = len(logits) - len(before)
        edit = target_nll(logits[:cut], outer).mean()
        drift = mean_per_row(kl_per_token(before, logits[cut:].log_softmax(-1)), unrelated).mean()
        return {**self._total(edit, drift), "edit_nll": edit.detach(), "loc_kl": drift.detach()}

    def _total(self, edit: torch.Tensor, drift: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.config.cedit * edit + self.config.cloc * drift}

    @torch.no_grad()
    def validate(self, cases: Sequence[Case]) -> dict[str, float]:
        """Losses and accuracies, each case edited alone, all of a batch at once."""
        metrics: dict[str, list[float]] = {}
        training = self.network.training
        self.network.eval()
        try:
            for start in range(0, len(cases), self.config.val_batch_size):
                chunk = cases[start : start + self.config.val_batch_size]
                for name, values in self._judge(chunk).items():
                    metrics.setdefault(name, []).extend(values.tolist())
        finally:
            self.network.train(training)
        return {name: sum(values) / len(values) for name, values in metrics.items()}

    def _judge(self, cases: Sequence[Case]) -> dict[str, torch.Tensor]:
        edits, rephrasings, unrelated = self._rows(cases)
        with self.lm.at_rest():
            changes = self._changes(edits, learning=False)
            before = self._logits(unrelated).float().log_softmax(-1)
            change_of_row = list(range(len(cases)))
            with differentiable_per_row(
                self.lm, changes, change_of_row * (3 if rephrasings else 2)
            ):
                logits = self._logits([*edits, *rephrasings, *unrelated]).float()
        sizes = [sum(len(row.target) for row in rows) for rows in (edits, rephrasings, unrelated)]
        on_edit, on_again, on_near = torch.split(logits, sizes)
        by_kind = {"prompt": (on_edit, edits), "rephrase": (on_again, rephrasings)}
        edit = torch.stack([target_nll(*by_kind[where]) for where in self._asked]).mean(0)
        drift = mean_per_row(kl_per_token(before, on_near.log_softmax(-1)), unrelated)
        metrics = {
            "edit_loss": self._total(edit, drift)["loss"],
            "edit_nll": edit,
            "loc_kl": drift,
            "rewrite": _hits(on_edit, edits),
            "locality": mean_per_row((on_near.argmax(-1) == before.argmax(-1)).float(), unrelated),
        }
        if rephrasings:
            metrics["rephrase"] = _hits(on_again, rephrasings)
        return metrics

    def _rows(self, cases: Sequence[Case]) -> tuple[list[Row], list[Row], list[Row]]:
        """Rows of the edits, their paraphrases (none where a case has none), the unrelated."""
        edits = [self._row(case.edit.prompt, case.edit.target) for case in cases]
        unrelated = [probe_of(case, "locality") for case in cases]
        rephrasings = []
        if all(any(p.group == "rephrase" for p in case.probes) for case in cases):
            rephrasings = [
                self._row(probe_of(case, "rephrase").prompt, case.edit.target) for case in cases
            ]
        return edits, rephrasings, [self._row(near.prompt, near.answers[0]) for near in unrelated]

    def _changes(
        self, rows: Sequence[Row], *, learning: bool
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Per weight ``(rows, positions, d_in)`` and ``(rows, positions, d_out)``."""
        changes = {}
        for path, factors in factors_of(self._logits, self.sites, rows).items():
            x, delta = factors.x.to(self.network.device), factors.delta.to(self.network.device)
            if learning:
                self.network.update(path, x, delta)
            u, v = self.network(path, x, delta)
            where = (factors.row.to(u.device), factors.place.to(u.device))
            length = int(factors.place.max()) + 1
            changes[path] = (
                u.new_zeros(len(rows), length, u.shape[1]).index_put(where, u),
                v.new_zeros(len(rows), length, v.shape[1]).index_put(where, v),
            )
        return changes

    def save(self, folder: Path) -> Path:
        """Write ``folder/archive.safetensors``."""
        layers = self.config.layers
        if not self.config.inner_params:
            layers = resolve_layers(blocks_of(self.lm, layers), self.lm.n_layers)
        paths = tuple(site.path for site in self.sites)
        settings = self.config.replace(layers=layers, inner_params=paths)
        return write_archive(folder, self.lm, NAME, settings, self.network.state_dict())

    def load(self, archive: Path) -> None:
        """Take over what an archive holds."""
        self.fill(read_archive(archive, NAME))

    def fill(self, archive: Archive) -> None:
        """Take over an archive that was read; all of it or nothing."""
        archive.check(self.lm, NAME)
        fill(self.network, archive)
        self.network.eval()


def _hits(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    targets = torch.tensor([token for row in rows for token in row.target], device=logits.device)
    return mean_per_row((logits.argmax(-1) == targets).float(), rows)
