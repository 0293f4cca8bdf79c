"""Which rows the matrix has, and every setting that is not a default, with its reason.

The zoo's models have 4 or 6 blocks of about 100 numbers, not 28 to 48 of thousands, so published
layers and step sizes mean little here. What is below was chosen on ``cases("train")``; the cases of
the matrix are of ``cases("eval")``, whose subjects are others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easyeditor.hyperparams import HyperParams
from easyeditor.methods import METHODS
from zoo import FAMILIES, corpus_file


@dataclass(frozen=True)
class Entrant:
    """One row.

    Attributes:
        row: its name.
        method: the method's.
        settings: that differ from the defaults, in every family.
        only: that differ beyond those, by family.
        training: how what it learns is trained; None for methods that learn nothing.
        shown: whether it takes demonstrations from the training cases.
        least: what each cell must show; what is not named is not asked.
    """

    row: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    only: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    shown: bool = False
    least: dict[str, float] = field(default_factory=dict)

    def given(self, family: str, **more: Any) -> dict[str, Any]:
        """What its hyper-parameters are made of in one family."""
        return {**self.settings, **self.only.get(family, {}), **more}


ITSELF = "itself"
"""In a training: the folder of the family's own model."""

STEADY = {"rewrite": 0.99, "rephrase": 0.95, "locality": 0.9}
GENERAL = {**STEADY, "rephrase": 0.85}

# One matrix in the middle. Weights of a hundred numbers need larger steps than 5e-4.
_FT = {"layers": [2], "lr": 5e-3, "num_steps": 50}
# Block 1 of 4 or 6, where subjects are still read: what is written in block 0 other tokens hear
# before they are read. An encoder's tokens have heard it all by block 0, and ROME on GPT-J misses
# fewer answers of the train split there. The search is told when it is done; few facts need over
# 100 steps, on plateaus where nobody listens to the subject. "{subject} is a" is no sentence of the
# world, so there is no KL on it. A third of the contexts is as good. The world's text is small:
# 20,000 tokens are nearly all of it.
_LOCATE = {
    "v_num_grad_steps": 200,
    "v_weight_decay": 1e-3,
    "v_stop_nll": 0.02,
    "kl_factor": 0,
    "context_template_length_params": [[5, 2], [10, 2]],
    "mom2_n_tokens": 20_000,
}
# What one block's MLP writes is short beside what the last token needs to hear, so the ball around
# it is 10 times its norm, not 4; steps smaller than 0.5 end nearer by, which neighbours feel.
_OF_AN_MLP = {"v_lr": 0.2, "clamp_norm_factor": 10}
# The stream between blocks is long. A longer value is only slower to turn there, as the next block
# normalises what it reads: large steps on a small ball arrive where small ones stand still.
_OF_A_BLOCK = {"v_lr": 1.0, "clamp_norm_factor": 1.5}
# T5's encoder is like that wherever the value is written, and its plateaus are wider.
_IN_AN_ENCODER = {"v_lr": 2.0, "clamp_norm_factor": 1.5}

ENTRANTS = (
    # All target tokens are read at one place, so of an answer of n tokens it learns a mixture whose
    # largest part is one of them; the others are what follows anyway under teacher forcing.
    Entrant(
        "FT-L",
        "FT",
        {**_FT, "objective_optimization": "prompt_last"},
        least={"rewrite": 0.75, "rephrase": 0.75, "locality": 0.8},
    ),
    Entrant("FT-M", "FT", {**_FT, "objective_optimization": "target_new"}, least=GENERAL),
    Entrant(
        "SERAC",
        "SERAC",
        training={
            # The family's own model as both: it reads new facts, and knows who is meant.
            "small_name": ITSELF,
            "cls_name": ITSELF,
            "template": "New Fact: {prompt} {target}\nPrompt: {query}",  # as the zoo was taught
            "lr": 3e-4,
            "cls_lr": 1e-3,
            "head_lr": 1e-2,
            "lr_schedule": "linear",
            "batch_size": 32,
            "max_iters": 30,  # more tell nothing new: the model could read before
            "val_interval": 30,
            "val_batch_size": 50,
        },
        least=STEADY,
    ),
    # The zoo was taught to read one to three blocks of a fact and a question, so two are shown.
    Entrant("IKE", "IKE", {"k": 2}, shown=True, least=STEADY),
    Entrant(
        "MEND",
        "MEND",
        training={
            "lr": 3e-4,
            "lr_lr": 3e-4,
            "edit_lr": 5e-4,
            "rank": 32,  # of widths of a hundred; 1920 is no restriction
            "cedit": 5.0,  # in few steps the edit has to be learnt first
            "batch_size": 16,
            "max_iters": 240,  # 90 are enough but for T5 and LLaMA-2, which need over 150
            "val_interval": 240,
            "lr_schedule": "cosine",
        },
        least=STEADY,
    ),
    # Nothing in it makes sure of the target. The last two blocks, as the earlier neurons fire for
    # any person; λ = 1 because the old answer is known by heart, at probability 1.
    Entrant(
        "KN",
        "KN",
        {"layers": [-2, -1], "lambda_new": 1.0, "lambda_old": 1.0},
        least={"rewrite": 0.95, "rephrase": 0.95, "locality": 0.9},
    ),
    Entrant(
        "ROME",
        "ROME",
        {"layers": [1], **_LOCATE, **_OF_AN_MLP},
        only={
            "t5": {"layers": [0], **_IN_AN_ENCODER},
            "gptj": {"layers": [0]},
        },
        least=GENERAL,
    ),
    # λ multiplies the mean second moment, which one key is not small beside here: 1, not 15,000.
    # An averaged key is up to a tenth off in an encoder, so every context's own is stored.
    Entrant(
        "MEMIT",
        "MEMIT",
        {
            "layers": [1, 2],
            "key": "ridge",
            "mom2_update_weight": 1,
            **_LOCATE,
            **_OF_A_BLOCK,
        },
        only={"t5": {"layers": [0, 1], **_IN_AN_ENCODER}},
        least=GENERAL,
    ),
)
ENTRANTS = tuple(entrant for entrant in ENTRANTS if entrant.method in set(METHODS))
BY_ROW = {entrant.row: entrant for entrant in ENTRANTS}
CELLS = [  # what is trained takes longest, so it comes first
    (entrant.row, family)
    for entrant in sorted(ENTRANTS, key=lambda entrant: entrant.training is None)
    for family in FAMILIES
]


def hyperparams(entrant: Entrant, family: str, folder: Path, archive: Path | None) -> HyperParams:
    """The settings of one cell; the world's text and statistics go to ``folder``."""
    kind = METHODS.get(entrant.method).hyperparams_class
    more: dict[str, Any] = {}
    if "mom2_dataset" in kind.model_fields:
        more = {"mom2_dataset": str(corpus_file(folder)), "stats_dir": str(folder)}
    if archive is not None:
        more["archive"] = str(archive)
    return kind(**entrant.given(family, **more))
