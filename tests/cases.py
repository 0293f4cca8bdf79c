"""One row per method: settings for tiny models, what it learns, its rows of the matrix with bars.

A new method adds its row to :data:`CASES`; the contract, the matrix, the hyper-parameters' and the
command line's tests read it there. Only ``name`` and ``quick`` are needed. ``test_cases.py`` holds
the table equal to the registry.

The matrix edits the models of ``tests/zoo``: 4 or 6 blocks of about 100 numbers, not 28 to 48 of
thousands, so published layers and step sizes mean little there. The settings of its rows were
chosen on ``zoo.world.cases("train")``; the matrix itself edits cases of ``"eval"``, whose subjects
are others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Settings = Mapping[str, Any]

STEADY = {"rewrite": 0.99, "rephrase": 0.95, "locality": 0.9}
GENERAL = {**STEADY, "rephrase": 0.85}

ITSELF = "itself"
ENCODER = "encoder"
"""In a training: the folder of the model that is edited, and of a tiny network."""


@dataclass(frozen=True)
class MatrixRow:
    """One row of docs/matrix.md.

    Attributes:
        row: its name.
        bars: the least of each score in every family; a score without a bar is only reported.
        settings: hyper-parameters that differ from the defaults.
        only: the same for one family, beyond ``settings``.
        training: training settings that differ from the defaults, of a method that learns.
        every: which of the matrix's cases the fast tier edits; fewer where an edit takes seconds.
        shown: whether the training cases are given as demonstrations.
        reading: what the page says of the row.
    """

    row: str
    bars: Settings = field(default_factory=lambda: GENERAL)
    settings: Settings = field(default_factory=dict)
    only: Mapping[str, Settings] = field(default_factory=dict)
    training: Settings | None = None
    every: int = 4
    shown: bool = False
    reading: str = ""

    def given(self, family: str) -> dict[str, Any]:
        """The hyper-parameters in one family."""
        return {**self.settings, **self.only.get(family, {})}


@dataclass(frozen=True)
class MethodCase:
    """What the tests need to know of one method.

    Attributes:
        name: as in the registry.
        quick: hyper-parameters for random models of three blocks, a few steps of everything.
            Second moments and the archive are filled in.
        plain: what differs from ``quick`` where a test needs no statistics and an edit that shows.
        variants: further settings, each tried on one family.
        trainer: training settings for a quick archive, of a method that learns.
        phases: where an edit is interrupted: a function that the method's module calls, or that of
            a class it inherits from, and at which call.
        layers: the layers whose down-projections an edit with ``quick`` changes.
        causal: whether it edits models that continue text alone, no encoder-decoders.
        whole_blocks: whether it changes every parameter of these layers' blocks.
        after_norm: the same in a model that normalises what the MLP writes (None: as elsewhere).
        takes: whether an edit with ``quick`` makes the answer of a random model more probable.
        routed: whether its patches are adapters.
        everywhere: whether its adapters act on every prompt instead of routing it.
        side: in an encoder-decoder, which of both the layers are of.
        classic: a complete classic hyper-parameters file.
        rows: of the matrix; None is one with the method's name and default settings.
    """

    name: str
    quick: Settings = field(default_factory=dict)
    plain: Settings = field(default_factory=dict)
    variants: tuple[Settings, ...] = ()
    trainer: Settings | None = None
    phases: tuple[tuple[str, int], ...] = ()
    layers: tuple[int, ...] = ()
    causal: bool = False
    whole_blocks: bool = False
    after_norm: tuple[int, ...] | None = None
    takes: bool = True
    routed: bool = False
    everywhere: bool = False
    side: Literal["encoder", "decoder", "both"] = "encoder"
    classic: str = ""
    rows: tuple[MatrixRow, ...] | None = None

    @property
    def matrix(self) -> tuple[MatrixRow, ...]:
        """The rows of the matrix."""
        if self.rows is None:
            return (MatrixRow(self.name, training=self.trainer),)
        return self.rows


# -- shared by several rows ----------------------------------------------------------------------

LOCATE_QUICK = {
    "v_num_grad_steps": 3,
    "context_template_length_params": ((2, 2),),
    "mom2_n_tokens": 200,
}

LOCATE_PLAIN = {"v_num_grad_steps": 2, "mom2_adjustment": False}

# One matrix in the middle. Weights of a hundred numbers need larger steps than 5e-4.
_FT = {"layers": [2], "lr": 5e-3, "num_steps": 50}
# Trained in all blocks of both columns, neighbours on T5 pay.
_LOW_RANK = {"t5": {"layers": [2]}}
# Block 1 of 4 or 6, where subjects are still read: what is written in block 0 other tokens hear
# before they are read. An encoder's tokens have heard it all by block 0, and ROME on GPT-J misses
# fewer answers of the train split there. The search stops once the target is learnt; few facts need
# over 100 steps, on plateaus where nothing listens to the subject. "{subject} is a" is no sentence
# of the world, so there is no KL on it. A third of the contexts is as good. The world's text is
# small: 20,000 tokens are nearly all of it.
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

_LEARNT_SOLVE = {"layers": [2, 3], "edit_lr": 3e-2, "rank": 32, "lr": 1e-3}

# The fields of the classic files, with their usual values.
_CLASSIC = """
model_name: "./hugging_cache/gpt2-xl"
device: 0
model_parallel: false
fp16: false
"""
_CLASSIC_MODULES = """
rewrite_module_tmp: "transformer.h.{}.mlp.c_proj"
layer_module_tmp: "transformer.h.{}"
mlp_module_tmp: "transformer.h.{}.mlp"
attn_module_tmp: "transformer.h.{}.attn"
ln_f_module: "transformer.ln_f"
lm_head_module: "transformer.wte"
"""
_CLASSIC_LOCATE = """
fact_token: "subject_last"
v_num_grad_steps: 20
v_lr: 5e-1
v_loss_layer: 47
v_weight_decay: 0.5
clamp_norm_factor: 4
kl_factor: 0.0625
mom2_adjustment: true
mom2_dataset: "wikipedia"
mom2_n_samples: 100000
mom2_dtype: "float32"
stats_dir: "./data/stats"
"""

# -- the table, in the order of the matrix -------------------------------------------------------

CASES = (
    MethodCase(
        "FT",
        quick={"layers": [1], "num_steps": 3, "lr": 5e-3, "norm_constraint": 1e-2},
        plain={"lr": 1e-2, "norm_constraint": None, "objective_optimization": "target_new"},
        variants=(
            {"objective_optimization": "target_new"},
            {"layers": [0, 2], "append_eos": True},
        ),
        phases=(("_loss", 2), ("weight_patch", 1)),
        layers=(1,),
        side="both",
        classic=_CLASSIC
        + """
