"""The metrics of one case, from the replies of a model before and after an edit.

Which metrics there are and what each means: :mod:`easyeditor.evaluate.scorers`. Accuracies are
shares of target tokens that are the argmax under teacher forcing; probabilities are geometric
means per token. Teacher forcing overstates what free generation will say (arXiv 2502.11177): read
these numbers as what they are, and ``generation`` beside them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from easyeditor.edits import Case
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers import scorers
from easyeditor.evaluate.scorers.base import Scorer, mean, scored


def summarise(
    case: Case, before: Replies, after: Replies, all_scorers: Sequence[Scorer] | None = None
) -> dict[str, Any]:
    """The ``pre`` (``after is before``) or ``post`` half of a classic metric dict.

    Every scorer is asked about the case or each probe of its group; values of one name are
    averaged, and ``"locality/x_acc"`` becomes ``{"locality": {"x_acc": …}}``. ``locality`` and
    ``portability`` are always there.

    Args:
        case: the edit with its probes.
        before: the replies of the unedited model.
        after: the replies of the edited one.
        all_scorers: by default every registered scorer, without free text.
    """
    values: dict[str, list[float | None]] = defaultdict(list)
    for scorer, probe in scored(scorers() if all_scorers is None else all_scorers, case):
        for name, value in scorer.score(probe, case, before, after).items():
            values[name].append(value)
    result: dict[str, Any] = {"locality": {}, "portability": {}}
    for name, results in values.items():
        numbers = [value for value in results if value is not None]
        *path, last = name.split("/")
        place = result
        for part in path:
            place = place.setdefault(part, {})
        place[last] = mean(numbers) if numbers else None
    return result
