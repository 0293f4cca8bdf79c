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
# # A first edit
#
# One fact is changed in a real model of 135 million weights, measured, and undone to the bit. The embedded model needs no hub; `MODEL` may be
# any other that `easyeditor.load` takes.

# %%
MODEL = "smollm2-135m"

# %%
from easyeditor import BaseEditor, ROMEHyperParams

editor = BaseEditor.from_hparams(ROMEHyperParams.for_model(MODEL))
result = editor.edit(
    prompts="The Eiffel Tower is located in the city of",
    subject="The Eiffel Tower",
    target_new="Rome",
    ground_truth="Paris",
    rephrase_prompts=["The Eiffel Tower stands in"],
    locality_inputs={
        "neighbour": {
            "prompt": ["The Louvre is located in the city of"],
            "ground_truth": ["Paris"],
        }
    },
)
result

# %% [markdown]
# `result` unpacks as `metrics, edited_model, patch`. `metrics` has a dict of scores per edit; as a data frame:

# %%
result.to_frame()[["prompt", "target_new", "pre/rewrite_acc", "post/rewrite_acc"]]

# %% [markdown]
# The patch is what was changed: one matrix, by a product of two vectors.

# %%
result.patch

# %% [markdown]
# Undoing puts back the very bits, whatever was edited later.

# %%
from easyeditor.lm.inference import generate

prompt = "The Eiffel Tower is located in the city of"
after = generate(editor.lm, [prompt], 8)[0]
editor.undo(result.patch)
undone = generate(editor.lm, [prompt], 8)[0]
assert undone != after
{"with the edit": after, "undone": undone}