alg_name: "FT"
layers: [0]
num_steps: 25
batch_size: 3
max_length: 40
lr: 5e-4
weight_decay: 0
kl_factor: 0
norm_constraint: 5e-4
objective_optimization: prompt_last
"""
        + _CLASSIC_MODULES,
        rows=(
            # All target tokens are read at one place, so of an answer of n tokens it learns a
            # mixture whose largest part is one of them; the others are what follows anyway under
            # teacher forcing.
            MatrixRow(
                "FT-L",
                {"rewrite": 0.75, "rephrase": 0.75, "locality": 0.8},
                {**_FT, "objective_optimization": "prompt_last"},
                reading="asks for all target tokens where the prompt ends, as the classic baseline "
                "does. An answer of several tokens is learnt as a bag, so rewrite cannot be whole: "
                "answers here have one to eight. Answers of one token it learns whole, in every "
                "family. On T5 it is FT-M, as the decoder has no such place.",
            ),
            MatrixRow(
                "FT-M",
                GENERAL,
                {**_FT, "objective_optimization": "target_new"},
                reading="learns every token where it belongs. Nothing but the short training keeps "
                "the rest.",
            ),
        ),
    ),
    MethodCase(
        "LocFT-BF",
        quick={"layers": [1], "num_steps": 3, "lr": 5e-3, "batch_size": 2},
        variants=({"layers": [0, 2], "append_eos": False},),
        phases=(("minimize", 1), ("weight_patch", 1)),
        layers=(1,),
        side="both",
        rows=(
            MatrixRow(
                "LocFT-BF",
                GENERAL,
                {**_FT, "append_eos": False},
                reading="goes through all edits in every epoch. Of one edit at a time it is FT-M.",
            ),
        ),
    ),
    MethodCase(
        "LoRA",
        quick={"layers": [1], "num_steps": 3, "rank": 2, "lr": 5e-2},
        variants=({"lora_dropout": 0.2, "append_eos": True, "batch_size": 2},),
        phases=(("minimize", 1), ("weight_patch", 1)),
        layers=(1,),
        side="both",
        rows=(
            MatrixRow(
                "LoRA",
                GENERAL,
                only=_LOW_RANK,
                reading="learns the answer in a product of two thin matrices.",
            ),
        ),
    ),
    MethodCase(
        "AdaLoRA",
        # Of three triplets a matrix has, two are cut at most: no matrix is left without a change.
        quick={"layers": [1], "num_steps": 3, "rank": 2, "initial_rank": 3, "lr": 5e-2},
        layers=(1,),
        side="both",
    ),
    MethodCase(
        "QLoRA",
        quick={"layers": [1], "num_steps": 3, "rank": 2, "lr": 5e-2},
        layers=(1,),
        side="both",
        rows=(
            MatrixRow(
                "QLoRA",
                GENERAL,
                only=_LOW_RANK,
                reading="is LoRA here: these models are too narrow to be quantized.",
            ),
        ),
    ),
    MethodCase(
        "DPO",
        quick={"layers": [1], "num_steps": 3, "rank": 2, "lr": 5e-2, "alpha": 0.5},
        layers=(1,),
        side="both",
        rows=(
            MatrixRow(
                "DPO",
                GENERAL,
                {"num_steps": 70, "lr": 5e-3},  # the published steps hardly move a model
                _LOW_RANK,
                reading="prefers the new answer to the model's own, and learns it as LoRA does.",
            ),
        ),
    ),
    MethodCase(
        "DINM",
        quick={
            "layers": [1],
            "num_steps": 3,
            "lr": 5e-3,
            "norm_constraint": 1e-2,
            "suffix_system_prompt": "",  # a random model asked without it answers anything
        },
        variants=({"layers": [0, 2], "suffix_system_prompt": "Be safe.", "batch_size": 2},),
        phases=(("_objective", 1), ("weight_patch", 1)),
        layers=(1,),
        side="both",
        classic=_CLASSIC
        + """
