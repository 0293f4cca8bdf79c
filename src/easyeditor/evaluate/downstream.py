"""Downstream tasks: can the edited model still do what has nothing to do with the edit?

The tasks, prompts and metrics are those of EleutherAI's lm-evaluation-harness (Gao et al., "A
framework for few-shot language model evaluation"), run on the model as it is now. Call
:func:`downstream` before and after an edit; the difference (:func:`change`) is the score.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import stdev
from typing import Any

import torch

from easyeditor.errors import DownstreamError, MissingExtraError, did_you_mean
from easyeditor.evaluate.bootstrap import Estimate
from easyeditor.lm.model import LM
from easyeditor.lm.routing import routers_of


def downstream(
    lm: LM,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include_path: Path | str | None = None,
    batch_size: int = 8,
    seed: int = 0,
    items: bool = False,
) -> dict[str, dict[str, Any]]:
    """Scores of ``lm`` on tasks of the harness.

    The model is bit-identical and in the same mode after, and no global generator moves. The trap:
    scores compare only with the same tasks, versions, limit, seed and batch size (padding changes
    the last bits), and differences below two standard errors say nothing.

    Args:
        lm: the model, before or after an edit. Where it wraps prompts by its chat template, the
            tasks do.
        tasks: names of tasks, groups or tags; ``lm-eval ls tasks`` lists them.
        limit: only the first so many items of each task.
        include_path: a folder with further task definitions (YAML), or one such file, which
            stands for its folder. Data files named in them are looked up by the harness from the
            working directory.
        batch_size: sequences per forward pass.
        seed: of the few-shot examples and of sampling, where a task has either.
        items: also the values of every item.

    Returns:
        ``{task: {metric: value, metric_stderr: value or None, "n": items, "version": …}}``, groups
        included. Metrics of a filter other than the plain one are named ``metric,filter``. With
        ``items``, ``"items": {metric: [value per item]}`` for metrics that are means over items:
        what :func:`change` needs.

    Raises:
        MissingExtraError: the package ``lm_eval`` is not installed.
        DownstreamError: an unknown task, no such ``include_path``, a task that cannot be loaded
            (often its data set: it comes from a hub) or run, an impossible limit or batch size.
    """
    if routers_of(lm.model):
        raise DownstreamError(
            "The harness runs bare forward passes, and this model's edits act on the text before "
            "one: it would score the unedited model. Only edits of weights can be scored."
        )
    names = list(dict.fromkeys([tasks] if isinstance(tasks, str) else tasks))
    manager = check_tasks(names, limit=limit, include_path=include_path, batch_size=batch_size)
    with _random_state_restored(), lm.at_rest(), _tied_weights_restored(lm):
        results = _run(lm, names, manager, limit, batch_size, seed, items)
    scores = {
        task: _scores(row, results["versions"].get(task))
        for task, row in results["results"].items()
    }
    for task, samples in results.get("samples", {}).items() if items else ():
        scores[task]["items"] = _per_item(scores[task], samples)
    return scores


def _per_item(scores: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Values by item of every metric whose mean over the items is its score."""
    columns: dict[str, dict[int, float]] = {}
    for sample in samples:
        filtered = sample.get("filter", "none")
        for metric in sample.get("metrics", ()):
            name = metric if filtered == "none" else f"{metric},{filtered}"
            value = sample.get(metric)
            if isinstance(value, (bool, int, float)):
                columns.setdefault(name, {})[sample["doc_id"]] = float(value)
    items = {name: [column[i] for i in sorted(column)] for name, column in columns.items()}
    return {
        name: values
        for name, values in items.items()
        if isinstance(scores.get(name), (int, float))
        and math.isclose(sum(values) / len(values), scores[name], abs_tol=1e-9)
    }


def change(before: Mapping[str, Any], after: Mapping[str, Any], metric: str) -> Estimate | None:
    """The difference of one task's metric, after − before, with its 95 % interval.

    Paired where both know the values per item: both models answered the same items, so what
    differs is each item's own difference, ± 1.96 standard errors of their mean. Else from the two
    standard errors of the harness as if they were of different items, which is too wide. None
    where a score is missing.
    """
    pair = before.get(metric), after.get(metric)
    if not all(isinstance(score, (int, float)) for score in pair):
        return None
    difference = float(after[metric]) - float(before[metric])
    n = int(after.get("n") or 0)
    first, second = (scores.get("items", {}).get(metric, []) for scores in (before, after))
    if first and len(first) == len(second):
        changes = [b - a for a, b in zip(first, second, strict=True)]
        error = stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else math.nan
    else:
        name, _, filtered = metric.partition(",")
        of_error = f"{name}_stderr{',' if filtered else ''}{filtered}"
        errors = [scores.get(of_error) for scores in (before, after)]
        known = [float(value) for value in errors if value is not None]
        error = math.hypot(*known) if len(known) == 2 else math.nan
    reach = 1.96 * error
    return Estimate(difference, difference - reach, difference + reach, n)


