"""KN: knowledge neurons (Dai et al., arXiv 2104.08696).

A neuron is one number of an MLP's intermediate activation; its row in the down-projection is what
it writes. The neurons that *express* a fact are those whose integrated gradients of p(old answer),
at the token that predicts the answer, exceed ``adaptive_threshold`` × the largest; with ``refine``,
those shared by ``p`` of the prompts. A method is given no paraphrases, so these are the prompt
behind prefixes of ``n_toks`` tokens sampled from the model. The edit: their rows in the
down-projection lose ``lambda_old`` · e(old answer) and gain ``lambda_new`` · e(new answer).

What the paper leaves to BERT is settled here so that it carries over:

- ``e`` is the answer's row of the *output* embedding, as a unit vector: the direction that raises
  its logit. With tied embeddings it is the paper's; with untied ones the input embedding means
  nothing at the output.
- ``lambda_…`` count the norm of the residual stream where the answer is read, for all kept neurons
  together: at λ = 1 they write as much as is there. The paper's 1 and 8 count embeddings; norms of
  embeddings, sizes of activations and numbers of kept neurons differ by orders of magnitude between
  models (on SmolLM2-135M 8 embeddings leave no neighbouring fact right). To take away a larger part
  of the old than 1 : 8 was better on every model tried.
- A neuron whose activation is negative (in GELU, and half of every gated MLP) writes the *opposite*
  of its row, so its row changes with the opposite sign. Without that one edit in eight takes on
  SmolLM2-135M instead of five.
- Tokens, not words: each target token that the model would not say by itself is edited where it is
  predicted, after the target's earlier tokens; "old" there is what the model says instead.

An encoder-decoder is edited in its decoder. The trap: such neurons are not the fact's alone, and
what else they write is changed with it; locality is the price.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field

from easyeditor.associative.contexts import context_prefixes
from easyeditor.edits import Edit
from easyeditor.errors import EditFailed, HyperParamsError, UnsupportedModelError
from easyeditor.hyperparams import HyperParams, OptionalLayers, resolve_layers
from easyeditor.interpret.integrated_gradients import Attribution, attribute
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.lm.weights import weight_handle
from easyeditor.methods.base import Method, Outcome
from easyeditor.methods.value_search import ContextState
from easyeditor.patches.weight import LowRank, Part, weight_patch
from easyeditor.timing import Stopwatch

K = TypeVar("K", bound="KNHyperParams")
Neuron = tuple[int, int]
"""Layer and index."""


class KNHyperParams(HyperParams):
    """Settings of KN; ``layers`` are those whose neurons are asked, none listed means all.

    ``refine`` takes ``n_prompts`` prefixed prompts beside the bare one. ``mode="erase"`` sets the
    kept neurons' rows to zero instead, so that the old answer is forgotten and none is put in its
    place. ``memory_mb`` is what the passes may use beside the model: 14 % of the model by default.
    """

    ignored: ClassVar[frozenset[str]] = frozenset({"batch_size", "lr_scale"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {},
        "gpt-j-6B": {"adaptive_threshold": 0.1},
        "gpt-neo-2.7B": {},
        "llama-7b": {},
        "llama-2-7b": {},
        "t5-3b": {},
        # The earlier neurons fire for any prompt: with all layers fewer edits take, at more cost.
        "smollm2-135m": {"layers": [25, 26, 27, 28, 29], "lambda_old": 0.1, "lambda_new": 0.3},
    }

    alg_name: str = "KN"
    layers: OptionalLayers = ()
    steps: int = Field(20, ge=1)
    adaptive_threshold: float = Field(0.2, gt=0, lt=1)
    refine: bool = False
    n_toks: int = Field(10, ge=1)
    n_prompts: int = Field(5, ge=1)
    p: float = Field(0.4, gt=0, le=1)
    mode: Literal["replace", "erase"] = "replace"
    lambda_old: float = Field(0.5, ge=0)
    lambda_new: float = Field(0.5, ge=0)
    memory_mb: int | None = Field(None, ge=1)
    seed: int = 0

    def resolved(self: K, n_layers: int) -> K:
        """The same settings with absolute layer numbers, all of them where none is listed."""
        return self.replace(layers=resolve_layers(self.layers or tuple(range(n_layers)), n_layers))


class KN(Method[ContextState]):
    """One fact in a handful of neurons. Needs no subject; the old answer is asked if not given."""

    name = "KN"
    title = "knowledge neurons, arXiv 2104.08696"
    hyperparams_class = KNHyperParams
    state_class = ContextState
    max_batch = 1

    hyperparams: KNHyperParams

    def initial_state(self, lm: LM) -> ContextState:
        """Sample the prefixes, if any are asked for."""
        return ContextState(_prefixes(lm, self.hyperparams))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: ContextState | None = None
    ) -> Outcome[ContextState]:
        """The patch that makes the fact's neurons write the new answer.

        Raises:
            EditFailed: no neuron raises the old answer's probability.
            UnsupportedModelError: answers are read in another width than MLPs write.
            DivergedError: a probability is not a number.
        """
        if len(edits) != 1:
            raise HyperParamsError(f"{self.name} makes one edit at a time, not {len(edits)}.")
        _check_width(lm)
        settings = self.hyperparams.resolved(lm.n_layers)
        layers = [int(layer) for layer in settings.layers]
        memory = None if settings.memory_mb is None else settings.memory_mb * 2**20
        watch = Stopwatch()
        with watch("contexts"):
            prefixes = state.contexts if state else _prefixes(lm, settings)
        entries: dict[str, list[Part]] = {}
        for place, old, new in _changes(lm, edits[0], settings):
            with watch("attribution"):
                result = []
                for prefix in prefixes:
                    row = lm.text.row(edits[0].prompt, edits[0].target, prefix=prefix)
                    query_row = _ending(lm, row, place, old)
                    result.append(
                        attribute(lm, query_row, layers, steps=settings.steps, memory=memory)
                    )
            neurons = kept_neurons([attribution.scores for attribution in result], settings)
            if not neurons:
                raise EditFailed(
                    f"No neuron makes {lm.tokenizer.decode([old])!r} more probable after "
                    f"{edits[0].prompt!r}, so there is none to edit. Give as ground_truth what the "
                    "model says, or leave it out."
                )
            for path, part in _parts(lm, neurons, result[0], old, new, settings).items():
                entries.setdefault(path, []).append(part)
        return Outcome(weight_patch(lm, self.name, edits, settings, entries, watch.seconds))


def kept_neurons(
    scores: Sequence[dict[int, torch.Tensor]], settings: KNHyperParams
) -> dict[int, list[int]]:
    """Layer → neurons over the threshold for enough of the prompts; each has its own largest.

    Where no neuron is shared by ``p`` of them, those that are shared by most.
    """
    counts: Counter[Neuron] = Counter()
    for of_prompt in scores:
        least = settings.adaptive_threshold * max(
            float(layer_scores.max()) for layer_scores in of_prompt.values()
        )
        if least > 0:
            for layer, layer_scores in of_prompt.items():
                counts.update((layer, n) for n in (layer_scores >= least).nonzero()[:, 0].tolist())
    enough = min(settings.p * len(scores), max(counts.values(), default=0))
    stored: dict[int, list[int]] = {}
    for layer, neuron in sorted(key for key, count in counts.items() if count >= enough):
        stored.setdefault(layer, []).append(neuron)
    return stored


def _check_width(lm: LM) -> None:
    read, written = int(_embedding(lm).shape[1]), lm.projection(0).d_out
    if read != written:  # a projection between the last block and the head
        raise UnsupportedModelError(
            f"{type(lm.model).__name__} reads answers in {read} dimensions and its MLPs write "
            f"{written}, so an answer's embedding is nothing that a neuron could write. Use a "
            "method that searches what to write."
        )


def _embedding(lm: LM) -> torch.Tensor:
    return weight_handle(lm.model, f"{lm.family.head}.weight").read_weight().detach()


def _prefixes(lm: LM, settings: KNHyperParams) -> tuple[str, ...]:
    if not settings.refine:
        return ("",)
    return context_prefixes(lm, [(settings.n_toks, settings.n_prompts)], seed=settings.seed)


def _changes(lm: LM, edit: Edit, settings: KNHyperParams) -> list[tuple[int, int, int]]:
    """``(place in the target, old token, new token)``; the old answer's first alone to erase it.

    What the model says already needs no change; where that is everything, it is strengthened.
    """
    row = lm.text.row(edit.prompt, edit.target)
    with lm.at_rest(), torch.no_grad():
        replies: list[int] = lm.target_logits([row]).argmax(1).tolist()
    if edit.ground_truth and edit.ground_truth.strip():
        replies[0] = lm.text.row(edit.prompt, edit.ground_truth).target[0]
    places = [i for i, (old, new) in enumerate(zip(replies, row.target, strict=True)) if old != new]
    if settings.mode == "erase" or not places:
        places = [0]
    return [(i, replies[i], row.target[i]) for i in places]


def _ending(lm: LM, row: Row, place: int, token: int) -> Row:
    """The row up to one of its target's tokens, with another token there."""
    before = row.ids if lm.encoder_decoder else (*row.ids[: row.prompt_length + place], token)
    return Row(before, (*row.target[:place], token))


