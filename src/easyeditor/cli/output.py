"""What the commands share to show: JSON, tables of scores, before and after."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from easyeditor.cli.app import err
from easyeditor.edits import Case

if TYPE_CHECKING:
    from easyeditor.lm.forward.batching import TokenScores
    from easyeditor.lm.model import LM

out = Console(highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on stdout, and nothing else."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


@contextmanager
def working(message: str) -> Iterator[None]:
    """A spinner on stderr while something takes time; silent in a pipe."""
    with err.status(message):
        yield


def load_model(
    name: str,
    *,
    device: int | str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
) -> LM:
    """Load a model for reading."""
    with loading(name):
        from easyeditor.lm.loading import load

        return load(name, device=device, dtype=dtype, quantization=quantization)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """A spinner, and none of the libraries' own bars."""
    with working(f"loading {name} …"):
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        # It tells once for every layer and pass that 8-bit layers read their inputs in float16.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        yield


def asked(case: Case) -> list[tuple[str, str, str, str | None]]:
    """``(kind, prompt, new answer, old answer)`` of every line a case's table shows."""
    edit = case.edit
    rows = [("prompt", edit.prompt.text, edit.target, edit.ground_truth)]
    for probe in case.probes:
        if probe.group == "rephrase":
            rows.append(("rephrase", probe.prompt.text, edit.target, edit.ground_truth))
        elif probe.group == "locality":
            rows.append(("neighbour", probe.prompt.text, edit.target, probe.answers[0]))
        else:
            rows.append((probe.name or probe.group, probe.prompt.text, probe.answers[0], None))
    return rows


def snapshot(
    lm: LM, case: Case, *, max_new_tokens: int
) -> tuple[dict[tuple[str, str], TokenScores], dict[str, str]]:
    """Scores and free continuations of everything :func:`asked` shows."""
    from easyeditor.lm.inference import generate, score

    rows = asked(case)
    pairs = list(dict.fromkeys((p, a) for _, p, new, old in rows for a in (new, old) if a))
    prompts = list(dict.fromkeys(p for _, p, _, _ in rows))
    scores = dict(zip(pairs, score(lm, pairs), strict=True))
    texts = dict(zip(prompts, generate(lm, prompts, max_new_tokens), strict=True))
    return scores, texts


def _chance(
    scores: Mapping[tuple[str, str], TokenScores], prompt: str, answer: str | None
) -> float | None:
    return math.exp(scores[prompt, answer].mean_logprob) if answer else None


def before_after(case: Case, before: Any, after: Any) -> list[dict[str, Any]]:
    """The table's content as plain data."""
    told = []
    for kind, prompt, new, old in asked(case):
        line: dict[str, Any] = {"kind": kind, "prompt": prompt, "new": new, "old": old}
        for when, (scores, texts) in (("before", before), ("after", after)):
            line[when] = {
                "p_new": _chance(scores, prompt, new),
                "p_old": _chance(scores, prompt, old),
                "continuation": texts[prompt],
            }
        told.append(line)
    return told


def show_before_after(title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Print the table: probabilities of the old and the new answer, then what the model writes."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("prompt", overflow="fold", ratio=1)
    table.add_column("P(old answer)", justify="right", no_wrap=True)
    table.add_column("P(new answer)", justify="right", no_wrap=True)
    for line in lines:
        stays = line["kind"] == "neighbour"
        table.add_row(
            line["kind"],
            Text(line["prompt"]),
            _arrow(line, "old", good=stays),
            _arrow(line, "new", good=not stays),
        )
    out.print(table)
    free = Table(title="What the model writes (greedy)", title_justify="left", expand=False)
    for name in ("prompt", "before", "after"):
        free.add_column(name, overflow="fold")
    for line in lines:
        free.add_row(
            Text(line["prompt"]),
            Text(" ".join(line["before"]["continuation"].split())),
            Text(" ".join(line["after"]["continuation"].split())),
        )
    out.print(free)


def _arrow(line: Mapping[str, Any], which: str, *, good: bool) -> Text:
    before, after = line["before"][f"p_{which}"], line["after"][f"p_{which}"]
    if before is None:
        return Text("")
    style = "green" if (after >= 0.5) == good else "yellow"
    return Text.assemble(f"{line[which]} {before:.3f} → ", (f"{after:.3f}", style))


def seconds_line(seconds: Mapping[str, float]) -> str:
    """``contexts 0.7 s · values 2.1 s``."""
    return " · ".join(f"{phase} {spent:.1f} s" for phase, spent in seconds.items())
