"""The cost of collecting second moments, measured on the first tokens and said before the rest."""

from __future__ import annotations

import logging
import time

import torch

from easyeditor.progress import duration
from easyeditor.timing import peak_memory_so_far

log = logging.getLogger(__name__)

MEASURED_SECONDS = 2.0
"""The estimate is made after so long."""
LONG_SECONDS = 30.0
"""Work that takes longer is announced."""


class CostEstimate:
    """Warns once, after the first measured tokens, if the rest will take long.

    Args:
        work: what is done to how many tokens, for the message.
        tokens: number of tokens still to come.
        device: whose memory is reported.
        cheaper: what costs less, and the setting for it.
        resumed: before the first update work of an interrupted run is repeated; it is not measured.
    """

    def __init__(
        self,
        work: str,
        tokens: int,
        device: torch.device,
        cheaper: str,
        *,
        resumed: bool = False,
    ) -> None:
        self._work, self._tokens, self._device, self._cheaper = work, tokens, device, cheaper
        self._started = time.monotonic()
        self._done = 0
        self._estimated = False
        self._resumed = resumed

    def update(self, tokens: int) -> None:
        """``tokens`` more are done."""
        if self._resumed:
            self._resumed = False
            self._started = time.monotonic()
            self._tokens -= tokens
            return
        self._done += tokens
        elapsed = time.monotonic() - self._started
        if self._estimated or elapsed < MEASURED_SECONDS:
            return
        self._estimated = True
        total = elapsed / self._done * self._tokens
        if total < LONG_SECONDS:
            return
        log.warning(
            "%s takes about %s (measured: %d of %d tokens in %s; memory so far: %d MB at most). "
            "It can be interrupted and goes on from there. %s",
            self._work,
            duration(total),
            self._done,
            self._tokens,
            duration(elapsed),
            round(peak_memory_so_far(self._device)),
            self._cheaper,
        )