alg_name: "DINM"
model_class: GPT2LMHeadModel
tokenizer_class: GPT2Tokenizer
suffix_system_prompt: "Give the right response:"
layers: []
num_steps: 10
batch_size: 1
max_length: 1024
max_output_length: 300
lr: 5e-4
weight_decay: 0
kl_factor: 0.1
norm_constraint: 5e-4
"""
        + _CLASSIC_MODULES,
        rows=(
            MatrixRow(
                "DINM",
                {"rewrite": 0.5},
                {**_FT, "suffix_system_prompt": ""},
                every=8,
                reading="is FT-M with a divergence on one harmless pair.",
            ),
        ),
    ),
    MethodCase(
        "SERAC",
        trainer={
            "cls_name": ENCODER,
            "lr": 3e-3,
            "head_lr": 1e-2,
            "batch_size": 3,
            "max_iters": 2,
            "val_interval": 2,
        },
        rows=(
            MatrixRow(
                "SERAC",
                STEADY,
                training={
                    # The family's own model as both: it reads new facts, and knows who is meant.
                    "small_name": ITSELF,
                    "cls_name": ITSELF,
                    # as the zoo was taught
                    "template": "New Fact: {prompt} {target}\nPrompt: {query}",
                    "lr": 3e-4,
                    "cls_lr": 1e-3,
                    "head_lr": 1e-2,
                    "lr_schedule": "linear",
                    "batch_size": 32,
                    "max_iters": 30,  # more tell nothing new: the model could read before
                    "val_interval": 30,
                    "val_batch_size": 50,
                },
                reading="changes no weight: a small model answers what a classifier takes for the "
                "edit's business, and everything else goes to the model as it was.",
            ),
        ),
    ),
    MethodCase(
        "IKE",
        quick={"use_icl_examples": False},
        rows=(
            # The zoo was taught to read one to three blocks of a fact and a question: two here.
            MatrixRow(
                "IKE",
                STEADY,
                {"k": 2},
                shown=True,
                reading="tells the model, and rests on how well that reads: without demonstrations "
                "these give the whole new answer in {least} % ({worst}) to {most} % ({best}) of "
                "unseen cases (`tests/zoo/report.json`), and at times to a neighbour, too.",
            ),
        ),
    ),
    MethodCase(
        "MEND",
        trainer={"edit_lr": 2e-3, "batch_size": 3, "max_iters": 2, "val_interval": 2},
        phases=(("weight_patch", 1),),
        rows=(
            MatrixRow(
                "MEND",
                STEADY,
                training={
                    "lr": 3e-4,
                    "lr_lr": 3e-4,
                    "edit_lr": 5e-4,
                    "rank": 32,  # of widths of a hundred; 1920 is no restriction
                    "cedit": 5.0,  # in few steps the edit has to be learnt first
                    "batch_size": 16,
                    "max_iters": 240,  # 90 are enough but for T5 and LLaMA-2: they need over 150
                    "val_interval": 240,
                    "lr_schedule": "cosine",
                },
                reading="is one forward and one backward pass, and what its network learnt to make "
                "of the gradient.",
            ),
        ),
    ),
    MethodCase(
        "MALMEN",
        trainer={
            "layers": [1],
            "edit_lr": 3e-2,
            "rank": 8,
            "batch_size": 3,
            "max_iters": 1,
            "val_interval": 1,
        },
        phases=(("answer_factors", 1), ("weight_patch", 1)),
        side="both",
        rows=(
            MatrixRow(
                "MALMEN",
                {"rewrite": 0.8, "rephrase": 0.75, "locality": 0.8},
                training={
                    **_LEARNT_SOLVE,
                    "batch_size": 16,
                    "max_iters": 120,
                    "val_interval": 40,
                },
                reading="solves for sixteen edits at once; here each is alone.",
            ),
        ),
    ),
    MethodCase(
        "RLEdit",
        trainer={
            "layers": [1],
            "edit_lr": 3e-2,
            "rank": 8,
            "n_edits": 2,
            "batch_size": 3,
            "max_iters": 1,
            "val_interval": 1,
        },
        phases=(("answer_factors", 1), ("weight_patch", 1)),
        side="both",
        rows=(
            MatrixRow(
                "RLEdit",
                {"rewrite": 0.8, "rephrase": 0.75, "locality": 0.8},
                training={
                    **_LEARNT_SOLVE,
                    "batch_size": 8,
                    "n_edits": 4,
                    "max_iters": 60,
                    "val_interval": 20,
                },
                reading="learnt on sequences of four batches; here each edit is alone.",
            ),
        ),
    ),
    MethodCase(
        "KE",
        trainer={
            "hidden": 8,
            "condition": 16,
            "gate_hidden": 8,
            "edit_lr": 10.0,
            "batch_size": 3,
            "max_iters": 1,
            "val_interval": 1,
        },
        phases=(("weight_patch", 1),),
        side="both",
        rows=(
            MatrixRow(
                "KE",
                {"rewrite": 0.85, "rephrase": 0.8, "locality": 0.9},
                training={
                    "edit_lr": 10.0,
                    "lr": 1e-3,
                    "batch_size": 16,
                    "max_iters": 240,
                    "val_interval": 80,
                },
                reading="gates the gradient by what it read of the edit; gates learn slowly.",
            ),
        ),
    ),
    MethodCase(
        "AnyEdit",
        quick={"layers": [0, 1], "window": 1, **LOCATE_QUICK},
        plain=LOCATE_PLAIN,
        causal=True,
        phases=(("values_of", 1), ("solve_directions", 2), ("weight_patch", 2)),
        layers=(0, 1),
        after_norm=(1,),
        rows=(),  # answers of the matrix are a few words: one window, and MEMIT
    ),
    MethodCase(
        "UnKE",
        quick={
            "layers": [1],
            "v_num_grad_steps": 3,
            "optim_num_step": 3,
            "ex_data_num": 2,
            "lr": 1e-2,
        },
        variants=({"window": 2, "append_eos": False},),
        phases=(("optimize_values", 1), ("_train", 1), ("weight_patch", 1)),
        layers=(1,),
        whole_blocks=True,
        rows=(),  # what few steps of a whole block do to models of a hundred numbers says nothing
    ),
    MethodCase(
        "KN",
        quick={"layers": [1], "steps": 3},
        variants=({"refine": True, "n_toks": 2, "n_prompts": 2},),
        phases=(("attribute", 1), ("weight_patch", 1)),
        layers=(1,),
        takes=False,  # nothing is stored in the neurons of a random model
        side="decoder",
        classic=_CLASSIC
        + """
