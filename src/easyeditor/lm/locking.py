"""One lock per model, held while its weights, flags, hooks or forward context change."""

from __future__ import annotations

import threading
from typing import Any

from torch import nn

_ATTRIBUTE = "easyedit_lock"


class ModelLock:
    """A reentrant lock that is an attribute of a model; a copy of the model has another."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> ModelLock:
        self._lock.acquire()
        return self

    def __exit__(self, *_error: object) -> None:
        self._lock.release()

    def __deepcopy__(self, _memo: dict[int, Any]) -> ModelLock:
        return ModelLock()

    def __reduce__(self) -> tuple[type[ModelLock], tuple[()]]:
        return ModelLock, ()


def lock_of(model: nn.Module) -> ModelLock:
    """The model's lock, created on first use.

    The trap: it is reentrant, so it does not separate the nested changes of one thread.
    """
    lock: ModelLock = vars(model).setdefault(_ATTRIBUTE, ModelLock())
    return lock
