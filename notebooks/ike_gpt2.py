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
# # IKE on GPT-2
#
# IKE tells the model the new fact in its context, with demonstrations (arXiv 2305.12740); no weight changes. Without a hub this runs on a small model of the real class that knows a made-up world, and its numbers are about that model
# alone; `CHECKPOINT` switches to the real one, whose published settings are a preset.

# %%
CHECKPOINT = None  # "openai-community/gpt2-xl"

# %%
from small import facts, settings, small_model

from easyeditor import BaseEditor, IKEHyperParams

if CHECKPOINT:
    editor = BaseEditor.from_hparams(IKEHyperParams.for_model(CHECKPOINT))
else:
    hparams = IKEHyperParams(**settings("IKE", "gpt2"))
    editor = BaseEditor(small_model("gpt2"), hparams)
cases = facts(20)
cases[0].edit

# %% [markdown]
# Each alone, with rewordings, neighbours and consequences asked before and after:

# %%
result = editor.edit_dataset(
    cases,
    keep_original_weight=True,
    train_ds=facts(60, "train"),
    verbose=False,
)
result

# %%
frame = result.to_frame()
scores = frame[[c for c in frame if c.startswith("post/") and c.endswith("_acc")]].mean()
scores.round(3)

# %%
assert scores["post/rewrite_acc"] > 0.8
