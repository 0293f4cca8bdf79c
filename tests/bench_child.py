"""A process that carries out a sequence and tells of every record it keeps; to be killed."""

from __future__ import annotations

import sys

import torch

import benching
from easyeditor.bench.run_dir import Journal
from easyeditor.bench.runner import run

torch.set_num_threads(1)
keep = Journal.append


def told(journal, records):
    keep(journal, records)
    print(journal.path.parent.name, len(journal.lines), flush=True)  # noqa: T201


Journal.append = told
out, stats_dir = sys.argv[1:]
run(benching.lm(), benching.sequence(stats_dir), out)
