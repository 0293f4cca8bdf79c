"""A training in a process of its own, which may be told to die: ``training_child.py FOLDER STEP``.

It trains the tiny GPT-2's networks and kills itself in the pass ``STEP`` (0: never); with a third
argument it takes the training up again.

Under ``torchrun`` several of it share the training; ``FSDP=2`` in the environment shards it,
``CHANGES`` (JSON) changes its settings.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch

from easyeditor import Case, EditTrainer, MENDTrainingHparams, Probe
from support import EDITS, lm

torch.set_num_threads(1)

CASES = [
    Case(
        f"{edit.subject}-{i}",
        edit,
        (
            Probe(f"{start} {edit.prompt}", (edit.target,), "rephrase"),
            Probe("She plays the", ("piano",), "locality/near"),
        ),
    )
    for i, start in enumerate(("You can see.", "Therefore", "Because it rained,"))
    for edit in EDITS
][:8]  # four batches of two: every step takes two whole ones


def config(folder: object, **changes: Any) -> MENDTrainingHparams:
    """12 steps of two batches of two, validated and saved every third."""
    usual = {
        "model_name": "zoo/tiny",
        "results_dir": str(folder),
        "lr": 1e-3,
        "edit_lr": 1e-3,
        "batch_size": 2,
        "accumulate_bs": 2,
        "max_iters": 24,
        "val_interval": 6,
        "log_interval": 4,
        "early_stop_patience": 1000,
    }
    return MENDTrainingHparams(**{**usual, **changes})


def trainer(folder: object, **changes: Any) -> EditTrainer:
    """Of a fresh tiny model."""
    return EditTrainer(config(folder, **changes), CASES, CASES[:4], lm=lm("gpt2"))


def shard() -> None:
    """Let accelerate choose FSDP, which it does beside GPUs only, on these CPUs."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    # What ``accelerate launch --use_fsdp --fsdp_version 2`` sets beside defaults, and a policy of a
    # user's.
    os.environ |= {
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": os.environ["FSDP"],
        "FSDP_CPU_RAM_EFFICIENT_LOADING": str(os.environ["FSDP"] == "2"),  # 1 needs a GPU for it
        "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
        "FSDP_MIN_NUM_PARAMS": "1",
    }
    torch.distributed.init_process_group("gloo")
    chosen = ("gloo", DistributedType.MULTI_GPU)
    PartialState._prepare_backend = lambda *_args, **_more: chosen  # type: ignore[method-assign]


def main(folder: str, deadly: int, resume: bool) -> None:
    """Train, and die in one pass."""
    if "FSDP" in os.environ:
        shard()
    if "LONE" in os.environ:  # one of a program's own processes trains, the other does not
        torch.distributed.init_process_group("gloo")
        if os.environ["RANK"] == "1":
            torch.distributed.destroy_process_group()
            return
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            del os.environ[name]
    from easyeditor.methods.mend.learner import MENDLearner

    whole, passes = MENDLearner.loss, 0
    seen: MENDLearner | None = None

    def loss(self: MENDLearner, cases: Any) -> Any:
        nonlocal passes, seen
        passes, seen = passes + 1, self
        if passes == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, cases)

    MENDLearner.loss = loss  # type: ignore[method-assign]
    made = trainer(folder, **json.loads(os.environ.get("CHANGES", "{}")))
    if made.config.edit_loss_on == "prompt":  # of two processes, the second has no paraphrase
        made.val_set[1::2] = [Case(c.id, c.edit, c.probes[1:]) for c in made.val_set[1::2]]
    metrics = made.run(resume=resume).metrics
    assert seen is not None
    kind = type(seen.network.rates).__name__
    sys.stdout.write(f"{kind} learnt: {json.dumps(dict(metrics))}\n")
    if "FSDP" in os.environ:  # whoever joins a group leaves it
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3)
