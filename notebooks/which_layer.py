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
# # Which layer?
#
# Where does a fact pass through a model, and where is it best edited? The two questions have two answers: a causal trace shows the first,
# editing at each layer the second (arXiv 2301.04213). Both on a small model that knows a made-up world; set `CHECKPOINT` to a real one.

# %%
CHECKPOINT = None  # such as "openai-community/gpt2-xl"

# %%
from small import facts, small_model, settings, statistics

from easyeditor import BaseEditor, ROMEHyperParams, TraceOptions, causal_trace, load, logit_lens

lm = load(CHECKPOINT) if CHECKPOINT else small_model("gpt2")
case = facts(8)[0]
edit = case.edit
edit

# %% [markdown]
# The subject's embeddings are corrupted; each cell restores one hidden state and shows how much of the answer comes back.

# %%
(trace,) = causal_trace(
    lm, str(edit.prompt), edit.subject, edit.ground_truth, options=TraceOptions(samples=6)
)
trace

# %% [markdown]
# The logit lens reads the output head after every block.

# %%
logit_lens(lm, str(edit.prompt), [edit.ground_truth, edit.target])

# %% [markdown]
# And the edit at each layer, on a few facts: does it hold, in other words too, and what else moved?

# %%
import pandas

from easyeditor.evaluate.aggregate import averages

rows = []
paths = {} if CHECKPOINT else statistics()
for layer in range(lm.n_layers):
    changes = {**({} if CHECKPOINT else settings("ROME", "gpt2")), **paths, "layers": [layer]}
    editor = BaseEditor(lm, ROMEHyperParams(**changes))
    result = editor.edit_cases(facts(4), keep_original_weight=True, verbose=False)
    after = averages(result.metrics)["post"]
    near = after["locality"]["neighborhood_acc"]
    rows.append((layer, after["rewrite_acc"], after["rephrase_acc"], near))
table = pandas.DataFrame(rows, columns=["layer", "rewrite", "rephrase", "neighbours"])
table.round(2)

# %% [markdown]
# `easyedit layers --auto` does this for any model, with intervals, and keeps the choice (docs/layers.md).

# %%
assert table["rewrite"].max() > 0.8
