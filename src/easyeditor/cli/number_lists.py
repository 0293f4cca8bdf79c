"""Numbers with commas between them, as an option takes them."""

from __future__ import annotations

import math

import typer

from easyeditor.errors import HyperParamsError


def numbers_of(text: str, option: str) -> list[int | float]:
    """``"1,0.5"`` as numbers, whole ones as ``int``.

    Raises:
        typer.BadParameter: it is no list of numbers.
        HyperParamsError: one is not finite.
    """
    try:
        numbers = [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers", param_hint=option) from None
    if not all(map(math.isfinite, numbers)):
        raise HyperParamsError(f"{option} {text}: every number must be finite.")
    return [int(number) if number.is_integer() else number for number in numbers]
