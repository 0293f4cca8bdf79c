"""Every method in a ledger: recorded, carried by another model, undone to the bit."""

from __future__ import annotations

import pytest

import outer
from cases import BY_NAME
from easyeditor import BaseEditor
from easyeditor.ledger.health import Health
from easyeditor.ledger.ledger import Ledger
from easyeditor.ledger.limits import HealthLimits
from easyeditor.ledger.live import create_for
from easyeditor.ledger.verifying import findings
from learning_cases import CASES
from support import Snapshot, argmaxes, lm, logprobs

FAST = ("GRACE",)
"""Adapters on a module; weights are what the other tests are about."""
PASS = ["untaken", "broken"]


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BY_NAME],
)
def test_a_ledger_keeps_the_edits_of_any_method(name, make_method, tmp_path):
    model, other = lm("llama"), lm("llama")
    hparams = make_method(name, model, "llama").hyperparams
    before = Snapshot(model.model)
    create_for(tmp_path / "book", model, limits=HealthLimits(1e9, 1e9))
    editor = BaseEditor(model, hparams, ledger=tmp_path / "book")
    if editor.method.needs and "DEMONSTRATIONS" in {need.name for need in editor.method.needs}:
        editor.method.use_corpus(CASES)
    prompts = [fact[:2] for fact in outer.FACTS]
    queries = [(prompt, target) for prompt, _, target in outer.FACTS]
    for prompt, subject, target in outer.FACTS[:2]:
        editor.edit(prompt, target, subject=subject, verbose=False, allow=PASS)
    assert isinstance(editor.ledger.guard.measure(), Health)
    after = logprobs(model, queries)
    twin = BaseEditor(other, hparams, ledger=tmp_path / "book")
    assert logprobs(other, queries) == after
    assert argmaxes(other, queries) == argmaxes(model, queries)
    assert len(twin.applied) == 2, prompts
    twin.ledger.undo_entries([1])
    editor.edit(*outer.FACTS[2][::2], subject=outer.FACTS[2][1], verbose=False, allow=PASS)
    twin.ledger.sync()
    assert logprobs(other, queries) == logprobs(model, queries)
    book = Ledger(tmp_path / "book")
    assert [str(entry.state) for entry in book.entries()] == ["undone", "active", "active"]
    assert findings(book) == []
    editor.ledger.undo_entries([2, 3])
    assert before.differences(model.model) == []
