"""Training of SERAC: which prompts an edit concerns, and what is answered there.

The classifier is trained with cross-entropy on scope: a paraphrase is in the scope of its edit;
an unrelated question, and whatever belongs to another case of the batch, is not. The nearest edit
decides later, so the nearest foreign edit counts here. The counterfactual model is trained with
cross-entropy on the target, asked the edit's own prompt and its paraphrase with the edit told
before (arXiv 2206.06520, sections 3 and 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from easyeditor.edits import Case, Edit
from easyeditor.errors import HyperParamsError
from easyeditor.gradients.losses import kl_per_token
from easyeditor.lm.inference import score
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.methods.archive import fill, read_archive
from easyeditor.methods.learning import probe_of
from easyeditor.methods.serac.nets import NAME, Nets, nets_of
from easyeditor.methods.serac.patch import THRESHOLD, distances, told
from easyeditor.methods.serac.settings import SERACTrainingHparams

NEAREST = 1e-6
"""A squared distance is not taken for less where its logarithm is needed."""

Asked = tuple[Edit, str, str]
"""The edit that is told, the question, the answer."""


class SERACLearner:
    """Trains :class:`Nets` beside ``lm``; see :class:`easyeditor.methods.learning.Learner`.

    Raises:
        HyperParamsError: ``edit_loss_on`` is not ``"rephrase"``; see also :meth:`Nets.named`.
    """

    module: nn.Module

    def __init__(self, lm: LM, config: SERACTrainingHparams) -> None:
        if config.edit_loss_on != "rephrase":
            raise HyperParamsError(
                f"edit_loss_on={config.edit_loss_on!r}: a scope classifier learns from "
                "paraphrases, so it must be 'rephrase' here, and the data must have them."
            )
        self.lm, self.config = lm, config
        self.nets = Nets.named(lm, config)
        self.module = self.nets
        chat = lm.text.chat_template
        self.small = LM(self.nets.counterfactual, lm.tokenizer, chat_template=chat)
        self.nets.counterfactual.requires_grad_(not config.freeze_cntr)

    def prepare(self, cases: Sequence[Case]) -> None:
        """Nothing is computed beforehand: both networks change with every step."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The counterfactual model, the classifier's network, and the linear map on that."""
        config, classifier = self.config, self.nets.classifier
        small = [p for p in self.nets.counterfactual.parameters() if p.requires_grad]
        groups = [
            {"params": small, "lr": config.lr},
            {"params": list(classifier.body.parameters()), "lr": config.cls_lr or config.lr},
            {"params": list(classifier.head.parameters()), "lr": config.head_lr},
        ]
        return [group for group in groups if group["params"]]

    def loss(self, cases: Sequence[Case]) -> dict[str, torch.Tensor]:
        """``cedit`` × answer + ``cloc`` × scope, means over the cases; the parts are logged."""
        edits = [case.edit.prompt.text for case in cases]
        rephrasings = [_again(case) for case in cases]
        unrelated_probes = [probe_of(case, "locality") for case in cases]
        apart, place = self._apart(
            edits, [*rephrasings, *(probe.prompt.text for probe in unrelated_probes)]
        )
        edit_of_case = torch.arange(len(cases))
        d_again = apart[[place[text.strip()] for text in rephrasings], edit_of_case]
        d_near = apart[
            [place[probe.prompt.text.strip()] for probe in unrelated_probes], edit_of_case
        ]
        inside = d_again.mean()  # −log s
        outside = _foreign(apart, place, edits, rephrasings)
        parts = {"scope_in": inside, "scope_out": outside}
        answers = [(c.edit, c.edit.prompt.text, c.edit.target) for c in cases]
        answers += [
            (c.edit, again, c.edit.target) for c, again in zip(cases, rephrasings, strict=True)
        ]
        if self.config.soft_weighting:
            apart_asked = torch.cat([torch.zeros_like(d_again), d_again])
            parts["answer_nll"] = self._mixed_nll(answers, apart_asked)
            unrelated = [
                (c.edit, p.prompt.text, p.answers[0])
                for c, p in zip(cases, unrelated_probes, strict=True)
            ]
            parts["loc_kl"] = self._drift(unrelated, d_near)
        else:
            log_p, rows = self._small(answers)
            parts["answer_nll"] = _means(-_picked(log_p, rows), rows).mean()
        scope = self.config.in_scope_weight * inside + outside + parts.get("loc_kl", 0)
        loss = self.config.cedit * parts["answer_nll"] + self.config.cloc * scope
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def _apart(
        self, edits: Sequence[str], queries: Sequence[str]
    ) -> tuple[torch.Tensor, dict[str, int]]:
        """Squared distances ``(texts, edits)`` of every text to every edit, and the texts' rows."""
        texts = list(dict.fromkeys(text.strip() for text in (*edits, *queries)))
        place = {text: i for i, text in enumerate(texts)}
        vectors = self.nets.classifier(texts)
        return distances(vectors, vectors[[place[text.strip()] for text in edits]]), place

    def _small(self, queries: Sequence[Asked]) -> tuple[torch.Tensor, list[Row]]:
        """The counterfactual model's log-probabilities, and its rows."""
        template = self.config.template
        rows = [self.small.text.row(told(template, e, question), a) for e, question, a in queries]
        return self.small.target_logits(rows).float().log_softmax(-1), rows

    def _mixed(
        self, queries: Sequence[Asked], apart: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[Row]]:
        """Log-probabilities of the base and of ``s`` × counterfactual + ``(1 − s)`` × base."""
        rows = [self.lm.text.row(question, answer) for _, question, answer in queries]
        with self.lm.at_rest(), torch.no_grad():
            base = self.lm.target_logits(rows).float().log_softmax(-1)
        small, _ = self._small(queries)
        width = min(base.shape[1], small.shape[1])  # GPT-J's has rows that no token uses
        lengths = torch.tensor([len(row.target) for row in rows], device=apart.device)
        d = torch.repeat_interleave(apart, lengths)[:, None]
        log_rest = torch.log(-torch.expm1(-d.clamp(min=NEAREST)))
        mixed = torch.logaddexp(small[:, :width] - d, base[:, :width] + log_rest)
        return base[:, :width], mixed, rows

    def _mixed_nll(self, queries: Sequence[Asked], apart: torch.Tensor) -> torch.Tensor:
        _, mixed, rows = self._mixed(queries, apart)
        return _means(-_picked(mixed, rows), rows).mean()

    def _drift(self, queries: Sequence[Asked], apart: torch.Tensor) -> torch.Tensor:
        """KL(base ‖ mixture) at the unrelated answers."""
        base, mixed, rows = self._mixed(queries, apart)
        return _means(kl_per_token(base, mixed), rows).mean()

    @torch.no_grad()
    def validate(self, cases: Sequence[Case]) -> dict[str, float]:
        """The loss, and accuracies of each case edited alone."""
        metrics: dict[str, float] = {}
        size = self.config.val_batch_size
        for start in range(0, len(cases), size):
            chunk = cases[start : start + size]
            unrelated = [probe_of(case, "locality") for case in chunk]
            evaluate_cases = {
                "edit_loss": float(self.loss(chunk)["loss"]) * len(chunk),
                "rewrite": self._hits(chunk, [(c.edit.prompt.text, c.edit.target) for c in chunk]),
                "rephrase": self._hits(chunk, [(_again(c), c.edit.target) for c in chunk]),
                "locality": self._hits(
                    chunk, [(p.prompt.text, p.answers[0]) for p in unrelated], unchanged=True
                ),
            }
            for name, value in evaluate_cases.items():
                metrics[name] = metrics.get(name, 0.0) + value / len(cases)
        return metrics

    def _hits(
        self, cases: Sequence[Case], queries: Sequence[tuple[str, str]], *, unchanged: bool = False
    ) -> float:
        """Sum over the cases of the share of right tokens (``unchanged``: of tokens as before)."""
        apart, place = self._apart([c.edit.prompt.text for c in cases], [q for q, _ in queries])
        near = torch.exp(-apart).tolist()
        inside = [i for i, (q, _) in enumerate(queries) if near[place[q.strip()]][i] > THRESHOLD]
        outside = [i for i in range(len(queries)) if i not in inside]
        template = self.config.template
        pairs = [(told(template, cases[i].edit, queries[i][0]), queries[i][1]) for i in inside]
        after = dict(zip(inside, score(self.small, pairs), strict=True))
        asked_base = inside if unchanged else outside  # what stays with the base is kept anyway
        base = dict(zip(asked_base, score(self.lm, [queries[i] for i in asked_base]), strict=True))
        total = float(len(outside)) if unchanged else 0.0
        for i in inside if unchanged else range(len(queries)):
            wanted = base[i].argmax if unchanged else (after.get(i) or base[i]).target
            predicted = (after.get(i) or base[i]).argmax
            total += sum(a == b for a, b in zip(predicted, wanted, strict=True)) / len(wanted)
        return total

    def untrained(self) -> None:
        """None: an untrained scope tells nothing apart."""

    def save(self, folder: Path) -> Path:
        """Write ``folder/archive.safetensors``."""
        return self.nets.save(folder, self.lm, self.config)

    def load(self, archive: Path) -> None:
        """Take over what an archive holds."""
        content = read_archive(archive, NAME)
        nets_of(content, self.lm)  # says what is wrong with it before anything is changed
        fill(self.nets, content)


