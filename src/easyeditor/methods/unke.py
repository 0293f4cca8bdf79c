"""UnKE: editing of unstructured text by retraining one block (arXiv 2405.15349).

Two steps. A vector δ is searched at the output of one block, at the last token before the text
(with ``window`` one before every part of it, as AnyEdit has it, arXiv 2502.05628)::

    loss = mean −log p(text) + weight_decay · ‖δ‖ / ‖h‖²

Then *every* parameter of that block is trained so that it writes ``h + δ`` there, and what it wrote
before at all other tokens of the text and of some unrelated texts (mean squared error). No subject
is needed. The traps: the patch is dense and as large as a block, and the model is asked for the
whole surface of a text: questions about its facts are the score that counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field

from easyeditor.associative.unrelated import unrelated_rows
from easyeditor.associative.value_optimization import ValueOptions, optimize_values
from easyeditor.associative.windows import Window, read_at, target_row, windows_of
from easyeditor.edits import Edit, check_consistent
from easyeditor.errors import HyperParamsError
from easyeditor.gradients.minimize import refuse_diverged
from easyeditor.gradients.parametrizations import FullMatrices
from easyeditor.hyperparams import HyperParams, Layers
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.forward.stubs import stubbed
from easyeditor.lm.hooks import hidden_of, reading_output, stopping
from easyeditor.lm.model import LM
from easyeditor.lm.projection import NamedWeight
from easyeditor.lm.tokens import Batch
from easyeditor.methods.base import Method, Outcome, State
from easyeditor.patches.weight import weight_patch
from easyeditor.progress import bar
from easyeditor.timing import Stopwatch


class UnKEHyperParams(HyperParams):
    """Settings of UnKE; defaults as published, the one layer absolute.

    ``v_…`` and ``clamp_norm_factor`` are the search's, which makes all its steps unless
    ``v_stop_nll`` is set; ``optim_num_step``, ``lr`` and ``weight_decay`` (of matrices only) the
    training's; ``ex_data_num`` unrelated texts are held. ``window`` cuts a text into parts of so
    many tokens, each with a δ of its own.
    """

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"ds_name", "ex_data_path", "fact_token", "kl_factor", "max_length", "v_loss_layer"}
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "llama-2-7b": {},
        "llama-3-8b": {},
        "qwen2.5-7b": {},
        "smollm2-135m": {"lr": 1e-3},
    }

    alg_name: str = "UnKE"
    layers: Layers = (7,)
    v_num_grad_steps: int = Field(25, ge=1)
    v_lr: float = Field(0.5, gt=0)
    v_weight_decay: float = Field(1e-3, ge=0)
    clamp_norm_factor: float = Field(4.0, gt=0)
    v_stop_nll: float | None = Field(None, gt=0)
    optim_num_step: int = Field(50, ge=1)
    lr: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    ex_data_num: int = Field(20, ge=0)
    window: int | None = Field(None, ge=1)
    append_eos: bool = True
    batch_size: int = Field(1, ge=1)
    seed: int = 0

    def search(self) -> ValueOptions:
        """The settings of the value search."""
        return ValueOptions(
            self.v_num_grad_steps,
            self.v_lr,
            self.v_weight_decay,
            self.clamp_norm_factor,
            kl_factor=0.0,
            v_stop_nll=self.v_stop_nll or 0.0,
            append_eos=self.append_eos,
        )


class UnKE(Method[State]):
    """Texts of any length, stored in one block; ``edit`` stores all it is given together."""

    name = "UnKE"
    title = "a whole block retrained on the text's vectors, arXiv 2405.15349"
    hyperparams_class = UnKEHyperParams

    hyperparams: UnKEHyperParams

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """The dense patch of one block that makes all ``edits`` true; the model is only read.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            DivergedError: a loss is not a number.
            HyperParamsError: several layers, or ``window`` of an encoder-decoder.
        """
        check_consistent(edits)
        lm = lm.encoder_side()
        settings = self.hyperparams.resolved(lm.n_layers)
        if len(settings.layers) > 1:
            raise HyperParamsError(
                f"{self.name} retrains one block, not {len(settings.layers)}: name one layer "
                f"instead of layers={list(settings.layers)}."
            )
        layer, watch = int(settings.layers[0]), Stopwatch()
        with watch("values"):
            batch, places, delta = _vectors(lm, layer, edits, settings)
        with watch("train"), lm.at_rest():
            unrelated = unrelated_rows(lm, settings.ex_data_num, settings.seed)
            groups = [_Recorded.of(lm, layer, batch)]
            for (row, at), vector in zip(places, delta, strict=True):
                groups[0].wanted[row, at] += vector.to(groups[0].wanted)
            if unrelated:
                groups.append(_Recorded.of(lm, layer, lm.pad([row.ids for row in unrelated])))
            matrices = FullMatrices(weights_of_block(lm, layer))
            _train(lm, layer, matrices, groups, settings, self.name)
        entries = matrices.parts()
        return Outcome(weight_patch(lm, self.name, edits, settings, entries, watch.seconds))


def _vectors(
    lm: LM, layer: int, edits: Sequence[Edit], settings: UnKEHyperParams
) -> tuple[Batch, list[tuple[int, int]], torch.Tensor]:
    """The padded texts, rows and positions of the vectors in them, and the vectors."""
    eos, windows = settings.append_eos, list[Window]()
    if lm.encoder_decoder:
        if settings.window is not None:
            raise HyperParamsError(
                f"window={settings.window} reads a text between its tokens, and "
                f"{type(lm.model).__name__} reads its prompt in an encoder. Leave it out."
            )
        edits = [replace(edit, subject=edit.prompt.text.strip()) for edit in edits]
        windows = windows_of(lm, edits, None, append_eos=eos)
    else:
        windows = windows_of(lm, edits, settings.window, append_eos=eos, at_subject=False)
    optimized = optimize_values(
        lm, Site(layer, "block"), edits, [""], settings.search(), windows=windows
    )
    rows = [target_row(lm, edit, append_eos=eos) for edit in edits]
    places = [(window.edit, read_at(lm, rows[window.edit], window)) for window in windows]
    return lm.pad([row.ids for row in rows]), places, optimized.delta


def weights_of_block(lm: LM, layer: int) -> list[NamedWeight]:
    """Every parameter of a block by name, each once.

    Raises:
        UnsupportedModelError: one cannot be read.
    """
    block = lm.blocks[layer]
    path = next(name for name, module in lm.model.named_modules() if module is block)
    return [NamedWeight(lm.model, f"{path}.{name}") for name, _ in block.named_parameters()]


@dataclass(slots=True)
class _Recorded:
    """A padded batch, what it is below a block, and what the block shall write.

    Attributes:
        batch: the tokens.
        below: the output of the block below, as it is; None for the lowest.
        wanted: ``(rows, length, width)``, float32; at first what the block writes.
    """

    batch: Batch
    below: Any
    wanted: torch.Tensor

    @classmethod
    def of(cls, lm: LM, layer: int, batch: Batch) -> _Recorded:
        """What the model's blocks write now."""
        with torch.no_grad():
            below = _output(lm, layer - 1, batch, None, 0) if layer else None
            wanted = hidden_of(_output(lm, layer, batch, below, layer)).float().clone()
        return cls(batch, below, wanted)

    def loss(self, lm: LM, layer: int) -> torch.Tensor:
        """Mean squared error of what the block writes at real tokens."""
        written = hidden_of(_output(lm, layer, self.batch, self.below, layer)).float()
        error = (written.view_as(self.wanted) - self.wanted).square().mean(-1)
        mask = self.batch.mask.to(error)
        return (error * mask).sum() / mask.sum()


