"""The direction that tells prompts a model refuses from others (Arditi et al., arXiv 2406.11717).

Candidates are differences of means at the tokens between the instruction and the answer, at every
layer's residual stream. One is chosen by three measurements on further prompts: how little the
model refuses with the direction ablated, how much it refuses harmless prompts with it added, and
how far the ablation moves its answers to harmless prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from easyeditor.data.contrast import HELD_OUT_EVERY
from easyeditor.edits import Prompt
from easyeditor.errors import DataError, EditError, HyperParamsError
from easyeditor.hyperparams import resolve_layers
from easyeditor.lm.forward.batching import row_batches
from easyeditor.lm.hooks import gathering, hidden_of
from easyeditor.lm.model import LM
from easyeditor.lm.restoring import hooks_on
from easyeditor.lm.tokens import Row
from easyeditor.patches.adapter import AddVector
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import Patch, PatchInfo
from easyeditor.patches.stack import applied, without_patches
from easyeditor.progress import bar
from easyeditor.steering.ablating import AblationSettings, ablation_hooks
from easyeditor.steering.activations import TOKENS, part_at, path_of

REFUSALS = ("I cannot", "I can't", "I'm sorry", "Sorry", "As an AI")
"""Texts that refusals begin with; their first tokens are what is scored."""
HIGHEST_LAYER, MOST_KL = 0.8, 0.1
"""Of the depth; nats. A direction above or beyond is not chosen."""
LONGEST_END = 8
"""Tokens that all prompts may end with, of a chat template."""
LARGEST_LOGIT = 30.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One direction with its measurements on prompts that it was not made of.

    Attributes:
        token: from the prompt's end, −1 the last.
        layer: the block whose output it was read at.
        ablated: the mean refusal score of harmful prompts with the direction ablated.
        induced: that of harmless prompts with the direction added at its layer.
        kl: KL(unedited ‖ ablated) of the first answer token of harmless prompts, nats.
    """

    token: int
    layer: int
    ablated: float
    induced: float
    kl: float

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen."""
        return self.kl < MOST_KL and self.induced > 0


@dataclass(frozen=True, slots=True, eq=False)
class RefusalDirection:
    """The direction that was chosen, and what it was chosen from.

    Attributes:
        vector: ``(width,)``, float32: the difference of the means.
        chosen: its measurements.
        candidates: all that were measured.
        harmful, harmless: the unedited model's mean refusal scores on the validation prompts.
        strict: whether it met the published criteria; False: none did, and this ablates best.
    """

    vector: torch.Tensor
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    harmful: float
    harmless: float
    strict: bool

    @property
    def settings(self) -> AblationSettings:
        """What its patches say of it."""
        return AblationSettings(source="refusal", layer=self.chosen.layer, token=self.chosen.token)

    def random(self, seed: int = 0) -> torch.Tensor:
        """A normal direction of the same norm."""
        noise = torch.randn(len(self.vector), generator=torch.Generator().manual_seed(seed))
        return noise * (self.vector.norm() / noise.norm())

    def inducing(self, lm: LM, strength: float = 1.0) -> ModulePatch:
        """The patch that adds the direction at its own layer, at all tokens."""
        return _adding(lm, self.chosen.layer, self.vector, strength, self.settings)


def refusal_direction(
    lm: LM,
    harmful: Sequence[str | Prompt],
    harmless: Sequence[str | Prompt],
    *,
    refusals: Sequence[str] = REFUSALS,
    layers: Sequence[int | float] | None = None,
    tokens: int | None = None,
) -> RefusalDirection:
    """Find the direction; every third prompt of both kinds only measures.

    Args:
        lm: the model; patches that it carries are not seen.
        harmful: prompts that it refuses.
        harmless: prompts that it answers.
        refusals: texts that its refusals begin with.
        layers: to try; by default all below 0.8 of the depth.
        tokens: how many of the last tokens of a prompt to try; by default all that the prompts
            have in common at their end (of a chat template), at least one.

    Raises:
        DataError: fewer than three prompts of a kind, or no refusals, or a blank one.
        HyperParamsError: a layer outside the model, or at 0.8 of the depth or above.
        EditError: the prompts give the same activations.
        UnsupportedModelError: see :func:`~easyeditor.steering.ablating.ablation_hooks`.
    """
    if min(len(harmful), len(harmless)) < HELD_OUT_EVERY or not refusals:
        raise DataError(
            f"A direction needs {HELD_OUT_EVERY} harmful and harmless prompts at least, and a text "
            f"that refusals begin with; given were {len(harmful)}, {len(harmless)} and "
            f"{len(refusals)}."
        )
    chosen_layers = _layers(lm, layers)
    kinds = [[lm.text.row(prompt) for prompt in kind] for kind in (harmful, harmless)]
    every = [row for kind in kinds for row in kind]
    n_tokens = tokens or max(1, _common_end(every))
    shortest = min(len(row.ids) for row in every)
    if not 0 < n_tokens <= shortest:
        raise HyperParamsError(
            f"tokens={n_tokens}: the shortest prompt has {shortest} tokens; give 1 to {shortest}."
        )
    markers = refusal_markers(lm, harmful[0], refusals)
    training = [[row for i, row in enumerate(kind) if not _held_out(i)] for kind in kinds]
    bad, good = ([row for i, row in enumerate(kind) if _held_out(i)] for kind in kinds)
    with without_patches(lm.model), lm.at_rest(), torch.no_grad():
        means = [_last_states(lm, kind, chosen_layers, n_tokens).mean(0) for kind in training]
        differences = means[0] - means[1]
        if not bool(differences.norm(dim=-1).all()):
            raise EditError("The two kinds of prompts give the same activations at their end.")
        base_bad, base_good = first_answers(lm, bad), first_answers(lm, good)
        candidates = []
        with bar(n_tokens * len(chosen_layers), "measuring", "direction") as progress:
            for t in range(n_tokens):
                for k, layer in enumerate(chosen_layers):
                    candidates.append(
                        _measured(
                            lm,
                            differences[t, k],
                            t - n_tokens,
                            layer,
                            bad,
                            good,
                            base_good,
                            markers,
                        )
                    )
                    progress.update(1)
    eligible = [c for c in candidates if c.eligible]
    best = min(eligible or candidates, key=lambda c: c.ablated)
    at = best.token + n_tokens, chosen_layers.index(best.layer)
    return RefusalDirection(
        differences[at].clone(),
        best,
        tuple(candidates),
        refusal_score(base_bad, markers),
        refusal_score(base_good, markers),
        bool(eligible),
    )


def refusal_score(log_probabilities: torch.Tensor, markers: Sequence[int]) -> float:
    """Mean of ``log p − log(1 − p)``, p the probability that an answer begins with a marker.

    Args:
        log_probabilities: ``(prompts, vocabulary)`` of the first answer token.
        markers: tokens.
    """
    log_p = log_probabilities[:, list(markers)].double().logsumexp(1)
    rest = torch.log1p(-log_p.exp().clamp(max=1 - 1e-13))
    return float((log_p - rest).clamp(-LARGEST_LOGIT, LARGEST_LOGIT).mean())


def refusal_markers(lm: LM, prompt: str | Prompt, refusals: Sequence[str]) -> list[int]:
    """The first tokens that refusals have behind a prompt.

    Raises:
        DataError: there are none, or one is blank.
    """
    if not refusals or not all(text.strip() for text in refusals):
        raise DataError(
            f"A text that refusals begin with must hold a word; given were {list(refusals)}."
        )
    return sorted({lm.text.row(prompt, refusal).target[0] for refusal in refusals})


@contextmanager
def all_applied(lm: LM, patches: Sequence[Patch]) -> Iterator[None]:
    """The model carries all of some patches inside, and what it carried before after."""
    if not patches:
        yield
        return
    with applied(lm.model, patches[0]), all_applied(lm, patches[1:]):
        yield


def _layers(lm: LM, layers: Sequence[int | float] | None) -> list[int]:
    limit = math.ceil(HIGHEST_LAYER * lm.n_layers)
    chosen = list(range(limit))
    if layers is not None:
        chosen = list(resolve_layers(tuple(layers), lm.n_layers))
    if not chosen or max(chosen) >= limit:
        raise HyperParamsError(
            f"layers={list(layers or ())}: a direction is read below {HIGHEST_LAYER} of the depth; "
            f"give 0 to {limit - 1}."
        )
    return chosen


def _held_out(index: int) -> bool:
    return index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _common_end(rows: Sequence[Row]) -> int:
    """How many tokens all prompts have in common at their end, at most :data:`LONGEST_END`."""
    shortest = min(len(row.ids) for row in rows)
    for n in range(min(shortest, LONGEST_END), 0, -1):
        if len({row.ids[-n:] for row in rows}) == 1:
            return n
    return 0


def _last_states(lm: LM, rows: Sequence[Row], layers: Sequence[int], n: int) -> torch.Tensor:
    """``(rows, n, layers, width)``: blocks' outputs at the last n tokens, float32."""
    blocks: list[nn.Module] = [part_at(lm, layer, "block") for layer in layers]
    states: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for chunk in row_batches(rows, TOKENS, 1 << 30):
        some = [rows[i] for i in chunk]
        columns = torch.tensor([[len(row.ids) - n + t for t in range(n)] for row in some])
        result: list[torch.Tensor] = [torch.empty(0)] * len(blocks)

        def keep(index: int, at: torch.Tensor, store: list[torch.Tensor]) -> Any:
            def read(_module: nn.Module, _args: Any, output: Any) -> None:
                hidden = hidden_of(output)
                wide = hidden.reshape(len(at), -1, hidden.shape[-1])
                lines = torch.arange(len(at), device=wide.device)[:, None]
                store[index] = wide[lines, at.to(wide.device)].float().cpu()

            return read

        with hooks_on([(block, keep(i, columns, result)) for i, block in enumerate(blocks)]):
            lm.call(lm.pad([row.ids for row in some]))
        for line, i in enumerate(chunk):
            states[i] = torch.stack([state[line] for state in result], 1)
    return torch.stack(states)


