"""Settings and phases that the methods which search a value share: sampled prefixes, the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field

from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.value_optimization import (
    OptimizedValues,
    ValueOptions,
    optimize_values,
)
from easyeditor.associative.windows import Window
from easyeditor.edits import Edit
from easyeditor.errors import HyperParamsError
from easyeditor.hyperparams import HyperParams, Layers
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.model import LM
from easyeditor.methods.base import State
from easyeditor.methods.sweep_plan import ContextLengths, SweepPlan


@dataclass(frozen=True, slots=True)
class ContextState(State):
    """The prefixes that stand before a prompt while its value is optimised, the empty one first."""

    contexts: tuple[str, ...]


class ValueSearchHyperParams(HyperParams):
    """Fields of the methods that search a value, and solve for no weights; classic names.

    ``fact_token`` says where a fact is read: at the subject's last token, or, in an
    encoder-decoder, at the decoder's first position. There ``layers`` are the encoder's with the
    first, where every token sees the whole prompt and the subject's last one still stands for the
    subject, and the decoder's with the second, which belongs to the whole prompt and so rephrases
    worse. ``continuation_kl_factor`` weighs a term that the papers do not have: the mean
    divergence of ``continuation_tokens`` next- token distributions behind the target from the
    unedited model's, for edits that are right and leave odd text behind the answer.
    ``expanded_stop_nll`` and ``expanded_clamp_norm_factor`` take the place of ``v_stop_nll``
    and bound ``clamp_norm_factor`` where edits have expansions: one prompt of several for which
    no vector is enough would otherwise drive δ to where the subject's own name is lost.
    ``expanded_kl_factor`` weighs, there, the mean divergence behind beginnings of other
    statements about the subject, and ``expanded_prefixes`` is how many sampled prefixes stand
    beside them, as with six instead of two a search takes half as long again. With
    ``append_eos`` the target ends with the end-of-sequence token, so that free answers stop
    behind it.
    ``memory_mb`` is what the search may use beside the model: by default 18 % of the model for
    one edit, 14 % for several; more is faster on small models.
    """

    ignored: ClassVar[frozenset[str]] = frozenset({"v_loss_layer"})
    sweep: ClassVar[SweepPlan | None] = None
    """How the layers are chosen for a model without a preset; None: by their default."""

    layers: Layers = (0,)
    fact_token: Literal["subject_last", "decoder_first"] = "subject_last"
    v_num_grad_steps: int = Field(20, ge=1)
    v_lr: float = Field(0.5, gt=0)
    v_weight_decay: float = Field(0.5, ge=0)
    clamp_norm_factor: float = Field(4.0, gt=0)
    kl_factor: float = Field(0.0625, ge=0)
    v_stop_nll: float | None = Field(None, gt=0)
    v_stop_argmax: bool = False
    expanded_stop_nll: float | None = Field(0.3, gt=0)
    expanded_clamp_norm_factor: float = Field(3.0, gt=0)
    expanded_kl_factor: float = Field(0.25, ge=0)
    expanded_prefixes: int = Field(2, ge=0)
    continuation_kl_factor: float = Field(0.0, ge=0)
    continuation_tokens: int = Field(8, ge=1)
    append_eos: bool = False
    context_template_length_params: ContextLengths = ((5, 10), (10, 10))
    resume: bool = True
    memory_mb: int | None = Field(None, ge=1)
    seed: int = 0

    @property
    def memory(self) -> int | None:
        """``memory_mb`` in bytes."""
        return None if self.memory_mb is None else self.memory_mb * 2**20

    def column(self, lm: LM) -> LM:
        """The column of blocks that ``layers`` count in.

        Raises:
            HyperParamsError: a decoder's first position in a model that has no encoder.
        """
        if self.fact_token == "subject_last":
            return lm.encoder_side()
        if not lm.encoder_decoder:
            raise HyperParamsError(
                f"fact_token='decoder_first' is for encoder-decoders; {type(lm.model).__name__} "
                "has no encoder. Use 'subject_last'."
            )
        return lm

    def contexts(self, lm: LM) -> tuple[str, ...]:
        """The prefixes that the unedited model samples with these settings, the empty one first."""
        return context_prefixes(lm, self.context_template_length_params, seed=self.seed)

    def contexts_of(self, edits: Sequence[Edit], contexts: Sequence[str]) -> Sequence[str]:
        """Those of ``contexts`` that edits are searched with, the empty one first.

        Expansions are contexts themselves: where every edit has some, ``expanded_prefixes`` of the
        sampled ones stand beside them.
        """
        if all(edit.expansions for edit in edits):
            return contexts[: 1 + self.expanded_prefixes]
        return contexts

    def search(self) -> ValueOptions:
        """The settings of the value search."""
        return ValueOptions(
            self.v_num_grad_steps,
            self.v_lr,
            self.v_weight_decay,
            self.clamp_norm_factor,
            self.kl_factor,
            self.v_stop_nll,
            self.v_stop_argmax,
            self.continuation_kl_factor,
            self.continuation_tokens,
            append_eos=self.append_eos,
        )


def values_of(
    lm: LM,
    site: Site,
    edits: Sequence[Edit],
    contexts: Sequence[str],
    settings: ValueSearchHyperParams,
    windows: Sequence[Window] | None = None,
) -> OptimizedValues:
    """:func:`~easyeditor.associative.value_optimization.optimize_values` with these settings.

    Where every edit has expansions, those named ``expanded_…`` hold.
    """
    search = settings.search()
    if all(edit.expansions for edit in edits):
        search = replace(
            search,
            v_stop_nll=settings.expanded_stop_nll,
            clamp_norm_factor=min(search.clamp_norm_factor, settings.expanded_clamp_norm_factor),
            subject_kl_factor=settings.expanded_kl_factor,
        )
    return optimize_values(
        lm,
        site,
        edits,
        contexts,
        search,
        resume=settings.resume,
        memory=settings.memory,
        windows=windows,
    )
