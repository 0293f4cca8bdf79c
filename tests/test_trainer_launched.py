"""Trainings that several processes share, as ``torchrun`` and ``accelerate launch`` start them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from easyeditor.methods.archive import NAME
from training_child import trainer

CHILD = Path(__file__).with_name("training_child.py")
WHERE = Path("MEND") / "tiny" / NAME
KINDS = ("DDP", "FSDP")

# Half a minute of starting processes each; ``.ci/run`` runs them after any change of a training.
pytestmark = pytest.mark.slow


def launch(
    folder: Path, kind: str, *words: str, version: str = "2", **changes: object
) -> tuple[int, str]:
    """Two processes of the training: the exit code and what they said."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    both = subprocess.Popen(
        [*launcher, str(CHILD), str(folder), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", kind: version, "CHANGES": json.dumps(changes)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told, _ = both.communicate(timeout=240)
    except subprocess.TimeoutExpired:  # one waits for another that is past it
        os.killpg(both.pid, signal.SIGKILL)
        raise
    return both.returncode, told


@pytest.fixture(scope="module", params=KINDS)
def shared(request, tmp_path_factory) -> tuple[str, Path]:
    """How two processes shared a training that went through, and where."""
    folder = tmp_path_factory.mktemp(request.param)
    code, told = launch(folder, request.param, "0")
    assert code == 0, told
    assert ("DTensor learnt" in told) == (request.param == "FSDP")  # or nothing was sharded
    return request.param, folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What one process learns from batches of twice the size."""
    result = trainer(tmp_path_factory.mktemp("alone"), batch_size=4).run()
    return load_file(result.path)


def test_two_processes_learn_what_one_learns_from_batches_twice_as_large(shared, alone):
    found = load_file(shared[1] / WHERE)
    assert found.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_a_killed_one_is_taken_up_with_the_same_bits(shared, tmp_path):
    kind, folder = shared
    code, told = launch(tmp_path, kind, "15")
    assert code != 0
    assert f"Signal {signal.SIGKILL.value}" in told
    assert not (tmp_path / WHERE).exists()
    assert list((tmp_path / "MEND" / "tiny" / "checkpoints").iterdir())
    code, told = launch(tmp_path, kind, "0", "resume")
    assert code == 0, told
    assert (tmp_path / WHERE).read_bytes() == (folder / WHERE).read_bytes()
    assert not (tmp_path / "MEND" / "tiny" / "checkpoints").exists()


def test_mixed_precision_and_a_share_that_has_no_paraphrase(tmp_path):
    found = {}
    for kind in KINDS:
        changes = {"half": True, "edit_loss_on": "prompt", "max_iters": 12}
        code, told = launch(tmp_path / kind, kind, "0", **changes)
        assert code == 0, told
        metrics = [json.loads(line) for line in re.findall("learnt: (.*)", told)]
        assert metrics[0] == metrics[1]
        assert {"rewrite", "rephrase", "locality"} < metrics[0].keys()
        found[kind] = metrics[0]["edit_nll"]
    assert found["FSDP"] == pytest.approx(found["DDP"], rel=0.02)
    full = trainer(tmp_path / "full", batch_size=4, edit_loss_on="prompt", max_iters=12).run()
    assert found["DDP"] == pytest.approx(full.metrics["edit_nll"], rel=0.05)


def test_one_of_a_programs_processes_trains_alone(tmp_path):
    code, told = launch(tmp_path, "LONE", "0")
    assert code == 0, told
    found = load_file(tmp_path / WHERE)
    alone = load_file(trainer(tmp_path / "alone").run().path)
    assert all(torch.equal(found[name], tensor) for name, tensor in alone.items())


def test_the_first_fsdp_is_refused(tmp_path):
    code, told = launch(tmp_path, "FSDP", "0", version="1")
    assert code != 0
    assert "TrainingError: A training is sharded by FSDP 2 only" in told
    assert not list(tmp_path.rglob("checkpoint-*"))
