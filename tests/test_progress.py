"""Progress outside of a terminal: a line with the remaining time, and not one per short edit."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

from easyeditor import progress
from easyeditor.progress import LoggedProgress, bar, duration


@pytest.fixture
def clock(monkeypatch, caplog):
    """Seconds that pass only when the test says so; lines are captured."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    caplog.set_level(logging.INFO, "easyeditor.progress")
    return now


def test_long_work_in_a_pipe_says_how_far_it_is(clock, caplog):
    with bar(100, "scoring", "sequence", done=10) as shown:
        for _ in range(90):
            clock.seconds += 10
            shown.update(1)
    first, *others = caplog.messages
    assert first == "scoring: 11 of 100 sequences, about 15 min left"
    assert len(others) == 2  # every five minutes


def test_short_work_says_nothing(clock, caplog):
    with bar(3, "scoring") as shown:
        clock.seconds += 1.9
        shown.update(3)
    assert caplog.messages == []


def test_work_whose_unit_takes_long_is_named_at_its_start(clock, caplog):
    with bar(1, "factoring", "matrix", at_once=True):
        assert caplog.messages == ["factoring: 0 of 1 matrix"]


def test_parts_of_a_run_of_many_edits_speak_only_if_they_are_long(clock, caplog):
    with bar(1000, "edits", "edit"):
        for seconds in (3, 31):
            with bar(2, f"{seconds} seconds") as inner:
                clock.seconds += seconds
                inner.update(1)
    with bar(1, "one edit", "edit"), bar(2, "its search") as inner:
        clock.seconds += 3
        inner.update(1)
    starts = [message.partition(":")[0] for message in caplog.messages]
    assert starts == ["31 seconds", "its search"]


def test_a_failure_ends_the_work_that_encloses_others(clock, caplog):
    with pytest.raises(ZeroDivisionError), bar(9, "edits"):
        raise ZeroDivisionError
    with bar(2, "after it") as shown:
        clock.seconds += 3
        shown.update(1)
    assert len(caplog.messages) == 1


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True, write=print, flush=int))
    with bar(2, "scoring") as shown:
        assert not isinstance(shown, LoggedProgress)
        shown.update(2)


def test_a_cost_is_measured_without_what_an_interrupted_run_repeats(monkeypatch, caplog):
    import torch

    from easyeditor.second_moments import cost

    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(cost, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    estimate = cost.CostEstimate("Work", 110, torch.device("cpu"), "Less.", resumed=True)
    for seconds in (500, 1, 1):
        now.seconds += seconds
        estimate.update(10 if seconds == 500 else 1)
    assert "takes about 2 min" in caplog.text
    assert "2 of 100 tokens in 2 s" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (45, "45 s"), (1080, "18 min"), (9000, "2.5 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_phases_of_a_solve_say_how_far_they_are(monkeypatch, caplog, tmp_path):
    from easyeditor.associative.keys import keys_at, subject_rows, values_at
    from easyeditor.lm.forward.partial import Site
    from easyeditor.second_moments import moments
    from easyeditor.second_moments.null_space import eigenvectors_of
    from support import EDITS, lm

    monkeypatch.setattr(progress, "DELAY_SECONDS", -1.0)
    caplog.set_level(logging.INFO, "easyeditor.progress")
    model = lm("llama")
    rows = subject_rows(model, EDITS[0], ["", "Yes. "])
    keys_at(model, [1], rows)
    values_at(model, Site(1, "down"), rows)
    eigenvectors_of(moments(model, [1], tokens=50, directory=tmp_path)[1], model.device)
    phases = [message.partition(":")[0] for message in caplog.messages]
    for phase in ("reading keys", "reading values", "second moments of 1 layers"):
        assert phase in phases
    assert any(phase.startswith("decomposing second moments") for phase in phases)