def check_tasks(
    names: Sequence[str],
    *,
    limit: int | None = None,
    include_path: Path | str | None = None,
    batch_size: int = 8,
) -> Any:
    """Refuse what :func:`downstream` would refuse of its arguments; returns the index of tasks.

    Raises:
        MissingExtraError: the package ``lm_eval`` is not installed.
        DownstreamError: no task, or one nobody knows; an impossible limit, batch size or folder.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError.of("lm_eval", "lm-eval", "Downstream evaluation")
    if not names:
        raise DownstreamError("No downstream task was named.")
    if (limit is not None and limit < 1) or batch_size < 1:
        raise DownstreamError(
            f"limit={limit}, batch_size={batch_size}: both are 1 or more; limit=None takes all."
        )
    return _manager(list(names), include_path)


def _run(
    lm: LM,
    names: list[str],
    manager: Any,
    limit: int | None,
    batch_size: int,
    seed: int,
    items: bool,
) -> dict[str, Any]:
    import lm_eval

    try:
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model=_wrapped(lm, batch_size),
            tasks=names,
            task_manager=manager,
            limit=limit,
            log_samples=items,
            apply_chat_template=lm.text.chat_template,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except RuntimeError:  # out of memory, for one: nothing a task definition could help
        raise
    except Exception as error:  # data sets, templates and task code fail each in their own way
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DownstreamError(
            f"The harness cannot run {', '.join(names)}: {reason.rstrip('.')}. A task's data set "
            "comes from a hub or, for a definition in include_path, from files that are looked up "
            "from the working directory."
        ) from error
    return results


def _wrapped(lm: LM, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    harness = logging.getLogger("lm_eval")
    level = harness.level
    harness.setLevel(logging.ERROR)  # it warns that the model was not loaded by it
    try:
        # A copy of the tokenizer: the harness gives it a padding token where it has none.
        return HFLM(
            pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=batch_size
        )
    finally:
        harness.setLevel(level)


def _scores(row: dict[str, Any], version: Any) -> dict[str, Any]:
    scores = {
        name.removesuffix(",none"): None if value == "N/A" else value
        for name, value in row.items()
        if "," in name
    }
    return {**scores, "n": row.get("sample_len"), "version": version}


# -- finding tasks ----------------------------------------------------------------------------


def _manager(names: list[str], include_path: Path | str | None) -> Any:
    """An index of tasks that holds all ``names``."""
    from lm_eval.tasks import TaskManager

    if include_path is None:
        manager = _built_in()
    else:
        folder = Path(include_path).expanduser().resolve()
        if not folder.exists():
            raise DownstreamError(f"include_path={str(include_path)!r}: no such folder or file.")
        folder = folder if folder.is_dir() else folder.parent
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        # Indexing the 14,000 of the harness takes seconds; a group may name some of them.
        if not set(names) <= set(manager.all_subtasks):
            manager = TaskManager(include_path=str(folder))
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        raise DownstreamError(
            " ".join(
                f"No downstream task {name!r}.{did_you_mean(name, manager.all_tasks)}"
                for name in unknown
            )
            + " `lm-eval ls tasks` lists them; include_path= adds further ones."
        )
    return manager


@cache
def _built_in() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


# -- leaving no trace -------------------------------------------------------------------------


@contextlib.contextmanager
def _random_state_restored() -> Iterator[None]:
    """The harness seeds Python's, numpy's and torch's global generators; put them back."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    where: dict[str, Any] = {"devices": []}
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        assert kind is not None
        where = {"devices": range(torch.accelerator.device_count()), "device_type": kind.type}
    try:
        with torch.random.fork_rng(**where):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def _tied_weights_restored(lm: LM) -> Iterator[None]:
    """The harness ties the head to the embedding again, over an edit that set them apart."""
    instance_method = vars(lm.model).get("tie_weights")
    lm.model.__dict__["tie_weights"] = lambda *_args, **_options: None
    try:
        yield
    finally:
        del lm.model.__dict__["tie_weights"]
        if instance_method is not None:
            lm.model.__dict__["tie_weights"] = instance_method
