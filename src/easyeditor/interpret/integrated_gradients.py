"""Integrated gradients of an answer's probability by MLP neuron, for all layers in one batch.

The score of a neuron with activation ``a`` (one number of the down-projection's input, at the token
that predicts the answer) is its share of the answer's probability (arXiv 2104.08696, eq. 2; the
axioms: arXiv 1703.01365)::

    a · mean over m = 1 … steps of ∂p(answer | the layer's activations are (m − ½)/steps · a) / ∂a

so that the scores of one layer add up to the effect of that layer's activations on ``p``. The
gradient is taken at the midpoint of each step, not at its end: on SmolLM2-135M 20 steps then agree
with 400 to 1e-3, where ``p`` does not jump. Each (layer, step) is one row of a batch; rows of many
layers share a forward and a backward pass, and each runs one token only, as nothing before the
scaled token changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from easyeditor.errors import DivergedError
from easyeditor.lm.forward.activation_memory import BufferPool, low_memory_autograd
from easyeditor.lm.forward.partial import EditRow, Site, open_forward
from easyeditor.lm.hooks import (
    gathering,
    hidden_of,
    reading_inputs,
    reading_output,
    replacing_input,
    stopping,
)
from easyeditor.lm.memory import room
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.progress import bar

MIN_ROWS = 16
"""Rows of one pass, also where they exceed the memory budget."""


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Attribution scores of the neurons of some layers for one answer token, float32.

    Attributes:
        stream: norm of the last block's output at the token that predicts the answer.
        activations: per layer ``(d_in,)``: the down-projection's input at that token.
        scores: per layer ``(d_in,)``, in units of probability.
    """

    stream: float
    activations: dict[int, torch.Tensor]
    scores: dict[int, torch.Tensor]


