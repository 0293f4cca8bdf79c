"""Causal tracing: which hidden states bring an answer back after the subject was corrupted.

The protocol of ROME's Fig. 1 to 3 (arXiv 2202.05262). The embeddings of the subject's tokens are
corrupted; then one state of the clean run is restored, at one token and layer, and the probability
of the answer is read. The noise is normal with three times the standard deviation of the
embeddings of subjects' tokens, and the same for every cell.

A forward pass starts where the restored state is: the blocks below are stubs that hand on the
corrupted states. That is compared with whole passes before it is trusted.

A trace says where information about the subject passes through. It does not say which layer to edit
(arXiv 2301.04213 finds no correlation with the success of edits).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from easyeditor.data.open import open_dataset
from easyeditor.display import data_frame
from easyeditor.errors import TraceError
from easyeditor.interpret.grids import score_rows, scores_html
from easyeditor.interpret.runs import Corruption, Sublayer, TracedRuns
from easyeditor.lm.model import LM
from easyeditor.progress import bar
from easyeditor.subjects import locate_subject

Kind = Literal["state", "mlp", "attention"]
Metric = Literal["probability", "logit_difference"]
SUBLAYERS: tuple[Sublayer, ...] = ("mlp", "attention")
KINDS: tuple[Kind, ...] = ("state", *SUBLAYERS)
METRICS: tuple[Metric, ...] = ("probability", "logit_difference")
NOISE = 3.0
"""Standard deviations of the subjects' embeddings."""
TOKEN_BUDGET = 4096
"""Tokens in one forward pass."""


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """How a trace corrupts and restores.

    Attributes:
        samples: corrupted copies of the prompt.
        window: layers restored together for ``mlp`` and ``attention``: ``window // 2`` below the
            centre, the rest from it upwards, cut off at the ends.
        noise: standard deviation of the noise; by default three times that of the embeddings of
            the shipped facts' subjects.
        swap_with: another subject with as many tokens; its embeddings replace the subject's instead
            of noise, so that the corrupted prompt is an ordinary one (arXiv 2309.16042).
        metric: what is read, ``"probability"`` of the answer or ``"logit_difference"`` between it
            and the likeliest other token of the corrupted runs.
        severed: restore states while the outputs of all ``"mlp"`` or ``"attention"`` modules at
            that token keep their corrupted values (the paper's Fig. 3); for ``state`` only.
        seed: of the noise.

    Raises:
        TraceError: a number or a name that is not possible.
    """

    samples: int = 10
    window: int = 10
    noise: float | None = None
    swap_with: str | None = None
    metric: Metric = "probability"
    severed: Literal["mlp", "attention"] | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1 or self.window < 1 or (self.noise is not None and not self.noise > 0):
            raise TraceError(
                f"samples ({self.samples}) and window ({self.window}) must be at least 1, and the "
                f"noise ({self.noise}) above 0."
            )
        if self.metric not in METRICS:
            raise TraceError(f"No metric {self.metric!r}; choose one of {', '.join(METRICS)}.")
        if self.severed not in (None, "mlp", "attention"):
            raise TraceError(f"severed must be 'mlp' or 'attention', not {self.severed!r}.")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CausalTrace:
    """What restoring each state does for the answer.

    Attributes:
        kind: ``"state"``, ``"mlp"`` or ``"attention"``.
        prompt: the text.
        answer: the token whose probability is read, decoded.
        is_top: whether it is the clean run's likeliest token. ROME's averages leave others out.
        tokens: the prompt's tokens, decoded one by one.
        subject: indices of the subject's first and last token.
        clean: the metric without corruption.
        corrupted: its mean over the corrupted copies.
        scores: ``(tokens, layers)`` mean metric after restoring; row and column are the token and
            the layer (the window's centre).
        options: how it was made.
    """

    kind: Kind
    prompt: str
    answer: str
    is_top: bool
    tokens: tuple[str, ...]
    subject: tuple[int, int]
    clean: float
    corrupted: float
    scores: torch.Tensor
    options: TraceOptions = field(repr=False)

    @property
    def effects(self) -> torch.Tensor:
        """Indirect effects, ``(tokens, layers)``: the scores above the corrupted run's."""
        return self.scores - self.corrupted

    @property
    def total_effect(self) -> float:
        """What the corruption takes away."""
        return self.clean - self.corrupted

    def strongest(self) -> tuple[int, int]:
        """Token and layer of the largest score."""
        token, layer = divmod(int(self.scores.argmax()), self.scores.shape[1])
        return token, layer

    def __repr__(self) -> str:
        token, layer = self.strongest()
        return (
            f"<CausalTrace of {self.kind} for {self.answer.strip()!r}: clean {self.clean:.3f}, "
            f"corrupted {self.corrupted:.3f}, best {float(self.scores.max()):.3f} at "
            f"{self.tokens[token].strip()!r}, layer {layer}>"
        )

    def _repr_html_(self) -> str:
        title = repr(self)[1:-1]
        return scores_html(title, self.tokens, self.subject, self.scores, self.corrupted)

    def to_frame(self) -> Any:
        """One row per token and layer as a pandas ``DataFrame``, with the score and the effect.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return data_frame(score_rows(self.tokens, self.scores, self.corrupted))

    def as_dict(self) -> dict[str, object]:
        """Everything as JSON values."""
        return {
            "kind": self.kind,
            "prompt": self.prompt,
            "answer": self.answer,
            "is_top": self.is_top,
            "tokens": list(self.tokens),
            "subject": list(self.subject),
            "metric": self.options.metric,
            "severed": self.options.severed,
            "clean": self.clean,
            "corrupted": self.corrupted,
            "scores": self.scores.tolist(),
        }


@torch.no_grad()
def causal_trace(
    lm: LM,
    prompt: str,
    subject: str,
    answer: str | None = None,
    *,
    kinds: Sequence[Kind] = ("state",),
    options: TraceOptions | None = None,
    resume: bool = True,
) -> list[CausalTrace]:
    """Trace one prompt; of an encoder-decoder the encoder's states are restored.

    Args:
        lm: the model; its weights are only read.
        prompt: ends where the answer begins.
        subject: a part of the prompt.
        answer: its first token is read; by default the clean run's likeliest token.
        kinds: what is restored; all kinds share the clean and the corrupted runs.
        options: how.
        resume: start passes at the restored layer where that gives the same logits; False repeats
            every pass whole.

    Raises:
        TraceError: an unknown kind, or a ``swap_with`` of another number of tokens.
        SubjectNotFoundError: the subject does not occur in the prompt.
        UnsupportedModelError: a block has no such part.
    """
    options = options or TraceOptions()
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or not kinds:
        raise TraceError(f"No kind {wrong or '(none given)'}; choose of {', '.join(KINDS)}.")
    lm = lm.encoder_side()
    row = lm.text.row(prompt, answer or "", subject=subject)
    ids = row.ids if lm.encoder_decoder else row.ids[: row.prompt_length]
    assert row.subject_first is not None
    assert row.subject_last is not None
    span = (row.subject_first, row.subject_last)
    with lm.at_rest():
        corruption = _corruption(lm, ids, span, prompt, subject, options)
        needed: list[Sublayer] = [
            kind for kind in SUBLAYERS if kind in kinds or kind == options.severed
        ]
        runs = TracedRuns(lm, ids, corruption, needed, resume=resume)
        token = row.target[0] if answer else int(runs.clean_logits.argmax())
        metric = _Metric(options.metric, token, runs.corrupted_logits)
        corrupted = float(metric(runs.corrupted_logits).mean())
        return [
            CausalTrace(
                kind,
                prompt,
                lm.tokenizer.decode([token]),
                token == int(runs.clean_logits.argmax()),
                tuple(lm.tokenizer.decode([i]) for i in ids),
                span,
                float(metric(runs.clean_logits)),
                corrupted,
                _scores(lm, runs, kind, span[0], metric, corrupted, options),
                options,
            )
            for kind in kinds
        ]


class _Metric:
    """One number per row of logits: the answer's probability, or its lead in logits."""

    def __init__(self, name: Metric, token: int, corrupted: torch.Tensor) -> None:
        others = corrupted.float().softmax(-1).mean(0)
        others[token] = -1
        self._name, self._token, self._rival = name, token, int(others.argmax())

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self._name == "probability":
            return logits.float().softmax(-1)[..., self._token]
        return logits.float()[..., self._token] - logits.float()[..., self._rival]


