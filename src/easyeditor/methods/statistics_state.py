"""The state of methods that normalise gradient factors with statistics of all edits so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from easyeditor.gradients.running_statistics import RunningStatistics
from easyeditor.methods.base import State


@dataclass(frozen=True, slots=True)
class StatisticsState(State):
    """Running statistics of ``[h; g]`` of each weight, by its path.

    They are not a sum over edits: an edit that is undone stays in them. What they do is scale later
    edits; no edit's change depends on a later one.
    """

    count: Mapping[str, torch.Tensor]
    mean: Mapping[str, torch.Tensor]
    squares: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, statistics: Mapping[str, RunningStatistics]) -> StatisticsState:
        """The state with these statistics."""
        return cls(
            {path: seen.count for path, seen in statistics.items()},
            {path: seen.mean for path, seen in statistics.items()},
            {path: seen.squares for path, seen in statistics.items()},
        )

    def statistics(self, path: str) -> RunningStatistics:
        """Those of one weight."""
        return RunningStatistics(self.count[path], self.mean[path], self.squares[path])