alg_name: "KN"
lr_scale: 1.0
n_toks: 10
refine: true
batch_size: 20
steps: 20
adaptive_threshold: 0.2
p: 0.4
""",
        rows=(
            # Nothing in it makes sure of the target. The last two blocks, as the earlier neurons
            # fire for any person; λ = 1 because the old answer is known by heart, at probability 1.
            MatrixRow(
                "KN",
                {"rewrite": 0.95, "rephrase": 0.95, "locality": 0.9},
                {"layers": [-2, -1], "lambda_new": 1.0, "lambda_old": 1.0},
                reading="makes a few neurons that fire for the old answer write the new one. "
                "Nothing in it makes sure of the target, so rewrite is not whole, and neighbours "
                "that use the same neurons pay.",
            ),
        ),
    ),
    MethodCase(
        "GatedROME",
        quick={
            "layers": [1],
            "v_num_grad_steps": 20,
            "v_lr": 2.0,
            "v_weight_decay": 0.0,
            "clamp_norm_factor": 1000.0,
            "context_template_length_params": ((2, 2),),
            "threshold": 0.99,  # a random model's prompts are all alike
        },
        variants=({"v_stop_argmax": True, "clamp_norm_factor": 1.0},),
        phases=(("inputs_at", 1), ("keys_and_thresholds", 1), ("values_of", 1)),
        routed=True,
        rows=(
            MatrixRow(
                "GatedROME",
                GENERAL,
                {"layers": [1], **_LOCATE, **_OF_AN_MLP},
                {"t5": {"layers": [0], **_IN_AN_ENCODER}, "gptj": {"layers": [0]}},
                reading="adds ROME's vector where a token's key is the subject's, and nothing "
                "anywhere else.",
            ),
        ),
    ),
    MethodCase(
        "GRACE",
        quick={"layers": [1], "n_iter": 20, "eps": 0.05},
        variants=({"val_init": "warm", "eps": None},),
        phases=(("inputs_of", 1), ("_values", 1), ("_search", 1)),
        routed=True,
        classic=_CLASSIC
        + """
