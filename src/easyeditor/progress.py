"""Progress bars: on stderr, after two seconds, only where a person is watching."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm


def bar(total: int, what: str, unit: str = "step") -> Any:
    """A bar over ``total`` units; use it as a context and call ``update(n)``.

    It stays silent in pipes and for work that ends within two seconds.
    """
    return tqdm(total=total, desc=what, unit=unit, disable=None, delay=2, leave=False)
