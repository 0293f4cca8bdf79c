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
# How many facts does a model hold that are written in one batch? Then a sequence of edits, and the undoing of one of them. On a small model that
# knows a made-up world, which holds few: its layers are a hundred numbers wide. SmolLM2-135M holds a hundred
# (docs/counterfact.md). `CHECKPOINT` switches to a real model, `open_dataset(file)` to facts of yours.

# %%
CHECKPOINT = None  # such as "meta-llama/Meta-Llama-3-8B-Instruct"

# %%
import pandas
from small import facts, settings, small_model, statistics

from easyeditor import BaseEditor, MEMITHyperParams, load

lm = load(CHECKPOINT) if CHECKPOINT else small_model("llama")
changes = {} if CHECKPOINT else {**settings("MEMIT", "llama"), **statistics()}
hparams = MEMITHyperParams(**changes)
editor = BaseEditor(lm, hparams)
rows = []
for n in (2, 5, 10):
    result = editor.edit_dataset(facts(n), batch=True, evaluate_when="end", verbose=False)
    frame = result.to_frame()
    scores = ["post/rewrite_acc", "post/rephrase_acc", "post/locality/neighborhood_acc"]
    rows.append({"edits in the batch": n, **frame[scores].mean().round(2)})
    editor.undo(result.patch)
pandas.DataFrame(rows)

# %% [markdown]
# In sequence: `post` is measured right after each edit, `final` at the end, with all later edits on top.

# %%
cases = facts(4)
sequence = editor.edit_dataset(cases, evaluate_when="both", verbose=False)
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
assert rows[0]["post/rewrite_acc"] > 0.8
