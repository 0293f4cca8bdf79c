"""The routing contract of every method that puts adapters on a module.

One decision per row, from its prompt alone, kept through cached decoding; nothing depends on the
batch or on the side of the padding; rows that are not routed keep the unedited model's bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cases import BY_NAME
from easyeditor import LM, Edit, load_patch, save_patch
from easyeditor.edits import Score
from easyeditor.errors import PatchError
from easyeditor.export.lora import export_lora
from easyeditor.lm.forward.context import has_adapters
from easyeditor.lm.inference import generate, score
from easyeditor.lm.tokens import Row
from easyeditor.methods import METHODS
from easyeditor.patches.batched import applied_per_row, can_apply_per_row
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import Patch, merge
from easyeditor.patches.stack import applied
from quick import Maker
from support import EDITS, Snapshot, lm
from test_adapters import said
from tiers import tiered

ROUTED = [name for name, case in BY_NAME.items() if case.routed]
GATED = [name for name in ROUTED if not BY_NAME[name].everywhere]
NAMED = [n for n in ROUTED if "inner_params" in METHODS.get(n).hyperparams_class.model_fields]
WINDOWED = {"gemma2", "mistral"}  # a subject may lie outside of what the last token sees
FAMILIES = ["llama", "gpt2", "opt", "gemma2", "mistral", "gptj"]
FAST = {"llama", "gpt2", "opt"}
FAR = ["You", "She plays the piano and", "The river", "Because it rained, I"]
PROMPTS = [edit.prompt.text for edit in EDITS] + FAR


class Edited:
    """A model, and patches of three edits made one after the other, each on the ones before."""

    def __init__(self, name: str, family: str, make_method: Maker) -> None:
        self.lm = lm(family)
        self.lm.model.eval()
        self.before = Snapshot(self.lm.model)
        self.method = make_method(name, self.lm, family)
        self.patches: list[Patch] = []
        state = self.method.initial_state(self.lm)
        for edit in EDITS:
            outcome = self.method.edit(self.lm, [edit], state)
            state = outcome.state or state
            outcome.patch.apply(self.lm.model)
            self.patches.append(outcome.patch)
        self.take_off()

    def take_off(self) -> None:
        """The unedited model again."""
        for patch in self.patches:
            patch.revert(self.lm.model)
        assert self.before.differences(self.lm.model) == []


@pytest.fixture(scope="module")
def edited_of(make_method: Maker) -> Any:
    stored: dict[tuple[str, str], Edited] = {}

    def get(name: str, family: str) -> Edited:
        if (name, family) not in stored:
            stored[name, family] = Edited(name, family, make_method)
        return stored[name, family]

    return get


def last_logits(target: LM, prompts: Sequence[str]) -> torch.Tensor:
    rows = [Row((*target.text.row(prompt).ids, 1), (1,)) for prompt in prompts]
    with target.at_rest(), torch.no_grad():
        return target.target_logits(rows)


@pytest.mark.parametrize("family", tiered(FAMILIES, FAST))
@pytest.mark.parametrize("name", ROUTED)
def test_a_row_gets_the_same_whatever_surrounds_it(name: str, family: str, edited_of: Any) -> None:
    edited = edited_of(name, family)
    target = edited.lm
    plain = last_logits(target, PROMPTS)
    with applied(target.model, merge(edited.patches)):
        together = said(target, PROMPTS)
        assert together == said(target, PROMPTS, use_cache=False)
        assert together == [said(target, [prompt])[0] for prompt in PROMPTS]
        assert together == [said(target, [prompt], use_cache=False)[0] for prompt in PROMPTS]
        changed = (last_logits(target, PROMPTS) != plain).any(1)[:3]
        assert changed.any() if family in WINDOWED else changed.all()
        # Teacher forcing of what was written gives it again: padded on the right, in one pass.
        answers = [
            Score(prompt, target.tokenizer.decode(tokens))
            for prompt, tokens in zip(PROMPTS, together, strict=True)
        ]
        for query, tokens, scores in zip(answers, together, score(target, answers), strict=True):
            if target.text.row(query.prompt, query.answer).target == tokens:
                assert scores.argmax == tokens
        # An answer does not move the decision about its prompt.
        first = [s.argmax[0] for s in score(target, [Score(p, " piano river") for p in PROMPTS])]
        assert first == [tokens[0] for tokens in together]


@pytest.mark.parametrize("family", sorted(FAST))
@pytest.mark.parametrize("name", GATED)
def test_a_prompt_that_is_not_routed_keeps_the_unedited_models_bits(
    name: str, family: str, edited_of: Any
) -> None:
    edited = edited_of(name, family)
    target = edited.lm
    plain = last_logits(target, PROMPTS)
    with applied(target.model, merge(edited.patches)):
        changed = (last_logits(target, PROMPTS) != plain).any(1)
    assert changed[: len(EDITS)].all()  # the edits' prompts are
    assert not changed[-len(FAR) :].all()
    assert not has_adapters(target.model)


@pytest.mark.parametrize("name", ROUTED)
def test_undone_in_any_order_each_stack_is_one_loaded_anew(
    name: str, edited_of: Any, tmp_path: Path
) -> None:
    edited = edited_of(name, "llama")
    target, other = edited.lm, lm("llama")
    other.model.eval()
    for patch in edited.patches:
        patch.apply(target.model)
    for gone in (1, 0):
        edited.patches[gone].revert(target.model)
        rest = [p for i, p in enumerate(edited.patches) if i != gone and (gone or i != 1)]
        file = save_patch(merge(rest), tmp_path / f"{gone}.safetensors")
        with applied(other.model, load_patch(file)):
            assert torch.equal(last_logits(other, PROMPTS), last_logits(target, PROMPTS))
    edited.patches[2].revert(target.model)
    assert edited.before.differences(target.model) == []


@pytest.mark.parametrize("name", ROUTED)
def test_rows_of_one_batch_may_have_patches_of_their_own(name: str, edited_of: Any) -> None:
    edited = edited_of(name, "llama")
    target, patches = edited.lm, [edited.patches[0], None, edited.patches[0]]
    prompts = [PROMPTS[0], PROMPTS[0], FAR[0]]
    alone = []
    for prompt, patch in zip(prompts, patches, strict=True):
        if patch is None:
            alone.append(generate(target, [prompt], 6)[0])
        else:
            with applied(target.model, patch):
                alone.append(generate(target, [prompt], 6)[0])
    assert can_apply_per_row(target, patches)
    with applied_per_row(target, patches):
        assert generate(target, prompts, 6, [0, 1, 2]) == alone
    assert edited.before.differences(target.model) == []


@pytest.mark.parametrize("name", ROUTED)
def test_an_encoder_decoder_is_edited_in_its_decoder(name: str, make_method: Maker) -> None:
    target = lm("t5")
    target.model.eval()
    before = Snapshot(target.model)
    plain = generate(target, PROMPTS, 6)
    patch = make_method(name, target, "t5").edit(target, EDITS[:1]).patch
    with applied(target.model, patch):
        together = generate(target, PROMPTS, 6)
        assert together == [generate(target, [prompt], 6)[0] for prompt in PROMPTS]
        assert together == generate(target, PROMPTS, 6, use_cache=False)
    assert generate(target, PROMPTS, 6) == plain
    assert before.differences(target.model) == []


@pytest.mark.parametrize("name", ROUTED)
def test_a_module_patch_is_no_lora_and_says_what_can_be_done(
    name: str, edited_of: Any, tmp_path: Path
) -> None:
    patch = edited_of(name, "llama").patches[0]
    assert isinstance(patch, ModulePatch)
    with pytest.raises(PatchError, match="easyedit generate"):
        export_lora(patch, tmp_path / "adapter")


@pytest.mark.parametrize("name", ROUTED)
def test_settings_that_name_no_layer_are_refused(name: str, make_method: Maker) -> None:
    from easyeditor.errors import HyperParamsError

    target = lm("llama")
    before = Snapshot(target.model)
    cases: list[tuple[dict[str, Any], str]] = [({"layers": [99]}, "outside")]
    if name in NAMED:
        cases += [
            ({"layers": [0, 1]}, "one layer"),
            ({"inner_params": ["model.layers[1].mlp.dwn_proj.weight"]}, "no linear layer of a"),
            ({"inner_params": ["lm_head"]}, "no linear layer of a block"),
        ]
    for wrong, words in cases:
        with pytest.raises(HyperParamsError, match=words):
            make_method(name, target, "llama", **wrong).edit(target, EDITS[:1])
    assert before.differences(target.model) == []


@pytest.mark.parametrize("name", NAMED)
def test_another_linear_layer_of_a_block_is_adapted(name: str, make_method: Maker) -> None:
    target = lm("gpt2")
    method = make_method(name, target, "gpt2", inner_params=["transformer.h[1].mlp.c_fc.weight"])
    patch = method.edit(target, EDITS[:1]).patch
    assert next(iter(patch.adapters)) == "transformer.h.1.mlp.c_fc"
    plain = last_logits(target, PROMPTS[:1])
    with applied(target.model, patch):
        assert not torch.equal(last_logits(target, PROMPTS[:1]), plain)


@pytest.mark.parametrize("name", ROUTED)
def test_a_loss_that_is_no_number_is_an_error(name: str, make_method: Maker) -> None:
    from easyeditor.errors import DivergedError

    target = lm("llama")
    with torch.no_grad():
        target.model.model.norm.weight.fill_(float("nan"))
    before = Snapshot(target.model)
    method = make_method(name, target, "llama")
    with pytest.raises(DivergedError, match="unchanged"):
        method.edit(target, [Edit("Berlin is the capital of", "Paris", "Berlin")])
    assert before.differences(target.model) == []
