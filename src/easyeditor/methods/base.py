"""What every method promises, and the fields that several of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from easyeditor.associative.solve import Factor
from easyeditor.associative.value_optimization import ValueOptions
from easyeditor.edits import Edit
from easyeditor.errors import HyperParamsError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.memory import model_bytes
from easyeditor.lm.model import LM
from easyeditor.patches.patch import Patch
from easyeditor.second_moments import Moments, moments
from easyeditor.second_moments.cholesky import factor_of, factor_once


class Method(Protocol):
    """Computes patches. What grows over a sequence of edits lives on the instance.

    ``edit`` leaves the model bit-identical, also when it fails. ``max_batch`` is 1, or None for
    any number of edits at once.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    hyperparams_class: ClassVar[type[HyperParams]]
    max_batch: ClassVar[int | None]
    needs_subject: ClassVar[bool]
    hyperparams: HyperParams

    def __init__(self, hyperparams: HyperParams) -> None: ...

    def prepare(self, lm: LM) -> None:
        """Collect once what must come from the unedited model; :meth:`edit` does it if needed.

        Call it before a model that edits are to accumulate on is edited, so that a sequence that
        goes on in another process finds the same numbers.
        """
        ...

    def edit(self, lm: LM, edits: Sequence[Edit]) -> Patch:
        """Find the patch that makes all ``edits`` true at once."""
        ...

    def reset(self) -> None:
        """Forget whatever was kept between edits."""
        ...


class LocateHyperParams(HyperParams):
    """Fields of the methods that search a value and solve for weights; classic names.

    ``fact_token`` says where a fact is read: at the subject's last token, or, in an
    encoder-decoder, at the decoder's first position. There ``layers`` are the encoder's with the
    first, where every token sees the whole prompt and the subject's last one still stands for the
    subject, and the decoder's with the second, which belongs to the whole prompt and so rephrases
    worse. ``mom2_dataset`` is ``"self"`` (text sampled from the model, for an encoder-decoder the
    texts of the package: no download), a text or JSONL file, or the name of a Hugging Face dataset
    such as ``"wikipedia"``; ``mom2_n_tokens`` of it are read, by default 10 × d_in, and
    ``mom2_n_samples`` documents at most. ``memory_mb`` is what the search may use beside the
    model: by default 18 % of the model for one edit, 14 % for several; more is faster on small
    models.
    """

    ignored: ClassVar[frozenset[str]] = frozenset({"v_loss_layer", "mom2_dtype"})

    fact_token: Literal["subject_last", "decoder_first"] = "subject_last"
    v_num_grad_steps: int = Field(20, ge=1)
    v_lr: float = Field(0.5, gt=0)
    v_weight_decay: float = Field(0.5, ge=0)
    clamp_norm_factor: float = Field(4.0, gt=0)
    kl_factor: float = Field(0.0625, ge=0)
    v_stop_nll: float | None = Field(None, gt=0)
    v_stop_argmax: bool = False
    mom2_adjustment: bool = True
    mom2_dataset: str = "self"
    mom2_n_tokens: int | None = Field(None, ge=1)
    mom2_n_samples: int | None = Field(None, ge=1)
    stats_dir: str | None = None
    context_template_length_params: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
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

    def corpus(self) -> dict[str, Any]:
        """What these settings say to :func:`~easyeditor.second_moments.moments`."""
        return {
            "source": self.mom2_dataset,
            "tokens": self.mom2_n_tokens,
            "documents": self.mom2_n_samples,
            "directory": self.stats_dir,
            "seed": self.seed,
        }

    def second_moments(self, lm: LM, layers: Sequence[int]) -> dict[int, Moments]:
        """Those of some layers of ``lm`` (see :meth:`column`), from the cache or in one pass."""
        return moments(lm, layers, **self.corpus())

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
        )


KEEP = 0.03
"""Share of the model's size up to which factored moments stay in memory: less than one layer of a
model with 7 billion parameters, for which reading it again takes a hundredth of the solve."""


class Factors:
    """Factored second moments, kept for the models and layers an instance has met.

    Kept in memory while they are small beside the model, or in no file; the others are read from
    their file for each use, so that memory does not grow with the layers.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Factor] = {}

    def prepare(self, lm: LM, layers: Sequence[int], settings: LocateHyperParams) -> None:
        """Make sure moments and factors are in their cache, in one pass, and hold none in memory.

        Whatever can go wrong with a corpus goes wrong here, before a long search.
        """
        model = fingerprint(lm.model).digest
        missing = [layer for layer in layers if (model, layer) not in self._kept]
        if missing and settings.mom2_adjustment:
            found = settings.second_moments(lm, missing)
            for layer in missing:  # one after the other: factoring uses the matrix up
                made = found.pop(layer)
                if made.path is None:
                    self._factor(lm, layer, made)
                else:
                    factor_once(made, lm.projection(layer).device)

    def get(self, lm: LM, layer: int, settings: LocateHyperParams) -> Factor:
        """The factor of one layer."""
        if not settings.mom2_adjustment:
            return Factor.identity()
        kept = self._kept.get((fingerprint(lm.model).digest, layer))
        return kept or self._factor(lm, layer, settings.second_moments(lm, [layer])[layer])

    def _factor(self, lm: LM, layer: int, made: Moments) -> Factor:
        factor = factor_of(made, lm.projection(layer).device)
        together = factor.bytes + sum(kept.bytes for kept in self._kept.values())
        if made.path is None or together <= KEEP * model_bytes(lm):
            self._kept[fingerprint(lm.model).digest, layer] = factor
        return factor

    def clear(self) -> None:
        """Forget them; the files stay."""
        self._kept.clear()
