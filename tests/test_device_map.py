"""A model that accelerate has spread over devices is edited, resumed and undone like any other."""

import pytest
import torch

import tiny
from easyeditor.associative.value_optimization import ValueOptions, optimize_values
from easyeditor.edits import Edit
from easyeditor.lm import LM
from easyeditor.lm.forward.partial import EditRow, PartialForward, Site, open_forward
from easyeditor.methods import METHODS
from easyeditor.patches.copies import edited_copy
from support import logprobs

EDIT = Edit("The Eiffel Tower is located in the city of", "Rome", subject="The Eiffel Tower")


def spread(name):
    """The tiny model with accelerate's hooks on every block, as ``device_map="auto"`` leaves it."""
    from accelerate import dispatch_model

    model = tiny.model(name)
    blocks = LM(model, tiny.tokenizer()).family.decoder.blocks
    trunk = blocks.rpartition(".")[0]
    places = {f"{blocks}.{i}": "cpu" for i in range(3)}
    for path, module in (*model.named_children(), *model.get_submodule(trunk).named_children()):
        full = path if module is getattr(model, path, None) else f"{trunk}.{path}"
        if full not in {trunk, blocks} and not blocks.startswith(f"{full}."):
            places[full] = "cpu"
    return dispatch_model(model, places, main_device="cpu", force_hooks=True)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_spread_models_resume_exactly(name):
    lm = LM(spread(name), tiny.tokenizer())
    assert any(hasattr(module, "_hf_hook") for module in lm.model.modules())
    site = Site(1, "block")
    row = lm.text.row(EDIT.prompt, EDIT.target, subject=EDIT.subject)
    edit_row = EditRow(row.ids[:-1], row.subject_last, (row.prompt_length - 1,))
    assert isinstance(open_forward(lm, site, [edit_row]), PartialForward)
    search = ValueOptions(4, 0.5, 0.5, 4.0, 0.0625)
    fast = optimize_values(lm, site, [EDIT], [""], search)
    slow = optimize_values(lm, site, [EDIT], [""], search, resume=False)
    assert fast.losses[0] == pytest.approx(slow.losses[0], rel=1e-4)


@pytest.mark.parametrize("method", ["ROME", "MEMIT", "FT"])
def test_spread_models_are_edited_and_undone(method):
    lm = LM(spread("llama"), tiny.tokenizer())
    kind = METHODS.get(method)
    more = {} if method == "FT" else {"mom2_adjustment": False, "v_num_grad_steps": 3}
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    patch = kind(kind.hyperparams_class(layers=[1], **more)).edit(lm, [EDIT]).patch
    patch.apply(lm.model)
    assert any(not torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    patch.revert(lm.model)
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    copy = edited_copy(lm.model, patch)
    asked = [(EDIT.prompt, EDIT.target)]
    assert logprobs(LM(copy, tiny.tokenizer()), asked) != logprobs(lm, asked)