def attribute(
    lm: LM, row: Row, layers: Sequence[int], *, steps: int, memory: int | None = None
) -> Attribution:
    """Scores of all neurons of ``layers`` for the row's last target token.

    Everything before that token is given; of an encoder-decoder the decoder's neurons are scored.

    Args:
        lm: the model; its weights are only read.
        row: a prompt with a target; the earlier target tokens are given.
        layers: absolute layer numbers.
        steps: of the integral, from 0 (excluded) to the activation.
        memory: budget in bytes beside the model; by default 14 % of its size (at least 32 MB).

    Raises:
        DivergedError: the probability is not a number.
    """
    if memory is None:
        memory = room(lm, 14)
    work = [(layer, m) for layer in layers for m in range(1, steps + 1)]
    with lm.at_rest():
        copies: _Copies = (_Decoder if lm.encoder_decoder else _Causal)(lm, row)
        result = _unscaled(lm, copies, layers)
        with bar(len(work), "attributing to neurons", "row") as progress:
            size = max(MIN_ROWS, int(memory // _bytes_per_row(lm, copies, layers[0], result)))
            for start in range(0, len(work), size):
                chunk = work[start : start + size]
                _add(lm, copies, row.target[-1], chunk, steps, result)
                progress.update(len(chunk))
    return result


@torch.no_grad()
def _unscaled(lm: LM, copies: _Copies, layers: Sequence[int]) -> Attribution:
    """Activations and stream by one plain pass; the scores are zero."""
    modules = [lm.projection(layer).module for layer in layers]
    with (
        reading_output(lm.blocks[-1], stop=False) as replies,
        reading_inputs([*modules, lm.head]) as seen,
        stopping(),
    ):
        copies.logits(1)
    activations = {
        layer: _last(inputs)
        for layer, inputs in zip(layers, seen[:-1], strict=True)
        if inputs is not None
    }
    zero = {layer: torch.zeros_like(activation) for layer, activation in activations.items()}
    return Attribution(float(_last(hidden_of(replies[0])).norm()), activations, zero)


def _last(hidden: torch.Tensor) -> torch.Tensor:
    """A copy of the vector at the last position of a single row, flattened or not."""
    return hidden.reshape(-1, hidden.shape[-1])[-1].float().clone()


def _add(
    lm: LM,
    copies: _Copies,
    token: int,
    work: Sequence[tuple[int, int]],
    steps: int,
    attribution: Attribution,
) -> None:
    """Add the gradients of some (layer, step) to the scores, by one forward and backward pass."""
    rows: dict[int, list[int]] = {}
    for i, (layer, _) in enumerate(work):
        rows.setdefault(layer, []).append(i)
    scaled = {}
    with ExitStack() as hooks:
        for layer, rows_of_layer in rows.items():
            activation = attribution.activations[layer]
            share = torch.tensor(
                [(work[i][1] - 0.5) / steps for i in rows_of_layer], device=activation.device
            )
            scaled[layer] = (share[:, None] * activation).requires_grad_()
            module = lm.projection(layer).module
            hooks.enter_context(
                replacing_input(module, len(work), torch.tensor(rows_of_layer), scaled[layer])
            )
        probability = copies.logits(len(work)).float().softmax(-1)[:, token].sum()
    if not probability.isfinite():
        raise DivergedError(
            "The probability of the answer is not a number, so nothing can be attributed; the "
            "model is unchanged. Load it in float32 or bfloat16."
        )
    probability.backward()  # type: ignore[no-untyped-call]
    for layer, values in scaled.items():
        assert values.grad is not None
        attribution.scores[layer] += attribution.activations[layer] * values.grad.sum(0) / steps


def _bytes_per_row(lm: LM, copies: _Copies, lowest: int, attribution: Attribution) -> int:
    """Memory of one row: saved tensors, logits and probabilities."""
    values = attribution.activations[lowest][None].clone().requires_grad_()
    with replacing_input(lm.projection(lowest).module, 1, torch.tensor([0]), values):
        logits = copies.logits(1)
    return copies.bytes + logits.shape[-1] * (logits.element_size() + 8)


class _Copies(Protocol):
    """Any number of copies of one token sequence, run in one pass.

    Attributes:
        bytes: of the stored states and the tensors saved by the last pass.
    """

    @property
    def bytes(self) -> int:
        """See the class."""
        ...

    def logits(self, n: int) -> torch.Tensor:
        """Logits of ``n`` copies after the last token, ``(n, vocabulary)``."""
        ...


class _Causal:
    """Copies of a causal model's sequence; the tokens before the last are run once and cached."""

    def __init__(self, lm: LM, row: Row) -> None:
        last = len(row.ids) - 2  # the answer itself is not fed
        # A zero vector at the lowest site: every block runs, and nothing is added.
        self._runs = open_forward(lm, Site(0, "down"), [EditRow(row.ids[:-1], last, (last,))])
        self._zero = torch.zeros(1, lm.projection(0).d_out, device=lm.device)
        self._left = 0

    @property
    def bytes(self) -> int:
        return self._runs.stored + self._left

    def logits(self, n: int) -> torch.Tensor:
        runs = self._runs.keep(torch.zeros(n, dtype=torch.long))
        logits = runs.logits(self._zero.expand(n, -1))
        self._left = runs.left
        return logits


class _Decoder:
    """Copies of a decoder's sequence; the encoder is run once."""

    bytes = 0

    def __init__(self, lm: LM, row: Row) -> None:
        self._lm, self._batch = lm, lm.pad([row.ids])
        self._fed: torch.Tensor = lm.model._shift_right(torch.tensor([row.target]).to(lm.device))
        with torch.no_grad():
            self._read: Any = lm.model.get_encoder()(
                input_ids=self._batch.ids, attention_mask=self._batch.mask
            )
        self._pool = BufferPool()

    def logits(self, n: int) -> torch.Tensor:
        batch = self._batch.rows(torch.zeros(n, dtype=torch.long))
        hidden = self._read.last_hidden_state.expand(n, -1, -1)
        last = torch.full((n,), -1)
        with (
            gathering(self._lm.head, torch.arange(n), last),
            low_memory_autograd(self._lm, self._pool) as stored,
        ):
            logits: torch.Tensor = self._lm.call(
                batch,
                encoder_outputs=type(self._read)(last_hidden_state=hidden),
                decoder_input_ids=self._fed.expand(n, -1),
            ).logits[0]
        self.bytes = stored.bytes
        return logits