def _again(case: Case) -> str:
    return probe_of(case, "rephrase").prompt.text


def _foreign(
    apart: torch.Tensor, place: dict[str, int], edits: Sequence[str], rephrasings: Sequence[str]
) -> torch.Tensor:
    """Cross-entropy of every text and its nearest edit among those it does not belong to."""
    owners: dict[str, set[str]] = {}
    for edit, again in zip(edits, rephrasings, strict=True):
        for text in (edit, again):
            owners.setdefault(text.strip(), set()).add(edit.strip())
    known = [[edit.strip() in owners.get(text, ()) for edit in edits] for text in place]
    foreign = apart.masked_fill(torch.tensor(known, device=apart.device), torch.inf)
    nearest = foreign.min(1).values.clamp(min=NEAREST)
    losses = -torch.log(-torch.expm1(-nearest))  # 0 for a text without a foreign edit
    return losses.sum() / nearest.isfinite().sum().clamp(min=1)


def _picked(log_p: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Of every target token, ``(sum of target lengths,)``."""
    targets = torch.tensor([token for row in rows for token in row.target], device=log_p.device)
    return log_p.gather(1, targets[:, None])[:, 0]


def _means(values: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Mean per row of values at its target tokens."""
    by_row = torch.split(values, [len(row.target) for row in rows])
    return torch.stack([of_row.mean() for of_row in by_row])
