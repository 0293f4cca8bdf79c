"""What the locate-and-edit methods share beside the search: settings and cache of key metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from easyeditor.associative.solve import Cholesky, KeyMetric
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.memory import model_bytes
from easyeditor.lm.model import LM
from easyeditor.methods.value_search import ValueSearchHyperParams
from easyeditor.patches.stack import without_patches
from easyeditor.second_moments import Moments, moments
from easyeditor.second_moments.corpus import SHIPPED
from easyeditor.second_moments.metric import InverseOfMoment, MetricOfMoment


class LocateHyperParams(ValueSearchHyperParams):
    """Fields of the methods that search a value and solve for weights; classic names.

    ``mom2_dataset`` is ``"shipped"`` (texts of the package: no download), ``"self"`` (text
    sampled from the model, for an encoder-decoder the texts of the package), a text or JSONL file,
    or the name of a Hugging Face dataset such as ``"wikipedia"``; ``mom2_n_tokens`` of it are read,
    by default 10 × d_in, and ``mom2_n_samples`` documents at most.
    """

    ignored: ClassVar[frozenset[str]] = ValueSearchHyperParams.ignored | {"mom2_dtype"}

    mom2_adjustment: bool = True
    mom2_dataset: str = SHIPPED
    mom2_n_tokens: int | None = Field(None, ge=1)
    mom2_n_samples: int | None = Field(None, ge=1)
    stats_dir: str | None = None

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
        """Second moments of some layers of the unedited model, from the cache or in one pass.

        ``lm`` is the edited column of blocks, see :meth:`column`.
        """
        with without_patches(lm.model):
            return moments(lm, layers, **self.corpus())

    def metric(self) -> MetricOfMoment | None:
        """How the layers' key metric ``M`` is computed; None stands for the identity.

        A method with another metric overrides this, and nothing else knows of it.
        """
        return InverseOfMoment() if self.mom2_adjustment else None


IN_MEMORY_SHARE = 0.03
"""Share of the model's size up to which metrics stay in memory: less than one layer of a model with
7 billion parameters, for which reading it again takes a hundredth of the solve."""


class KeyMetrics:
    """A cache of the layers' key metrics, by the unedited model's fingerprint and the layer.

    Metrics stay in memory while they are small beside the model, or in no file; the others are read
    from their file for each use, so that memory does not grow with the layers. It serves one
    method's settings: other settings may name another metric.
    """

    def __init__(self) -> None:
        self._metrics: dict[tuple[str, int], tuple[KeyMetric, int]] = {}

    def prepare(self, lm: LM, layers: Sequence[int], settings: LocateHyperParams) -> None:
        """Make sure moments and metrics are in their cache, in one pass, and hold none in memory.

        Whatever can go wrong with a corpus goes wrong here, before a long search.
        """
        model, kind = fingerprint(lm.model).digest, settings.metric()
        missing = [layer for layer in layers if (model, layer) not in self._metrics]
        if missing and kind is not None:
            collected = settings.second_moments(lm, missing)
            for layer in missing:  # one after the other: a metric may use the matrix up
                moment = collected.pop(layer)
                if moment.path is None:
                    self._compute(lm, layer, kind, moment)
                else:
                    kind.prepare(moment, lm.projection(layer).device)

    def get(self, lm: LM, layer: int, settings: LocateHyperParams) -> KeyMetric:
        """The key metric of one layer; the identity where the settings name none."""
        kind = settings.metric()
        if kind is None:
            return Cholesky.identity()
        cached = self._metrics.get((fingerprint(lm.model).digest, layer))
        if cached is not None:
            return cached[0]
        return self._compute(lm, layer, kind, settings.second_moments(lm, [layer])[layer])

    def _compute(self, lm: LM, layer: int, kind: MetricOfMoment, moment: Moments) -> KeyMetric:
        size = moment.matrix.numel() * moment.matrix.element_size()  # a metric takes no more
        metric = kind.compute(moment, lm.projection(layer).device)
        total = size + sum(other for _, other in self._metrics.values())
        if moment.path is None or total <= IN_MEMORY_SHARE * model_bytes(lm):
            self._metrics[fingerprint(lm.model).digest, layer] = metric, size
        return metric
