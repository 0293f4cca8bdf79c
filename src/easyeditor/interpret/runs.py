"""The clean run, the corrupted runs, and runs with some states of the clean one restored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from easyeditor.lm.forward.stubs import stubbed
from easyeditor.lm.hooks import gathering, hidden_of, reading_outputs, rows_of, with_hidden
from easyeditor.lm.model import LM
from easyeditor.lm.restoring import hooks_on

log = logging.getLogger(__name__)

Sublayer = Literal["mlp", "attention"]


@dataclass(frozen=True, slots=True, eq=False)
class Corruption:
    """What is added to the input embeddings of a prompt.

    Attributes:
        shift: ``(samples, tokens, width)``; zero where nothing is corrupted.
    """

    shift: torch.Tensor

    @staticmethod
    def noise(
        lm: LM, length: int, first: int, shape: tuple[int, int], deviation: float, seed: int
    ) -> Corruption:
        """Normal noise at the tokens from ``first`` on; ``shape`` is (samples, tokens)."""
        width = _embedding(lm).weight.shape[-1]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(*shape, width, generator=generator) * deviation
        shift = torch.zeros(shape[0], length, width)
        shift[:, first : first + shape[1]] = noise
        return Corruption(shift.to(lm.device))

    @staticmethod
    def swap(lm: LM, ids: Sequence[int], others: Sequence[int]) -> Corruption:
        """What turns the embeddings of ``ids`` into those of ``others``."""
        both = torch.tensor([list(ids), list(others)], device=lm.device)
        embeddings = _embedding(lm)(both).float()
        return Corruption((embeddings[1] - embeddings[0])[None])

    @contextmanager
    def applied(self, lm: LM, samples: torch.Tensor) -> Iterator[None]:
        """Corrupt the next pass: row i of the batch by sample ``samples[i]``.

        A decoder that shares the embedding is left alone.
        """
        shift = self.shift[samples.to(self.shift.device)]
        done: list[bool] = []

        def add(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor | None:
            if done:
                return None
            done.append(True)
            return output + shift.to(device=output.device, dtype=output.dtype)

        with hooks_on([(_embedding(lm), add)]):
            yield


def _embedding(lm: LM) -> Any:
    owner = lm.model.get_encoder() if lm.in_encoder else lm.model
    return owner.get_input_embeddings()


class TracedRuns:
    """One prompt run clean, corrupted, and corrupted with restored states.

    Args:
        lm: the model, at rest.
        ids: the prompt's tokens.
        corruption: of its embeddings.
        sublayers: the modules whose outputs are restored or severed later.
        resume: start at the restored layer where that gives the same logits.

    Attributes:
        samples: how many corrupted runs there are.
        clean_logits: ``(vocabulary,)`` after the prompt.
        corrupted_logits: ``(samples, vocabulary)``.
    """

    def __init__(
        self,
        lm: LM,
        ids: Sequence[int],
        corruption: Corruption,
        sublayers: Sequence[Sublayer],
        *,
        resume: bool,
    ) -> None:
        self._lm, self.ids, self._corruption = lm, tuple(ids), corruption
        self.samples = len(corruption.shift)
        modules = {"block": list(lm.blocks)} | {
            kind: [lm.sublayer(layer, kind) for layer in range(lm.n_layers)] for kind in sublayers
        }
        self._modules: dict[str, list[nn.Module]] = modules
        self._samples = torch.arange(self.samples)
        self._severed: tuple[Sublayer, Sequence[int]] | None = None
        with self._recording() as self._clean:
            self.clean_logits = self._logits(1)[0]
        with self._recording() as self._corrupted, corruption.applied(lm, self._samples):
            self.corrupted_logits = self._logits(self.samples)
        self._resume = resume and self._agrees()

    def restoring_state(self, layer: int, tokens: Sequence[int]) -> torch.Tensor:
        """Logits ``(tokens × samples, vocabulary)`` with the block's clean output at each token."""
        clean = self._hidden(self._clean["block"][layer], 1)[0]
        rows = len(tokens) * self.samples
        places, samples = self._cells(tokens)
        if not self._resume:
            replace = _replacing(rows, places, clean[places.to(clean.device)])
            return self._whole([(self._modules["block"][layer], replace)], samples)
        stored = rows_of(self._corrupted["block"][layer], samples, self.samples)
        stored = _replacing(rows, places, clean[places.to(clean.device)])(None, None, stored)
        return self._above(layer + 1, stored, [], rows)

    def restoring_outputs(
        self, kind: Sublayer, layers: Sequence[int], tokens: Sequence[int]
    ) -> torch.Tensor:
        """Logits with the clean outputs of all ``layers``' modules of a kind at each token."""
        rows = len(tokens) * self.samples
        places, samples = self._cells(tokens)
        hooks = []
        for layer in layers:
            clean = self._hidden(self._clean[kind][layer], 1)[0]
            replace = _replacing(rows, places, clean[places.to(clean.device)])
            hooks.append((self._modules[kind][layer], replace))
        start = min(layers)
        if not self._resume or not start:
            return self._whole(hooks, samples)
        stored = rows_of(self._corrupted["block"][start - 1], samples, self.samples)
        return self._above(start, stored, hooks, rows)

    @contextmanager
    def severing(self, kind: Sublayer, tokens: Sequence[int]) -> Iterator[None]:
        """Hold the outputs of all modules of a kind at the restored token at corrupted values."""
        places, samples = self._cells(tokens)
        hooks = []
        for module, output in zip(self._modules[kind], self._corrupted[kind], strict=True):
            values = self._hidden(output, self.samples)
            at = samples.to(values.device), places.to(values.device)
            hooks.append((module, _replacing(len(places), places, values[at])))
        with hooks_on(hooks):
            yield

    def _cells(self, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.tensor(list(tokens)).repeat_interleave(self.samples)
        return places, self._samples.repeat(len(tokens))

    def _hidden(self, output: Any, rows: int) -> torch.Tensor:
        hidden = hidden_of(output)
        return hidden.reshape(rows, -1, hidden.shape[-1])

    def _whole(
        self, hooks: Sequence[tuple[nn.Module, Callable[..., Any]]], samples: torch.Tensor
    ) -> torch.Tensor:
        with self._corruption.applied(self._lm, samples), hooks_on(hooks):
            return self._logits(len(samples))

    def _above(
        self,
        start: int,
        stored: Any,
        hooks: Sequence[tuple[nn.Module, Callable[..., Any]]],
        rows: int,
    ) -> torch.Tensor:
        with stubbed(self._lm.blocks, start, stored), hooks_on(hooks):
            return self._logits(rows)

    def _logits(self, n: int) -> torch.Tensor:
        """``(n, vocabulary)`` after the prompt, of n copies of it in one pass."""
        lm = self._lm
        one = lm.pad([self.ids])
        batch = one.rows(torch.zeros(n, dtype=torch.long))
        last = 0 if lm.encoder_decoder else len(self.ids) - 1
        with gathering(lm.head, torch.arange(n), torch.full((n,), last)):
            logits: torch.Tensor = lm.call(batch).logits[0]
        return logits

    def _recording(self) -> AbstractContextManager[dict[str, list[Any]]]:
        return _recording(self._modules)

    def _agrees(self) -> bool:
        """Whether a pass that starts in the middle gives the corrupted logits."""
        start = max(1, self._lm.n_layers // 2)
        stored = self._corrupted["block"][start - 1]
        try:
            logits = self._above(start, stored, [], self.samples)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            log.debug("resuming %s: %r", type(self._lm.model).__name__, error)
            return False
        expected = self.corrupted_logits.float().log_softmax(-1)
        difference = (logits.float().log_softmax(-1) - expected).abs().max()
        if bool(difference < 1e-3):
            return True
        log.warning("%s cannot be resumed; whole passes.", type(self._lm.model).__name__)
        return False


@contextmanager
def _recording(modules: dict[str, list[nn.Module]]) -> Iterator[dict[str, list[Any]]]:
    """Every module's output in the pass inside, by kind and layer."""
    with ExitStack() as stack:
        yield {kind: stack.enter_context(reading_outputs(row)) for kind, row in modules.items()}


def _replacing(rows: int, places: torch.Tensor, values: torch.Tensor) -> Callable[..., Any]:
    """A hook that puts ``values`` ``(rows, width)`` at one position per row of the output."""

    def replace(_module: Any, _args: Any, output: Any) -> Any:
        hidden = hidden_of(output)
        seen = hidden.reshape(rows, -1, hidden.shape[-1])
        at = torch.arange(rows, device=hidden.device), places.to(hidden.device)
        new = values.to(device=hidden.device, dtype=hidden.dtype)
        return with_hidden(output, seen.index_put(at, new).view(hidden.shape))

    return replace