def _parts(
    lm: LM,
    neurons: dict[int, list[int]],
    attribution: Attribution,
    old: int,
    new: int,
    s: KNHyperParams,
) -> dict[str, Part]:
    """What the kept neurons' rows gain and lose: rank one, as all gain the same or the opposite."""
    embedding = _embedding(lm)
    direction = s.lambda_new * _unit(embedding[new])
    if old != new:  # what is said already is only strengthened
        direction = direction - s.lambda_old * _unit(embedding[old])
    active = sum(
        float(attribution.activations[layer][indices].abs().sum())
        for layer, indices in neurons.items()
    )
    parts: dict[str, Part] = {}
    for layer, indices in neurons.items():
        projection = lm.projection(layer)
        device = projection.device
        if s.mode == "erase":
            u = torch.zeros(projection.d_in, len(indices), device=device)
            u[indices, range(len(indices))] = 1
            parts[projection.path] = LowRank(u, -projection.weight[indices].float())
            continue
        u = torch.zeros(projection.d_in, 1, device=device)
        u[indices, 0] = attribution.activations[layer][indices].sign().to(device) * (
            attribution.stream / active
        )
        parts[projection.path] = LowRank(u, direction[None].to(device, copy=True))
    return parts


def _unit(vector: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vector.float(), dim=0)