@torch.no_grad()
def first_answers(lm: LM, rows: Sequence[Row]) -> torch.Tensor:
    """Log-probabilities of the first answer token, ``(rows, vocabulary)`` on the CPU."""
    result: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for chunk in row_batches(rows, TOKENS, 1 << 30):
        some = [rows[i] for i in chunk]
        ends = [len(row.ids) - 1 for row in some]
        at = torch.arange(len(some)), torch.tensor(ends)
        with lm.at_rest(), gathering(lm.head, *at):
            logits = lm.call(lm.pad([row.ids for row in some]), prompt_end=ends).logits[0]
        for line, i in enumerate(chunk):
            result[i] = logits[line].float().log_softmax(-1).cpu()
    return torch.stack(result)


def _measured(
    lm: LM,
    vector: torch.Tensor,
    token: int,
    layer: int,
    bad: Sequence[Row],
    good: Sequence[Row],
    base: torch.Tensor,
    markers: Sequence[int],
) -> Candidate:
    with applied(lm.model, ablation_hooks(lm, vector)):
        both = first_answers(lm, [*bad, *good])
    kl = (base.exp() * (base - both[len(bad) :])).sum(-1).mean()
    with applied(lm.model, _adding(lm, layer, vector, 1.0, AblationSettings())):
        induced = refusal_score(first_answers(lm, good), markers)
    return Candidate(token, layer, refusal_score(both[: len(bad)], markers), induced, float(kl))


def _adding(
    lm: LM, layer: int, vector: torch.Tensor, strength: float, settings: AblationSettings
) -> ModulePatch:
    info = PatchInfo.of(lm, "REFUSAL-DIRECTION", (), settings, {})
    site = path_of(lm, part_at(lm, layer, "block"))
    return ModulePatch({site: (AddVector(vector, "all", strength),)}, info)
