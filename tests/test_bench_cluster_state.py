"""A state on a Ray cluster of its own, whose processes can import the method."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from safetensors.torch import load_file

import toy_package
from benching import killing, numbers, plan
from easyeditor import load
from easyeditor.bench.cluster import RayExecutor
from easyeditor.bench.jobs import SequentialJob
from easyeditor.bench.runner import run
from easyeditor.methods import METHODS

toys = toy_package.toys


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")
def test_a_state_that_grows_goes_from_worker_to_worker(toys, folder, monkeypatch, tmp_path):
    import ray

    ray.shutdown()
    paths = [str(tmp_path), *sys.path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))

    def opened():
        from easyeditor.methods import METHODS

        if "STEER" not in METHODS:
            METHODS.add("STEER", "toys.steer:Steer")
        return load(str(folder), device="cpu")

    settings = METHODS.get("STEER").hyperparams_class(layers=[1])
    wanted = plan("sequential", methods={"STEER": settings})
    whole = run(opened(), wanted, tmp_path / "whole")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with RayExecutor(opened, wanted, workers=1) as executor:
            killing(monkeypatch, SequentialJob, executor, 2)
            run(opened(), wanted, tmp_path / "out", executor)
    finally:
        ray.shutdown()
    assert numbers(tmp_path / "out") == numbers(whole)
    final = "total-000003.state.safetensors"
    states = [load_file(tmp_path / run_dir / "STEER" / final) for run_dir in ("out", "whole")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
