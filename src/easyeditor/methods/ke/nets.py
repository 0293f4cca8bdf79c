"""The networks of KE: gates on the gradient of one edit, read off the edit's own text.

A bidirectional LSTM reads the model's embeddings of the prompt, the old answer and the new one; per
weight a small network gives from its last states gates α, γ of the width of the output, β, δ of the
input's and a number c (arXiv 2104.08164, section 3.2)::

    ΔW = s σ(c) (∇W ⊙ softmax(α) βᵀ + softmax(γ) δᵀ)                            W (d_out, d_in)

``∇W = Σ_t g_t x_tᵀ`` over tokens ``t``, so the first term is ``Σ_t (softmax(α) ⊙ g_t)(β ⊙ x_t)ᵀ``:
the change has the rank of the tokens + 1, and no gradient matrix is formed. At the start β is about
−1 and δ is 0, so an untrained network takes a step against the gradient with gates that are nearly
uniform; the published one starts from random gates. ``s`` is learnt, one per weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

HIDDEN, CONDITION, GATE_HIDDEN = 128, 1024, 128
"""Published widths: of each direction of the LSTM, of what it says, of the gates' networks."""
KINDS = 3
"""Kinds of text that are told apart: prompt, old answer, new answer."""
START = -1.0
"""What β is about before training: a step against the gradient."""


class Gates(nn.Module):
    """α, β, γ, δ and c of one weight."""

    def __init__(self, d_in: int, d_out: int, condition: int, hidden: int) -> None:
        super().__init__()
        self.sizes = [d_out, d_in, d_out, d_in, 1]
        self.first = weight_norm(_empty(lambda: nn.Linear(condition, hidden)))
        self.last = weight_norm(_empty(lambda: nn.Linear(hidden, sum(self.sizes))))

    def reset(self, generator: torch.Generator) -> None:
        """The first numbers: β about −1, δ zero, everything else nearly uniform."""
        for layer in (self.first, self.last):
            gains, matrix = layer.parametrizations.weight.parameters()
            _draw(matrix, generator)
            gains.copy_(matrix.norm(dim=1, keepdim=True))
            layer.bias.zero_()
        torch.split(self.last.bias, self.sizes)[1].fill_(START)
        torch.split(self.last.parametrizations.weight.original0, self.sizes)[3].zero_()

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """``(edits, condition)`` to softmax(α), β, softmax(γ), δ and σ(c), a row per edit each."""
        values = self.last(torch.tanh(self.first(condition)))
        alpha, beta, gamma, delta, c = torch.split(values, self.sizes, dim=1)
        return alpha.softmax(1), beta, gamma.softmax(1), delta, c.sigmoid()


class Network(nn.Module):
    """Everything that is learnt: the LSTM, gates and a scale ``s`` per weight.

    Args:
        shapes: ``{parameter path: (d_in, d_out)}`` of the weights that are edited, in order.
        embedding: the width of the model's embeddings.
        edit_lr: the scales' initial value.
        hidden, condition, gate_hidden: widths.
        seed: of the initial numbers.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        embedding: int,
        *,
        edit_lr: float,
        hidden: int = HIDDEN,
        condition: int = CONDITION,
        gate_hidden: int = GATE_HIDDEN,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.paths = list(shapes)
        self.kinds = nn.Parameter(torch.zeros(KINDS, embedding))
        self.lstm = _empty(lambda: nn.LSTM(embedding, hidden, batch_first=True, bidirectional=True))
        self.summary = _empty(lambda: nn.Linear(2 * hidden, condition))
        self.gates = nn.ModuleList(
            Gates(d_in, d_out, condition, gate_hidden) for d_in, d_out in shapes.values()
        )
        self.rates = nn.Parameter(torch.full((len(self.paths),), edit_lr))
        self._reset(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _reset(self, generator: torch.Generator) -> None:
        for name, parameter in [*self.lstm.named_parameters(), *self.summary.named_parameters()]:
            if name.startswith("bias"):
                parameter.zero_()
            else:
                _draw(parameter, generator)
        for gates in self.gates:
            assert isinstance(gates, Gates)
            gates.reset(generator)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.rates.device

    def read(
        self, embedded: torch.Tensor, kinds: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        """What the texts say, ``(edits, condition)``.

        Args:
            embedded: ``(edits, length, embedding)``, padded on the right.
            kinds: 0 of a prompt's token, 1 of the old answer's, 2 of the new one's.
            lengths: tokens of each text.
        """
        packed = nn.utils.rnn.pack_padded_sequence(
            embedded + self.kinds[kinds], list(lengths), batch_first=True, enforce_sorted=False
        )
        _, (last, _) = self.lstm(packed)
        return torch.tanh(self.summary(torch.cat([last[0], last[1]], 1)))

    def forward(
        self,
        path: str,
        condition: torch.Tensor,
        x: torch.Tensor,
        delta: torch.Tensor,
        row: torch.Tensor,
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Factors of the changes of one weight, ``uᵀ v`` in ``(d_in, d_out)``.

        Args:
            path: of the weight.
            condition: of each edit.
            x: inputs at all tokens of all edits, ``(n, d_in)``.
            delta: gradients at the output there, ``(n, d_out)``.
            row: which edit each token is of, ``(n,)``.

        Returns:
            ``u, v`` of every token, and those of the term without gradient, one of each edit.
        """
        index = self.paths.index(path)
        alpha, beta, gamma, shift, open_ = self.gates[index](condition)
        scale = self.rates[index] * open_
        tokens = beta[row] * x, (scale * alpha)[row] * delta
        return tokens, (shift, scale * gamma)


M = TypeVar("M", bound=nn.Module)


def _empty(build: Callable[[], M]) -> M:
    """A module without numbers: drawing them would take from the global generator."""
    with torch.device("meta"):
        module = build()
    return module.to_empty(device="cpu")


def _draw(matrix: torch.Tensor, generator: torch.Generator) -> None:
    bound = matrix.shape[-1] ** -0.5
    matrix.uniform_(-bound, bound, generator=generator)
