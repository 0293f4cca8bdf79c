"""Let a language model judge the free answers of a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from easyeditor.bench.results import read_runs
from easyeditor.bench.run_dir import write_whole
from easyeditor.edits import as_prompt
from easyeditor.errors import BenchError
from easyeditor.evaluate.before_after import shown_apart
from easyeditor.evaluate.generation_metrics import natural_answer
from easyeditor.evaluate.judge import Question, Verdict, score_verdicts

FILE = "judge.json"


def judge_run(
    folder: str | Path, judge: Callable[[Sequence[Question]], list[Verdict]]
) -> dict[str, Any]:
    """Judge every answer to the edited prompts, their rephrases and the questions of users.

    Written to ``judge.json``.

    In a sequence the answers at its end are judged.

    Args:
        folder: a run that asked for free answers (``--answers``).
        judge: usually a :class:`~easyeditor.evaluate.judge.Judge`.

    Returns:
        ``{label: {"rewrite": {"judge_acc", "n", "unparsed"}, "rephrase": {…},
        "question": {…}, …}}``; the names of ``asked`` probes stand beside the first two.

    Raises:
        BenchError: no run, or one without free answers.
        JudgeError: the judge does not answer.
    """
    run = read_runs([folder])[0]
    questions: list[tuple[str, str, Question]] = []
    for label, stages in run.records.items():
        for record in stages.get("final") or stages.get("post", ()):
            questions += [(label, kind, question) for kind, question in _questions(record)]
    if not questions:
        raise BenchError(
            f"{folder} holds no free answers: run it with --answers 24 or --protocol-preset wild."
        )
    verdicts = judge([question for _, _, question in questions])
    by_label: dict[str, dict[str, list[Verdict]]] = {}
    for (label, kind, _), verdict in zip(questions, verdicts, strict=True):
        by_label.setdefault(label, {}).setdefault(kind, []).append(verdict)
    scores = {
        label: {kind: score_verdicts(given) for kind, given in kinds.items()}
        for label, kinds in by_label.items()
    }
    write_whole(Path(folder) / FILE, json.dumps(scores, indent=1, ensure_ascii=False) + "\n")
    return scores


def _questions(record: dict[str, Any]) -> list[tuple[str, Question]]:
    edit = record["requested_rewrite"]
    chat = bool(record["hparams"].get("chat_template"))
    answers = record["texts"].get("answers", {})
    prompts = [("rewrite", as_prompt(edit["prompt"]))]
    prompts += [
        ("rephrase", as_prompt(probe["prompt"]))
        for probe in edit["probes"]
        if probe["kind"].split("/")[0] == "rephrase"
    ]
    every = [as_prompt(edit["prompt"]), *(as_prompt(p["prompt"]) for p in edit["probes"])]
    keys = shown_apart(every)
    questions = []
    for kind, prompt in prompts:
        answer = answers.get(keys[prompt])
        if answer is not None:
            form = chat if prompt.chat is None else prompt.chat
            answer = natural_answer(answer, form)
            questions.append((kind, Question(prompt.text, answer, edit["target_new"])))
    for row in record["texts"].get("asked", ()):
        text = as_prompt(row["prompt"]).text
        questions.append((row["name"], Question(text, row["text"], edit["target_new"])))
    return questions