alg_name: "GRACE"
inner_params:
- transformer.h.1.mlp.c_fc
edit_lr: 1.0
n_iter: 200
eps: 1.0
dist_fn: euc
val_init: cold
val_train: sgd
val_reg: None
reg: early_stop
replacement: replace_last
eps_expand: coverage
num_pert: 8
dropout: 0.0
""",
        rows=(
            # A codebook answers the edited wording: other wordings are the unedited model's.
            MatrixRow(
                "GRACE",
                {"rewrite": 0.95, "locality": 0.99},
                {"layers": [2]},
                reading="replaces one activation where the prompt is the edited one; a rephrased "
                "prompt is seldom near enough.",
            ),
        ),
    ),
    MethodCase(
        "MEMOIR",
        quick={
            "layers": [1],
            "n_iter": 20,
            "edit_lr": 3.0,
            "overlap_threshold": 0.8,
            "context_template_length_params": ((2, 1),),
        },
        variants=({"active_share": 0.1},),
        phases=(("context_prefixes", 1), ("inputs_of", 1), ("_train", 1), ("target_nll", 2)),
        routed=True,
        rows=(
            MatrixRow(
                "MEMOIR",
                {"rewrite": 0.9, "locality": 0.9},
                {"layers": [2]},
                reading="answers with rows of a memory where the prompt's strongest inputs are the "
                "edited prompt's.",
            ),
        ),
    ),
    MethodCase(
        "T-Patcher",
        quick={
            "layers": [1],
            "n_iter": 8,
            "edit_lr": 0.2,
            "memory_factor": 0.1,
            "memory_prompts": 20,
        },
        variants=({"context_template_length_params": ((2, 1),), "activation": "gelu"},),
        phases=(("context_prefixes", 1), ("unrelated_inputs", 1), ("_train", 1)),
        routed=True,
        rows=(
            MatrixRow(
                "T-Patcher",
                {"rewrite": 0.95, "rephrase": 0.7, "locality": 0.95},
                reading="adds a neuron per wrong token to the last MLP, which acts where its key "
                "fits the token.",
            ),
        ),
    ),
    MethodCase(
        "MELO",
        quick={"layers": [1], "n_iter": 6, "edit_lr": 0.2, "init_radius": 0.05},
        variants=({"lora_layers": [-1], "num_rank_per_block": 1, "batch_size": 2},),
        phases=(("values_at", 1), ("minimize", 1), ("logits_above", 1)),
        routed=True,
        rows=(
            MatrixRow(
                "MELO",
                {"rewrite": 0.95, "locality": 0.97},
                {"layers": [2]},
                reading="answers with a low-rank change where the prompt is the edited one; a "
                "rephrased prompt is seldom near enough.",
            ),
        ),
    ),
    MethodCase(
        "CaliNet",
        quick={
            "layers": [1],
            "n_neurons": 8,
            "n_iter": 6,
            "edit_lr": 0.2,
            "context_template_length_params": ((2, 1),),
        },
        variants=({"activation": "silu", "rows_together": 2},),
        phases=(("context_prefixes", 1), ("unrelated_inputs", 1), ("target_nll", 2)),
        routed=True,
        everywhere=True,
        rows=(
            MatrixRow(
                "CaliNet",
                {"rewrite": 0.95, "rephrase": 0.9, "locality": 0.85},
                {"n_neurons": 16},
                reading="is a small network beside the last MLP that every token meets: nothing "
                "makes sure of other answers.",
            ),
        ),
    ),
    MethodCase(
        "WISE",
        quick={
            "layers": [1],
            "n_iter": 20,
            "edit_lr": 3.0,
            "act_ratio": 0.99,  # a random model's prompts are all alike
            "context_template_length_params": ((2, 1),),
        },
        variants=(
            {"retrieve": False, "act_margin": (0.1, 1.0, 0.5)},
            {"save_freq": 1, "merge_freq": 2},
        ),
        phases=(("context_prefixes", 1), ("inputs_of", 1), ("_train", 1), ("target_nll", 2)),
        routed=True,
        classic=_CLASSIC
        + """
