"""Writers of a ledger that are killed with SIGKILL at random moments, and writers at one time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import outer

TESTS = Path(__file__).parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(outer.SOURCE.parent), str(TESTS)]),
    "OMP_NUM_THREADS": "1",
}
WRITER = """
import sys, time
from easyeditor import Case, Edit
from easyeditor.errors import LedgerBusyError
from easyeditor.ledger.ledger import Ledger
book = Ledger(sys.argv[1])
for i in range(5):
    while True:
        try:
            book.propose([Case("0", Edit(f"{sys.argv[2]} {i} is", "x"))], "FT", {}, sys.argv[2])
            break
        except LedgerBusyError:
            time.sleep(0.01)
"""


def loop(folder: Path, rounds: int, seed: int) -> dict[str, object]:
    command = [sys.executable, str(TESTS / "ledger_child.py"), str(folder), str(rounds), str(seed)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_is_lost_when_writers_are_killed(tmp_path):
    summary = loop(tmp_path / "ledger", 10, 3)
    assert summary["rounds"] == 10
    assert summary["lost"] == []


@pytest.mark.slow
def test_nothing_is_lost_in_a_thousand_kills(tmp_path):
    rounds = int(os.environ.get("EASYEDITOR_KILLS", "1000"))
    summary = loop(tmp_path / "ledger", rounds, 5)
    assert summary["rounds"] == rounds
    assert summary["lost"] == []
    assert summary["done"] > rounds // 5


def test_two_writers_never_write_at_one_time(tmp_path):
    from easyeditor.ledger.ledger import Ledger

    book = Ledger.create(tmp_path / "ledger", "none", {})
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(book.folder), name], env=ENVIRONMENT)
        for name in ("ada", "bo")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    authors = [entry.author for entry in book.entries()]
    assert sorted(authors) == ["ada"] * 5 + ["bo"] * 5
    assert [entry.number for entry in book.entries()] == [*range(1, 11)]
