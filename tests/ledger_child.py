"""Kills a process that writes to a ledger, at random moments; prints what was lost.

``python ledger_child.py FOLDER ROUNDS SEED``: each round forks a writer that adds, undoes and
redoes edits and reports every one that is done, kills it, and compares the ledger with the reports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

import outer
import tiny
from easyeditor import LM, Case, Edit
from easyeditor.editors.session import EditSession
from easyeditor.ledger import live as live_module
from easyeditor.ledger.health import Health
from easyeditor.ledger.ledger import Ledger
from easyeditor.ledger.live import LiveLedger, create_for
from easyeditor.ledger.verifying import findings
from easyeditor.methods import METHODS
from easyeditor.patches.weight import LowRank, weight_patch

FIRST_SECONDS = 0.2
READY = b"ready\n"
METRICS = [{"pre": {"rewrite_acc": 0.0}, "post": {"rewrite_acc": 1.0}}]


class Healthy:
    """A guard that measures nothing, so that most of the time goes into writing."""

    def measure(self, broken=()):
        return Health(1.0, 1.0, 0.0, 0.0)


@contextmanager
def live_ledger(folder, model):
    """The ledger on the model, which carries nothing before and after."""
    live = LiveLedger(Ledger(folder), LM(model, tiny.tokenizer()))
    live.guard = Healthy()
    try:
        yield live
    finally:
        live.sync(without=[entry.number for entry in live.ledger.active()])


def add(live, rng):
    """One edit with a random change of one matrix; returns its number."""
    session = EditSession(live.lm, METHODS.get("FT")(outer.settings("FT")))
    edit = Edit(f"Question {rng.random()} is answered by", f"answer {rng.random()}")
    path = live.lm.projection(1).path
    rows, columns = live.lm.model.get_parameter(path).T.shape
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    u = torch.randn(rows, 1, generator=generator) * 0.01
    v = torch.randn(1, columns, generator=generator)
    settings = session.method.hyperparams
    patch = weight_patch(live.lm, "FT", [edit], settings, {path: [LowRank(u, v)]}, {})
    allow = ["untaken", "broken"]
    with live.recording(session, [Case("0", edit)], {"allow": allow}) as keep:
        patch.apply(live.lm.model)
        keep(patch, METRICS)
    return live.ledger.active()[-1].number


def write(folder, model, seed, pipe):
    """Change the ledger for ever, and report every change that is done."""
    rng = random.Random(seed)
    live_module.fact_scores = lambda *_args, **_more: []
    with live_ledger(folder, model) as live:
        os.write(pipe, READY)
        while True:
            states = {entry.number: str(entry.state) for entry in live.ledger.entries()}
            active = [number for number, state in states.items() if state == "active"]
            undone = [number for number, state in states.items() if state == "undone"]
            action = rng.choice(["add", "add", "undo", "redo"])
            if action == "add" and len(active) < 12:
                done = add(live, rng), "active"
            elif action == "undo" and active:
                live.undo_entries([number := rng.choice(active)])
                done = number, "undone"
            elif undone:
                live.redo(number := rng.choice(undone), allow=["untaken", "broken"])
                done = number, "active"
            else:
                continue
            os.write(pipe, json.dumps(done).encode() + b"\n")


def killed(folder, model, seed, changes, share):
    """What a writer reported before it was killed: in the middle of the change after ``changes``.

    ``share`` of the time that a change took before is waited; without one, of ``FIRST_SECONDS``.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        try:
            write(folder, model, seed, writing)
        except BaseException as error:
            os.write(writing, json.dumps({"error": repr(error)}).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as reports:
        lines = [reports.readline()]
        assert lines == [READY], lines
        began = time.perf_counter()
        lines += [reports.readline() for _ in range(changes)]
        taken = (time.perf_counter() - began) / changes if changes else FIRST_SECONDS
        time.sleep(share * taken)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return [json.loads(line) for line in [*lines[1:], *reports] if line]


def main(folder: Path, rounds: int, seed: int) -> None:
    torch.set_num_threads(1)
    model = tiny.model("llama")
    lm = LM(model, tiny.tokenizer())
    before = outer.bits(model)
    create_for(folder, lm)
    rng, expected, lost, done, leftovers = random.Random(seed), {}, [], 0, 0
    for i in range(rounds):
        reports = killed(folder, model, rng.randrange(2**31), rng.randrange(3), rng.random())
        errors = [report["error"] for report in reports if isinstance(report, dict)]
        expected.update(report for report in reports if not isinstance(report, dict))
        done += len(reports)
        scratch = folder / "patches" / ".incoming"
        leftovers += scratch.exists()
        ledger = Ledger(folder)  # the next command
        states = {entry.number: str(entry.state) for entry in ledger.entries()}
        differing = {n for n in expected.keys() | states.keys() if expected.get(n) != states.get(n)}
        problems = [finding.message for finding in findings(ledger)]
        if len(differing) > 1 or errors or problems or scratch.exists():
            lost.append([i, sorted(differing), errors, problems])
        expected = states
        if i % 20 == 0 or i == rounds - 1:
            with live_ledger(folder, model) as live:
                live.sync()
            if outer.changed(model, before):
                lost.append([i, "bits"])
    summary = {"rounds": rounds, "done": done, "leftovers": leftovers, "lost": lost}
    sys.stdout.write(json.dumps({**summary, "edits": len(expected)}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
