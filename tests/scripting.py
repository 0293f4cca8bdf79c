"""Words for the script ``easyedit``, and what it must leave."""

from __future__ import annotations

import json
from typing import Any

from outer import PROMPT, SUBJECT, TARGET, Said

DONE, NOT_TAKEN, BAD_INPUT = 0, 1, 2
TAKES = ("layers=[1]", "num_steps=60", "lr=0.02", "objective_optimization=target_new")
WEAK = ("layers=[1]", "num_steps=1", "lr=1e-9")
ROME = (
    "layers=[1]",
    "v_num_grad_steps=2",
    "mom2_adjustment=false",
    "context_template_length_params=[[2, 2]]",
)
ONE = ("--prompt", PROMPT, "--target", TARGET, "--subject", SUBJECT)


def sets(settings: tuple[str, ...]) -> list[str]:
    """``--set`` for each."""
    return [word for setting in settings for word in ("--set", setting)]


def document(told: Said) -> Any:
    """Standard output as the one strict JSON document it must be."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(told.out, parse_constant=refuse)


def editing(
    folder: object, *more: object, method: str = "ft", settings: tuple[str, ...] = TAKES
) -> tuple[object, ...]:
    """``easyedit edit`` on this model."""
    return ("edit", "--model", folder, "--method", method, *sets(settings), *more)


def refused(told: Said) -> str:
    """What a mistake must look like to a person: code 2, nothing on stdout, one message."""
    assert told.code == BAD_INPUT
    assert told.out == ""
    assert "Traceback" not in told.err
    return " ".join(told.err.replace("│", " ").split())
