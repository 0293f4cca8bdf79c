"""A process that carries out a sequence and tells of every record it keeps; to be killed."""

from __future__ import annotations

import sys

import torch

import benching
from easyeditor.bench.run_dir import EventLog
from easyeditor.bench.runner import run

torch.set_num_threads(1)
keep = EventLog.append


def told(event_log, records):
    keep(event_log, records)
    print(event_log.path.parent.name, len(event_log.records), flush=True)  # noqa: T201


EventLog.append = told
out, stats_dir = sys.argv[1:]
run(benching.lm(), benching.sequence(stats_dir), out)
