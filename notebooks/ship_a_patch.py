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
# # Ship a patch
#
# An edit is a file of some kilobytes: saved, checked when it is read, applied to the same model elsewhere, exported for other programs,
# and undone. On a small model; set `CHECKPOINT` to a real one.

# %%
CHECKPOINT = None  # such as "Qwen/Qwen2.5-7B-Instruct"

# %%
import tempfile
from pathlib import Path

from small import facts, settings, small_model, statistics

from easyeditor import BaseEditor, ROMEHyperParams, load, load_patch, save_patch
from easyeditor.lm.inference import generate

lm = load(CHECKPOINT) if CHECKPOINT else small_model("llama")
changes = {} if CHECKPOINT else {**settings("ROME", "llama"), **statistics()}
editor = BaseEditor(lm, ROMEHyperParams(**changes))
case = facts(8)[3]
result = editor.edit_cases([case], verbose=False)
folder = Path(tempfile.mkdtemp(prefix="easyedit-notebook-"))
file = save_patch(result.patch, folder / "correction.safetensors")
f"{file.name}: {file.stat().st_size / 1024:.0f} KB"

# %% [markdown]
# Whoever has the model applies the file. It carries a digest and a fingerprint of the model, so a damaged file and another model are refused.

# %%
prompt = str(case.edit.prompt)
edited = generate(lm, [prompt], 4)[0]
editor.undo(result.patch)
patch = load_patch(file)
patch.apply(lm.model)
assert generate(lm, [prompt], 4)[0] == edited
patch

# %% [markdown]
# As a LoRA adapter, which peft, vLLM and SGLang load:

# %%
from easyeditor.export.lora import export_lora

export = export_lora(patch, folder / "adapter", base="owner/model")
sorted(path.name for path in export.folder.iterdir()), export.rank, export.errors

# %%
patch.revert(lm.model)
{"edited": edited, "undone": generate(lm, [prompt], 4)[0], "wanted": case.edit.target}
