# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train MEND
#
# Some methods are trained once per model and edit fast afterwards. MEND learns to turn a fine-tuning gradient into an edit
# (arXiv 2110.11309). Here a short training beside a small model that knows a made-up world, with the settings of the test suite but
# fewer steps; for a real checkpoint set `MODEL` and give `ZsreDataset` files (docs/methods.md).

# %%
MODEL = None  # such as "openai-community/gpt2-xl"
STEPS = 300

# %%
import tempfile

from small import ROOT, facts, small_model

from easyeditor import BaseEditor, EditTrainer, MENDHyperParams, MENDTrainingHparams

family = "gpt2"
lm = small_model(family)
config = MENDTrainingHparams(
    model_name=MODEL or str(ROOT / "tests" / "zoo" / family),
    results_dir=tempfile.mkdtemp(prefix="easyedit-notebook-"),
    lr=3e-4,
    lr_lr=3e-4,
    edit_lr=5e-4,
    rank=32,
    batch_size=8,
    max_iters=STEPS,
    val_interval=STEPS,
)
train = facts(120, "train")
archive = EditTrainer(config, train[20:], train[:20], lm=lm).run().path

# %% [markdown]
# The archive holds small networks; an edit is one backward pass and one pass through them.

# %%
editor = BaseEditor(lm, MENDHyperParams(archive=str(archive)))
result = editor.edit_cases(facts(20), keep_original_weight=True, verbose=False)
scores = result.to_frame()[["pre/rewrite_acc", "post/rewrite_acc", "time"]].mean()
scores.round(3)

# %%
assert scores["post/rewrite_acc"] > scores["pre/rewrite_acc"]