def _scores(
    lm: LM,
    runs: TracedRuns,
    kind: Kind,
    first: int,
    metric: _Metric,
    corrupted: float,
    options: TraceOptions,
) -> torch.Tensor:
    """``(tokens, layers)``; in a causal model nothing before the subject is corrupted."""
    start = 0 if lm.encoder_decoder else first
    n_tokens, n_layers = len(runs.ids), lm.n_layers
    scores = torch.full((n_tokens, n_layers), corrupted)
    size = max(1, TOKEN_BUDGET // (n_tokens * runs.samples))
    groups = [list(range(n_tokens))[i : i + size] for i in range(start, n_tokens, size)]
    with bar(n_layers * len(groups), f"tracing {kind}", "pass") as progress:
        for layer in range(n_layers):
            low = max(0, layer - options.window // 2)
            high = min(n_layers, layer - options.window // 2 + options.window)
            for tokens in groups:
                with ExitStack() as stack:
                    if options.severed and kind == "state":
                        stack.enter_context(runs.severing(options.severed, tokens))
                    if kind == "state":
                        logits = runs.restoring_state(layer, tokens)
                    else:
                        logits = runs.restoring_outputs(kind, range(low, high), tokens)
                values = metric(logits).view(len(tokens), runs.samples)
                scores[tokens, layer] = values.mean(1).cpu()
                progress.update(1)
    return scores


def _corruption(
    lm: LM,
    ids: tuple[int, ...],
    span: tuple[int, int],
    prompt: str,
    subject: str,
    options: TraceOptions,
) -> Corruption:
    """What is added to the embeddings: noise at the subject's tokens, or another subject's."""
    if options.swap_with is None:
        deviation = options.noise or NOISE * subject_embedding_std(lm)
        shape = (options.samples, span[1] - span[0] + 1)
        return Corruption.noise(lm, len(ids), span[0], shape, deviation, options.seed)
    place = locate_subject(prompt, subject)
    swapped = prompt[: place.start] + options.swap_with + prompt[place.end :]
    other = lm.text.row(swapped, subject=options.swap_with)
    if len(other.ids) != len(ids) or (other.subject_first, other.subject_last) != span:
        raise TraceError(
            f"{options.swap_with!r} has another number of tokens than {subject!r}, so their "
            "states do not lie side by side. Choose a subject of the same length, or corrupt by "
            "noise."
        )
    return Corruption.swap(lm, ids, other.ids)


def subject_embedding_std(lm: LM, subjects: Sequence[str] = ()) -> float:
    """Standard deviation of the embeddings of subjects' tokens, over all of their numbers.

    Args:
        lm: the model.
        subjects: the shipped facts' by default (ROME: those of 1,000 known facts).
    """
    names = subjects or sorted({case.edit.subject or "" for case in open_dataset("worldfacts")})
    ids = sorted({token for name in names for token in lm.text.plain(f" {name}")})
    counts = torch.zeros(max(ids) + 1)
    for name in names:
        for token in lm.text.plain(f" {name}"):
            counts[token] += 1
    repeated = torch.repeat_interleave(torch.tensor(ids), counts[ids].long())
    with torch.no_grad():
        embeddings = lm.model.get_input_embeddings()(repeated.to(lm.device))
    return float(embeddings.float().std())


ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "further tokens",
    "last token",
)


@dataclass(frozen=True, slots=True, eq=False)
class AverageTrace:
    """Mean indirect effects over prompts, by the role of the restored token (ROME's Fig. 2).

    Attributes:
        kind: what was restored.
        n: prompts.
        total: mean total effect.
        effects: ``(roles, layers)`` means; NaN where no prompt has a token of that role.
        half_widths: the same shape, 1.96 standard errors.
    """

    kind: Kind
    n: int
    total: float
    effects: torch.Tensor
    half_widths: torch.Tensor


def average_traces(traces: Sequence[CausalTrace]) -> AverageTrace:
    """Average traces of one kind and model by role; a role's tokens are averaged in a prompt first.

    Raises:
        TraceError: there are none, or they are of different kinds or models.
    """
    shapes = {(trace.kind, trace.scores.shape[1]) for trace in traces}
    if len(shapes) != 1:
        raise TraceError(
            "An average takes traces of one kind and of one model, at least one; these are of "
            f"{sorted(shapes) or 'none'}."
        )
    kind, n_layers = shapes.pop()
    by_role: dict[str, list[torch.Tensor]] = {role: [] for role in ROLES}
    for trace in traces:
        for role, tokens in roles_of(len(trace.tokens), trace.subject).items():
            if tokens:
                by_role[role].append(trace.effects[tokens].mean(0))
    effects = torch.full((len(ROLES), n_layers), torch.nan)
    widths = effects.clone()
    for i, rows in enumerate(by_role.values()):
        if rows:
            stacked = torch.stack(rows)
            effects[i] = stacked.mean(0)
            if len(rows) > 1:
                widths[i] = 1.96 * stacked.std(0) / len(rows) ** 0.5
    total = sum(trace.total_effect for trace in traces) / len(traces)
    return AverageTrace(kind, len(traces), total, effects, widths)


def roles_of(length: int, subject: tuple[int, int]) -> Mapping[str, list[int]]:
    """The tokens of each of :data:`ROLES`; those before the subject have no role."""
    first, last = subject
    places: dict[str, list[int]] = {role: [] for role in ROLES}
    for token in range(first, length):
        if token == length - 1:
            role = "last subject token" if token == last else "last token"
        elif token == last:
            role = "last subject token"
        elif token == first:
            role = "first subject token"
        elif token < last:
            role = "middle subject tokens"
        else:
            role = "first token after" if token == last + 1 else "further tokens"
        places[role].append(token)
    return places
