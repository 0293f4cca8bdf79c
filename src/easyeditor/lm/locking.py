"""One lock per model: whoever changes a model holds it, and other threads wait."""

from __future__ import annotations

import threading
from typing import Any

from torch import nn

_ATTRIBUTE = "easyedit_lock"


class ModelLock:
    """A reentrant lock that hangs on a model; a copy of the model gets one of its own."""

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
    """The model's lock, made on first use.

    The trap: a thread that holds it may take it again, so it does not keep one thread's nested
    changes apart.
    """
    lock: ModelLock = vars(model).setdefault(_ATTRIBUTE, ModelLock())
    return lock
