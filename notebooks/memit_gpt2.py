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
# # MEMIT on GPT-2
#
# MEMIT spreads many facts over several layers at once (arXiv 2210.07229). Without a hub this runs on a small model of the real class that knows a made-up world, and its numbers are about that model
# alone; `CHECKPOINT` switches to the real one, whose published settings are a preset.

# %%
CHECKPOINT = None  # "openai-community/gpt2-xl"

# %%
from small import facts, settings, small_model, statistics

from easyeditor import BaseEditor, MEMITHyperParams

if CHECKPOINT:
    editor = BaseEditor.from_hparams(MEMITHyperParams.for_model(CHECKPOINT))
else:
    hparams = MEMITHyperParams(**settings("MEMIT", "gpt2"), **statistics())
    editor = BaseEditor(small_model("gpt2"), hparams)
cases = facts(20 if CHECKPOINT else 5)  # a small model holds few at once: many_edits
cases[0].edit

# %% [markdown]
# All at once, with rewordings, neighbours and consequences asked before and after:

# %%
result = editor.edit_dataset(
    cases,
    batch=True,
    evaluate_when="end",
    verbose=False,
)
result

# %%
frame = result.to_frame()
scores = frame[[c for c in frame if c.startswith("post/") and c.endswith("_acc")]].mean()
scores.round(3)

# %%
assert scores["post/rewrite_acc"] > 0.8