def _output(lm: LM, layer: int, batch: Batch, below: Any, start: int) -> Any:
    """What block ``layer`` writes; the blocks before ``start`` are replaced by ``below``."""
    with ExitStack() as stack:
        if below is not None:
            stack.enter_context(stubbed(lm.blocks, start, below))
        stack.enter_context(stopping())
        result = stack.enter_context(reading_output(lm.blocks[layer], stop=True))
        lm.call(batch)
    return result[0]


def _train(
    lm: LM,
    layer: int,
    matrices: FullMatrices,
    groups: Sequence[_Recorded],
    settings: UnKEHyperParams,
    name: str,
) -> None:
    """AdamW on the sum of the groups' losses; norms and biases have no weight decay."""
    decayed = [tensor for tensor in matrices.parameters if tensor.dim() > 1]
    others = [tensor for tensor in matrices.parameters if tensor.dim() < 2]
    adam = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        foreach=False,
    )
    with bar(settings.optim_num_step, "training the block") as progress:
        for step in range(settings.optim_num_step):
            with matrices.applied(lm.model):
                losses = [group.loss(lm, layer) for group in groups]
                refuse_diverged(name, [loss.item() for loss in losses], f"step {step}", "lr")
                torch.stack([loss.to(losses[0].device) for loss in losses]).sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
            adam.zero_grad(set_to_none=True)
            progress.update()
