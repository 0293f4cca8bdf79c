"""FT: fine-tuning a few down-projections under a box, the baseline every editor is held against.

Adam on the listed weights; after each step every number is put back to within ``norm_constraint``
of where it was (an L∞ box). Two objectives: ``prompt_last`` (FT-L, the ROME paper's baseline, arXiv
2202.05262, appendix E.1: all target tokens read at the last prompt position) and ``target_new``
(FT-M: cross-entropy over the target tokens). The trap: without a box FT learns the fact and forgets
the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field

from easyeditor.edits import Edit, check_consistent
from easyeditor.errors import DivergedError, HyperParamsError
from easyeditor.hyperparams import HyperParams, Layers
from easyeditor.lm.hooks import substituting
from easyeditor.lm.model import LM
from easyeditor.lm.projection import NamedWeight
from easyeditor.lm.tokens import Row
from easyeditor.lm.weights import weight_handle
from easyeditor.methods.base import Method, Outcome, State
from easyeditor.patches.weight import Dense, weight_patch
from easyeditor.progress import bar
from easyeditor.timing import Stopwatch

ENOUGH = 1e-2
"""A loss under which a step is skipped, and an epoch ends the training."""


class FTHyperParams(HyperParams):
    """Settings of FT-L and FT-M; defaults as published, the layer relative to the depth."""

    ignored: ClassVar[frozenset[str]] = frozenset({"kl_factor", "max_length"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {"layers": [0], "norm_constraint": 5e-4},
        "gpt-j-6B": {"layers": [21], "norm_constraint": 5e-5},
        "gpt-neo-2.7B": {"layers": [21], "norm_constraint": 5e-5},
        "llama-7b": {"layers": [21]},
        "llama-2-7b": {"layers": [21]},
        "t5-3b": {"layers": [0, 21], "num_steps": 50, "objective_optimization": "target_new"},
        "smollm2-135m": {"layers": [20], "objective_optimization": "target_new"},
    }

    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "FT-L": {"objective_optimization": "prompt_last"},
        "FT-M": {"objective_optimization": "target_new"},
    }

    alg_name: str = "FT"
    layers: Layers = (0.66,)
    modules: tuple[str, ...] = ()
    """Weights to train in place of the down-projections, as ``print(model)`` names them; ``{}``
    stands for each of ``layers``."""
    num_steps: int = Field(25, ge=1)
    batch_size: int = Field(1, ge=1)
    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    # Classic files switch the box off with `norm_constraint: false`.
    norm_constraint: Annotated[
        float | None, BeforeValidator(lambda value: None if value is False else value)
    ] = Field(None, gt=0)
    objective_optimization: Literal["prompt_last", "target_new"] = "prompt_last"
    append_eos: bool = False


class FT(Method[State]):
    """Constrained fine-tuning; ``edit`` learns all it is given together.

    The trap: an editor hands over ``batch_size`` edits at a time, 1 by default, in sequence.
    """

    name = "FT"
    title = "constrained fine-tuning (FT-L, FT-M)"
    hyperparams_class = FTHyperParams

    hyperparams: FTHyperParams

    @property
    def batch_size(self) -> int:
        """``hyperparams.batch_size``."""
        return self.hyperparams.batch_size

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """The dense patch that training on ``edits`` leads to; the model's weights are only read.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            DivergedError: a loss is not a number.
        """
        check_consistent(edits)
        settings = self.hyperparams.resolved(lm.n_layers)
        if lm.encoder_decoder:  # the decoder's first position is not where a prompt ends
            settings = settings.replace(objective_optimization="target_new")
        watch = Stopwatch()
        projections = lm.weights([int(layer) for layer in settings.layers], settings.modules)
        rows = [lm.text.row(edit.prompt, edit.target) for edit in edits]
        if settings.append_eos:
            rows = [_with_eos(row, lm) for row in rows]
        # Learnt in float32 whatever the model's precision: a bfloat16 step of 5e-4 rounds to
        # nothing.
        # The unedited weights are read again when they are needed, not kept.
        learnt = {
            p.path: p.stored.to(torch.float32, copy=True).requires_grad_() for p in projections
        }
        with watch("train"), lm.at_rest():
            self._train(lm, rows, projections, learnt, settings)
        entries = {}
        for p in projections:
            change = learnt.pop(p.path).detach().sub_(p.stored.float())
            entries[p.path] = [Dense((change.T if p.transposed else change).contiguous())]
        return Outcome(weight_patch(lm, self.name, edits, settings, entries, watch.seconds))

    @staticmethod
    def _train(
        lm: LM,
        rows: Sequence[Row],
        projections: Sequence[NamedWeight],
        learnt: dict[str, torch.Tensor],
        settings: FTHyperParams,
    ) -> None:
        kinds = {path: weight_handle(lm.model, path).dtype for path in learnt}
        # One matrix after the other: foreach would make temporaries of the size of all.
        adam = torch.optim.Adam(
            learnt.values(), lr=settings.lr, weight_decay=settings.weight_decay, foreach=False
        )
        with bar(settings.num_steps, "fine-tuning") as progress:
            for step in range(settings.num_steps):
                losses = []
                for i in range(0, len(rows), settings.batch_size):
                    weights = {path: w.to(kinds[path]) for path, w in learnt.items()}
                    with substituting(lm.model, weights):
                        loss = _loss(lm, rows[i : i + settings.batch_size], settings)
                    losses.append(loss.item())
                    if losses[-1] != losses[-1]:
                        raise DivergedError(
                            f"FT's loss became NaN at step {step}; the model is unchanged. Lower "
                            "lr, or load the model in float32 or bfloat16."
                        )
                    enough = losses[-1] < ENOUGH
                    if not enough:
                        loss.backward()  # type: ignore[no-untyped-call]
                    del loss, weights  # each matrix is a hundredth of a large model
                    if enough:
                        continue
                    adam.step()
                    adam.zero_grad(set_to_none=True)
                    for p in projections:
                        _into_box(learnt[p.path], p, settings.norm_constraint)
                progress.update()
                if sum(losses) / len(losses) < ENOUGH:
                    break


@torch.no_grad()
def _into_box(weight: torch.Tensor, projection: NamedWeight, size: float | None) -> None:
    if size is not None:
        stored = projection.stored
        torch.maximum(weight, stored.to(torch.float32, copy=True).sub_(size), out=weight)
        torch.minimum(weight, stored.to(torch.float32, copy=True).add_(size), out=weight)


def _with_eos(row: Row, lm: LM) -> Row:
    if lm.tokenizer.eos_token_id is None:
        raise HyperParamsError("append_eos=True, but this tokenizer has no end-of-sequence token.")
    end = (lm.tokenizer.eos_token_id,)
    ids = row.ids if lm.encoder_decoder else row.ids + end
    return Row(ids, row.target + end)


def _loss(lm: LM, rows: Sequence[Row], settings: FTHyperParams) -> torch.Tensor:
    """Mean over edits of the mean negative log-likelihood over the target's tokens."""
    targets = torch.tensor([token for row in rows for token in row.target])
    weight = torch.tensor([1 / (len(rows) * len(row.target)) for row in rows for _ in row.target])
    if settings.objective_optimization == "target_new":
        logits = lm.target_logits(rows)
    else:  # every target token is read where the prompt ends
        first = [Row(row.ids[: row.prompt_length + 1], row.target[:1]) for row in rows]
        repeat = torch.tensor([i for i, row in enumerate(rows) for _ in row.target])
        logits = lm.target_logits(first)
        logits = logits[repeat.to(logits.device)]
    nll = torch.nn.functional.cross_entropy(
        logits.float(), targets.to(logits.device), reduction="none"
    )
    return (nll * weight.to(nll.device)).sum()
