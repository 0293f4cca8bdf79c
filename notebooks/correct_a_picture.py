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
# # Correct what a vision–language model says about a picture
#
# A model that sees calls a flag by its country. Here the flag of Germany becomes that of Norway, and what else changes is measured: other
# words, another picture of the flag, *other* flags under the same question, text without a picture. Then the edit is undone to the bit.
#
# On `flags-135m`, which comes with the package: SmolLM2-135M behind a small vision tower that was trained to see 40 drawn flags. It is a
# glued test model, and one edit is an illustration: the table of all methods over ten flags is in `docs/matrix.md`. Set `CHECKPOINT` to
# the name or folder of a real model, and the pictures and questions to yours.

# %%
CHECKPOINT = None  # such as "llava-hf/llava-1.5-7b-hf"

# %%
from PIL import Image

from easyeditor import FTHyperParams, IKEHyperParams, MultimodalEditor, Prompt, load
from easyeditor.data.flag_cases import picture
from easyeditor.lm.inference import generate

MODEL = CHECKPOINT or "flags-135m"
lm = load(MODEL)
question = "This is the flag of"
flag, other_picture = picture("Germany", 300_001), picture("Germany", 300_002)
others = {name: picture(name, 300_001) for name in ("France", "Japan", "Italy", "Sweden", "Greece")}


def side_by_side(*images):
    """The pictures in one row, at half their size."""
    width = images[0].picture.width + 8
    strip = Image.new("RGB", (width * len(images), images[0].picture.height), "white")
    for k, image in enumerate(images):
        strip.paste(image.picture, (k * width, 0))
    return strip.resize((strip.width // 2, strip.height // 2))


side_by_side(flag, other_picture, *others.values())

# %% [markdown]
# A prompt is a text with images: the same question about each of them. The first picture is the one that is edited, the second is another
# one of the same flag.

# %%
images = {"Germany": flag, "Germany, another picture": other_picture, **others}


def answers():
    replies = generate(lm, [Prompt(question, (image,)) for image in images.values()], 2)
    return {name: reply.strip() for name, reply in zip(images, replies, strict=True)}


before = answers()
before

# %% [markdown]
# ## The edit, and what else it changes
#
# What must not change is asked, too: the other flags under the edit's own question, the question without a picture, and a fact in text.
# FT trains one projection of the text column. All numbers are shares of answer tokens.

# %%
locality = {
    name: {"image": image, "prompt": question, "ground_truth": name}
    for name, image in others.items()
}
locality["no_image"] = {"prompt": question, "ground_truth": "Germany"}
locality["text"] = {"prompt": "The capital of Italy is", "ground_truth": "Rome"}
request = {
    "prompts": question,
    "targets": "Norway",
    "image": flag,
    "rephrase_prompts": "What you see is the flag of",
    "rephrase_image": other_picture,
    "locality_inputs": locality,
    "verbose": False,
}
settings = {"layers": [27], "num_steps": 50, "lr": 1e-3}
fine_tuning = MultimodalEditor(lm, FTHyperParams.for_model(MODEL, **settings))
plain = fine_tuning.edit(**request)


def scores(result):
    post = result.metrics[0]["post"]
    flags = [post["locality"][f"{name}_acc"] for name in others]
    return {
        "the edit": post["rewrite_acc"],
        "other words": post["rephrase_acc"],
        "other picture": post["image_rephrase_acc"],
        "other flags stay": sum(flags) / len(flags),
        "no picture stays": post["locality"]["no_image_acc"],
        "text stays": post["locality"]["text_acc"],
    }


scores(plain)

# %% [markdown]
# The edit is made, in other words and on another picture, too. And it is the *question* that was learnt: asked about another flag, the model
# says Norway as well. Random questions (a text, no picture) do not show that; always ask about other pictures.

# %% [markdown]
# ## Pictures that are kept
#
# `keep_images` names pictures of *other* things. The answers about them are held while the edit is made; they are other flags than those
# that are measured.

# %%
names = ("Spain", "Poland", "Cuba", "China", "Brazil", "Austria", "Egypt", "Turkey")
kept = fine_tuning.edit(**request, keep_images=[picture(name, 300_001) for name in names])

# %% [markdown]
# ## Nothing is trained
#
# IKE changes no weight: it tells the model the fact, with its picture, in front of the prompt. `image_reach` says how near the picture that
# is asked about must be to the edit's, as the model's own vision tower sees them.

# %%
told = MultimodalEditor(
    lm, IKEHyperParams.for_model(MODEL, use_icl_examples=False, image_reach=0.8)
).edit(**request)

# %%
import pandas as pd

rows = {
    "FT": scores(plain),
    "FT, eight flags kept": scores(kept),
    "IKE, near the picture": scores(told),
}
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# Kept pictures hold most flags that were not among them, and not all. IKE keeps all five here; its context is read again at every question
# that is near. Over ten flags and all methods the table in `docs/matrix.md` says how often; it also says that the new country's capital
# seldom follows, whatever the method.

# %% [markdown]
# ## Used and undone
#
# A patch is a file; pictures are in it as digests and names. (IKE's has the picture itself, which it shows.) The model was not changed by
# the edits above, as each was measured and taken off. Applied, and undone to the bit:

# %%
(path,) = kept.patch.entries
weight = lm.model.get_parameter(path)
bits = weight.detach().clone()
kept.patch.apply(lm.model)
assert not weight.equal(bits)
edited = answers()
kept.patch.revert(lm.model)
assert weight.equal(bits)
assert answers() == before
pd.DataFrame({"before": before, "edited": edited})