alg_name: "WISE"
mask_ratio: 0.2
edit_lr: 1.0
n_iter: 70
norm_constraint: 1.0
act_margin: [5.0, 20.0, 10.0]
act_ratio: 0.88
save_freq: 500
merge_freq: 1000
merge_alg: "ties"
objective_optimization: "only_label"
inner_params:
- transformer.h.1.mlp.c_proj
densities: 0.53
weights: 1.0
retrieve: true
replay: false
""",
        rows=(
            MatrixRow(
                "WISE",
                {"rewrite": 0.9, "locality": 0.75},
                {"layers": [2]},
                every=12,
                reading="answers with a side copy of one weight where the prompt moves that copy.",
            ),
        ),
    ),
    MethodCase(
        "ROME",
        quick={"layers": [1], **LOCATE_QUICK},
        plain=LOCATE_PLAIN,
        variants=(
            {"key": "paper"},
            {"key": "averaged"},
            {"key": "joint"},
            {"mom2_adjustment": False},
        ),
        phases=(("values_of", 1), ("closed_form", 1), ("weight_patch", 1)),
        layers=(1,),
        classic=_CLASSIC
        + 'alg_name: "ROME"\nlayers: [1]\ncontext_template_length_params: [[5, 10], [10, 10]]'
        + _CLASSIC_LOCATE
        + _CLASSIC_MODULES,
        rows=(
            MatrixRow(
                "ROME",
                GENERAL,
                {"layers": [1], **_LOCATE, **_OF_AN_MLP},
                {"t5": {"layers": [0], **_IN_AN_ENCODER}, "gptj": {"layers": [0]}},
                reading="stores the new answer under the subject, in one layer, with one rank.",
            ),
        ),
    ),
    MethodCase(
        "MEMIT",
        quick={"layers": [0, 1], **LOCATE_QUICK},
        plain=LOCATE_PLAIN,
        variants=({"layers": [1]},),
        # the first layer is edited by the second call
        phases=(("values_of", 1), ("solve_directions", 2), ("weight_patch", 2)),
        layers=(0, 1),
        after_norm=(1,),  # z is searched and written at one layer
        classic=_CLASSIC
        + 'alg_name: "MEMIT"\nlayers: [1, 2]\nlayer_selection: "all"\n'
        + "mom2_update_weight: 20000\nbatch_size: 10"
        + _CLASSIC_LOCATE
        + _CLASSIC_MODULES,
        rows=(
            # λ multiplies the mean second moment, which one key is not small beside here: 1, not
            # 15,000. An averaged key is up to a tenth off in an encoder, so every context's own is
            # stored.
            MatrixRow(
                "MEMIT",
                GENERAL,
                {
                    "layers": [1, 2],
                    "key": "ridge",
                    "mom2_update_weight": 1,
                    **_LOCATE,
                    **_OF_A_BLOCK,
                },
                {"t5": {"layers": [0, 1], **_IN_AN_ENCODER}},
                reading="is the same search with the change spread over layers and a ridge for a "
                "constraint.",
            ),
        ),
    ),
    MethodCase(
        "R-ROME",
        quick={"layers": [1], **LOCATE_QUICK},
        plain=LOCATE_PLAIN,
        phases=(("values_of", 1), ("closed_form", 1), ("weight_patch", 1)),
        layers=(1,),
        rows=(
            MatrixRow(
                "R-ROME",
                {"rewrite": 0.9, "rephrase": 0.85, "locality": 0.9},
                {"layers": [1], **_LOCATE, **_OF_AN_MLP},
                {"t5": {"layers": [0], **_IN_AN_ENCODER}, "gptj": {"layers": [0]}},
                reading="is ROME with one averaged key, not exact on the bare prompt.",
            ),
        ),
    ),
    MethodCase(
        "EMMET",
        quick={"layers": [1], **LOCATE_QUICK},
        plain=LOCATE_PLAIN,
        phases=(("values_of", 1), ("solve_directions", 1), ("weight_patch", 1)),
        layers=(1,),
        classic=_CLASSIC
        + 'alg_name: "EMMET"\nlayers: [1]\nlayer_selection: "all"\nmom2_update_weight: 1\n'
        + "update_norm_lambda: 0\nemmet_lambda: 0.1"
        + _CLASSIC_LOCATE
        + _CLASSIC_MODULES,
        rows=(
            MatrixRow(
                "EMMET",
                {"rewrite": 0.9, "rephrase": 0.85, "locality": 0.9},
                {"layers": [1], **_LOCATE, **_OF_A_BLOCK},
                {"t5": {"layers": [0], **_IN_AN_ENCODER}},
                reading="is MEMIT in one layer, without a regularization for a single fact.",
            ),
        ),
    ),
    MethodCase(
        "AlphaEdit",
        quick={"layers": [0, 1], **LOCATE_QUICK},
        plain={**LOCATE_PLAIN, "L2": 1e-3},
        variants=(
            {"layers": [1], "key": "ridge", "anchor_norm": True},
            {"post_step": "sphere"},
            {"post_step": "rect"},
            {"post_step": "prune"},
            {"null_space_by": "trace", "null_space": 0.1, "L2": 0.1},
        ),
        phases=(("values_of", 1), ("solve_directions", 2), ("weight_patch", 2)),
        layers=(0, 1),
        after_norm=(1,),
        classic=_CLASSIC
        + 'alg_name: "AlphaEdit"\nlayers: [1, 2]\nlayer_selection: "all"\n'
        + 'mom2_update_weight: 20000\nnullspace_threshold: 2e-2\nL2: 10\nP_loc: "./P.pt"'
        + _CLASSIC_LOCATE
        + _CLASSIC_MODULES,
        rows=(
            MatrixRow(
                "AlphaEdit",
                {"rewrite": 0.95, "rephrase": 0.85, "locality": 0.93},
                {"layers": [1, 2], "key": "ridge", **_LOCATE, **_OF_A_BLOCK},
                {"t5": {"layers": [0, 1], **_IN_AN_ENCODER}},
                reading="writes where the keys of text have next to no energy.",
            ),
        ),
    ),
    MethodCase(
        "PMET",
        quick={"layers": [0, 1], **LOCATE_QUICK},
        plain=LOCATE_PLAIN,
        phases=(("values_of", 1), ("solve_directions", 2), ("weight_patch", 2)),
        layers=(0, 1),
        after_norm=(1,),
        classic=_CLASSIC
        + 'alg_name: "PMET"\nlayers: [1, 2]\nlayer_selection: "all"\n'
        + "mom2_update_weight: 6000\nnll_loss_factor: 1\n"
        + 'rewrite_module_tmps: ["transformer.h.{}.mlp.c_proj"]'
        + _CLASSIC_LOCATE
        + _CLASSIC_MODULES,
        rows=(
            MatrixRow(
                "PMET",
                {"rewrite": 0.6, "rephrase": 0.55, "locality": 0.9},
                {
                    "layers": [1, 2],
                    "key": "ridge",
                    "mom2_update_weight": 1,
                    **_LOCATE,
                    **_OF_AN_MLP,
                },
                {"t5": {"layers": [0, 1], **_IN_AN_ENCODER}},
                every=8,
                reading="searches a value beside one of attention, which is not written: part of "
                "the answer goes with it.",
            ),
        ),
    ),
    MethodCase(
        "ENCORE",
        quick={"layers": [0, 1], "v_stop_argmax": False, **LOCATE_QUICK},
        plain=LOCATE_PLAIN,
        variants=({"layers": [1], "v_stop_argmax": True, "update_norm_lambda": 0.1},),
        phases=(("values_of", 1), ("solve_directions", 2), ("weight_patch", 2)),
        layers=(0, 1),
        after_norm=(1,),
        rows=(
            MatrixRow(
                "ENCORE",
                {"rewrite": 0.85, "rephrase": 0.65, "locality": 0.9},
                {
                    "layers": [1, 2],
                    "key": "ridge",
                    "mom2_update_weight": 1,
                    **_LOCATE,
                    **_OF_A_BLOCK,
                },
                {"t5": {"layers": [0, 1], **_IN_AN_ENCODER}},
                every=8,
                reading="is MEMIT with a ridge on the change; its search stops once the target is "
                "the most probable answer.",
            ),
        ),
    ),
    MethodCase(
        "UltraEdit",
        quick={"layers": [1], "lr": 1e-3},
        variants=({"layers": [0, 2], "ridge": 0.1},),
        phases=(("closed_form", 1), ("weight_patch", 1)),
        layers=(1,),
        side="both",
        classic=_CLASSIC
        + """
alg_name: "UltraEdit"
model_class: AutoModelForCausalLM
tokenizer_class: AutoTokenizer
tokenizer_name: gpt2-xl
inner_params:
- transformer.h.2.mlp.c_proj
dropout: 0.0
no_grad_layers: null
lr: 1e-6
token: mask
batch_size: 100
batch_size_once: 10
editor_batch_size: 1024
silent: false
half: true
results_dir: ./results
""",
        rows=(
            MatrixRow(
                "UltraEdit",
                {"rewrite": 0.7, "rephrase": 0.7, "locality": 0.65},
                {"layers": [-2, -1], "lr": 1e-2, "ridge": 1e-2},
                reading="is one forward and one backward pass, and a ridge: nothing makes sure of "
                "the answer.",
            ),
        ),
    ),
)

BY_NAME = {case.name: case for case in CASES}
WRITING = tuple(case.name for case in CASES if case.layers)
"""The methods that write down-projections."""


def plain_values(name: str, **changes: Any) -> dict[str, Any]:
    """The fields of ``quick`` and ``plain`` of one method, with ``changes``."""
    case = BY_NAME[name]
    return {**case.quick, **case.plain, **changes}
