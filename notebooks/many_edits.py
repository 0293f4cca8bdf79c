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
# # Many edits
#
# Forty facts in one batch, then one after the other, and the undoing of one of them. A small model that knows a made-up world; set `CHECKPOINT` to
# a real one and `cases` to a file of yours (`open_dataset`).

# %%
CHECKPOINT = None  # such as "meta-llama/Meta-Llama-3-8B-Instruct"

# %%
from small import facts, settings, small_model, statistics

from easyeditor import BaseEditor, MEMITHyperParams, load

lm = load(CHECKPOINT) if CHECKPOINT else small_model("llama")
changes = {} if CHECKPOINT else {**settings("MEMIT", "llama"), **statistics()}
hparams = MEMITHyperParams(**changes)
cases = facts(40)
len(cases)

# %%
editor = BaseEditor(lm, hparams)
batch = editor.edit_dataset(cases, batch=True, evaluate_when="end", verbose=False)
batch

# %% [markdown]
# The same in sequence: `post` is measured right after each edit, `final` at the end, with all later edits on top.

# %%
editor.undo(batch.patch)
sequence = editor.edit_dataset(cases[:12], evaluate_when="both", verbose=False)
frame = sequence.to_frame()
frame[["post/rewrite_acc", "final/rewrite_acc", "final/locality/neighborhood_acc"]].mean().round(3)

# %% [markdown]
# Undoing needs no order, and it is exact.

# %%
editor.undo(sequence.patch)
first = editor.edit_dataset(cases[:1], verbose=False)
second = editor.edit_dataset(cases[1:2], verbose=False)
editor.undo(first.patch)
[patch.info.edits[0].target for patch in editor.applied]

# %%
editor.undo(second.patch)
assert batch.to_frame()["post/rewrite_acc"].mean() > 0.8
