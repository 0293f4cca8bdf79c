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
# # ROME on LLaMA
#
# ROME writes one fact into one matrix (arXiv 2202.05262). Without a hub this runs on a small model of the real class that knows a made-up world, and its numbers are about that model
# alone; `CHECKPOINT` switches to the real one, whose published settings are a preset.

# %%
CHECKPOINT = None  # "meta-llama/Llama-2-7b-hf"

# %%
from small import facts, settings, small_model, statistics

from easyeditor import BaseEditor, ROMEHyperParams

if CHECKPOINT:
    editor = BaseEditor.from_hparams(ROMEHyperParams.for_model(CHECKPOINT))
else:
    hparams = ROMEHyperParams(**settings("ROME", "llama"), **statistics())
    editor = BaseEditor(small_model("llama"), hparams)
cases = facts(20)
cases[0].edit

# %% [markdown]
# Each alone, with rewordings, neighbours and consequences asked before and after:

# %%
result = editor.edit_dataset(
    cases,
    keep_original_weight=True,
    verbose=False,
)
result

# %%
frame = result.to_frame()
scores = frame[[c for c in frame if c.startswith("post/") and c.endswith("_acc")]].mean()
scores.round(3)

# %%
assert scores["post/rewrite_acc"] > 0.8
