"""Stubs in place of a model's lower blocks: its own forward starts from a stored hidden state."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from easyeditor.lm.restoring import restoring


@contextmanager
def stubbed(blocks: nn.ModuleList, start: int, stored: Any) -> Iterator[None]:
    """A context: blocks below ``start`` return ``stored`` instead of computing.

    The list keeps its length and every stub its block's attributes: some models index both.
    """
    originals = list(blocks[:start])

    def undo() -> None:
        for i, block in enumerate(originals):
            blocks[i] = block

    with restoring(undo):
        for i, block in enumerate(originals):
            stub = copy.copy(block)
            stub.forward = lambda *_args, **_more: stored
            blocks[i] = stub
        yield
