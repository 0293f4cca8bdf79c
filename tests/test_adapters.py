"""Adapters on modules: one decision per row, whatever the batch, the padding and the cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from easyeditor import LM, load_patch, save_patch
from easyeditor.edits import Score
from easyeditor.errors import PatchError, PatchFormatError, PatchMismatchError
from easyeditor.export.lora import export_lora
from easyeditor.lm.forward.context import ForwardContext, has_adapters
from easyeditor.lm.inference import generate, score
from easyeditor.patches.adapter import Adapter, AddVector
from easyeditor.patches.batched import applied_per_row, can_apply_per_row
from easyeditor.patches.copies import edited_copy
from easyeditor.patches.kinds import ADAPTERS
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import merge
from easyeditor.patches.stack import applied, is_patched, without_patches
from easyeditor.tensor_file import read_tensor_file, write_tensor_file
from support import Snapshot, lm, logits, same_bits
from synthetic import PROMPTS, info

FAMILIES = ["llama", "gpt2", "opt", "bloom", "gemma2", "mistral", "gptj"]


class Codebook(Adapter):
    """Rows whose last prompt token lies near a key get that key's value from there on."""

    name = "Codebook"

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, radii: torch.Tensor) -> None:
        super().__init__()
        for field, tensor in (("keys", keys), ("values", values), ("radii", radii)):
            self.register_buffer(field, tensor.detach().clone())

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        def nearest() -> torch.Tensor:
            gaps = torch.cdist(context.at_prompt_end(x).float(), self.keys)
            best = gaps.argmin(1)
            return torch.where(gaps.amin(1) <= self.radii[best], best, -1)

        entry = context.decide(self, nearest)
        where = context.answering().to(y.device) & (entry >= 0)[:, None]
        return torch.where(where[..., None], y + self.values[entry][:, None].to(y.dtype), y)

    @classmethod
    def merge(cls, adapters: Sequence[Codebook]) -> Codebook:
        fields = ("keys", "values", "radii")
        return cls(**{f: torch.cat([getattr(a, f) for a in adapters]) for f in fields})


@pytest.fixture(autouse=True)
def codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS._entries, "Codebook", "test_adapters:Codebook")


def site(target: LM, layer: int = 0) -> str:
    return target.projection(layer).path.removesuffix(".weight")


def key_of(target: LM, prompt: str, layer: int = 0) -> torch.Tensor:
    """The down-projection's input at the prompt's last token."""
    seen: list[torch.Tensor] = []
    handle = target.projection(layer).module.register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].detach().clone())
    )
    with target.at_rest(), torch.no_grad():
        target.call(target.pad([target.text.row(prompt).ids]))
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])[-1:].float()


def memory(target: LM, prompt: str, seed: int = 0) -> ModulePatch:
    """An edit of one prompt by a codebook of one entry."""
    draw = torch.Generator().manual_seed(seed)
    value = torch.randn(1, target.projection(1).d_out, generator=draw) * 3
    adapter = Codebook(key_of(target, prompt, 1), value, torch.tensor([0.05]))
    return ModulePatch({site(target, 1): (adapter,)}, info(target, "codebook"))


def steering(target: LM, seed: int = 0, answer_only: bool = False) -> ModulePatch:
    draw = torch.Generator().manual_seed(seed)
    vector = torch.randn(target.projection(1).d_out, generator=draw) * 20
    adapter = AddVector(vector, "answer" if answer_only else "all")
    return ModulePatch({site(target, 1): (adapter,)}, info(target, "steering"))


def said(target: LM, prompts: Sequence[str], **options: Any) -> list[tuple[int, ...]]:
    """Six tokens after each prompt, step by step, by the model's own ``generate``."""
    rows = [target.text.row(prompt).ids for prompt in prompts]
    batch = target.pad(rows, left=True)
    with target.at_rest(), torch.inference_mode():
        out = target.model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            pad_token_id=target.text.pad_id,
            **options,
        )
    return [tuple(row[batch.ids.shape[1] :].tolist()) for row in out]


@pytest.mark.parametrize("kind", ["codebook", "steering", "answer only"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_gets_the_same_whatever_surrounds_it(family: str, kind: str) -> None:
    target = lm(family)
    target.model.eval()
    plain = said(target, PROMPTS)
    if kind == "codebook":
        one = merge([memory(target, PROMPTS[i], i) for i in (0, 3, 4)])
    else:
        one = steering(target, answer_only=kind == "answer only")
    one.apply(target.model)
    together = said(target, PROMPTS)
    assert together == said(target, PROMPTS, use_cache=False)
    assert together == [said(target, [prompt])[0] for prompt in PROMPTS]
    assert together == [said(target, [prompt], use_cache=False)[0] for prompt in PROMPTS]
    assert together != plain
    if kind == "codebook":
        for i in (1, 2, 5, 6, 7):
            assert together[i] == plain[i]
    # Teacher forcing of what was written gives it again: padded on the right, all in one pass.
    answers = [
        Score(prompt, target.tokenizer.decode(tokens))
        for prompt, tokens in zip(PROMPTS, together, strict=True)
    ]
    for query, scores in zip(answers, score(target, answers), strict=True):
        row = target.text.row(query.prompt, query.answer)
        written = tuple(together[answers.index(query)])
        if row.target == written:  # the text is cut into the tokens it was written in
            assert scores.argmax == written
    assert generate(target, PROMPTS, 6) == [generate(target, [p], 6)[0] for p in PROMPTS]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_nothing_routed_is_the_unedited_model_to_the_bit(family: str) -> None:
    target = lm(family)
    target.model.eval()
    before, plain = Snapshot(target.model), logits(target.model)
    keys = set(target.model.state_dict())
    draw = torch.full((1, target.projection(0).d_in), 1e3)
    far = Codebook(draw, torch.ones(1, target.projection(0).d_out), torch.tensor([0.1]))
    one = ModulePatch({site(target): (far,)}, info(target))
    one.apply(target.model)
    assert same_bits(logits(target.model), plain)
    assert set(target.model.state_dict()) == keys
    assert type(target.model).__name__ == one.info.model.architecture
    one.revert(target.model)
    assert before.differences(target.model) == []
    assert not has_adapters(target.model)


def test_an_encoder_decoder_is_steered_on_either_side() -> None:
    target = lm("t5")
    target.model.eval()
    sides = [target.encoder_side(), target]
    plain = generate(target, PROMPTS, 6)
    for side in sides:
        vector = torch.randn(side.projection(0).d_out, generator=torch.Generator().manual_seed(1))
        place = side.projection(0).path.removesuffix(".weight")
        one = ModulePatch({place: (AddVector(vector * 5, "answer"),)}, info(target))
        with applied(target.model, one):
            together = generate(target, PROMPTS, 6)
            assert together == [generate(target, [prompt], 6)[0] for prompt in PROMPTS]
            assert together == generate(target, PROMPTS, 6, use_cache=False)
        assert generate(target, PROMPTS, 6) == plain


def test_patches_of_one_class_are_one_and_any_order_of_undoing_is_exact(tmp_path: Path) -> None:
    target, other = lm("llama"), lm("llama")
    target.model.eval()
    other.model.eval()
    before = Snapshot(target.model)
    patches = [memory(target, PROMPTS[i], i) for i in range(3)] + [steering(target, 7)]
    for one in patches:
        one.apply(target.model)
    file = save_patch(merge(patches), tmp_path / "all.safetensors")
    load_patch(file).apply(other.model)
    assert same_bits(logits(target.model), logits(other.model))
    assert said(target, PROMPTS) == said(other, PROMPTS)
    for i in (2, 0):
        patches.pop(i).revert(target.model)
    fresh = lm("llama")
    fresh.model.eval()
    for one in patches:
        one.apply(fresh.model)
    assert said(target, PROMPTS) == said(fresh, PROMPTS)
    with without_patches(target.model):
        assert not has_adapters(target.model)
    assert said(target, PROMPTS) == said(fresh, PROMPTS)
    for one in patches:
        one.revert(target.model)
    assert before.differences(target.model) == []
    assert not is_patched(target.model)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_each_row_may_have_a_patch_of_its_own(family: str) -> None:
    target = lm(family)
    target.model.eval()
    before = Snapshot(target.model)
    patches = [memory(target, PROMPTS[0]), None, steering(target, 3), steering(target, 4, True)]
    alone = []
    for one in patches:
        if one is None:
            alone.append(generate(target, PROMPTS[:1], 6)[0])
            continue
        with applied(target.model, one):
            alone.append(generate(target, PROMPTS[:1], 6)[0])
    assert can_apply_per_row(target, patches)
    with applied_per_row(target, patches):
        together = generate(target, PROMPTS[:1] * 4, 6, [0, 1, 2, 3])
    assert together == alone
    assert len(set(alone)) > 2
    assert before.differences(target.model) == []


def test_a_copy_has_adapters_of_its_own() -> None:
    target = lm("gpt2")
    target.model.eval()
    plain = logits(target.model)
    one = steering(target)
    twin = edited_copy(target.model, one)
    assert same_bits(logits(target.model), plain)
    assert not same_bits(logits(twin), plain)
    again = copy.deepcopy(twin)
    one.revert(twin)
    assert same_bits(logits(twin), plain)
    assert not same_bits(logits(again), plain)
    one.revert(again)
    assert same_bits(logits(again), plain)


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    one = steering(target)
    lost = ModulePatch({"model.layers.9.mlp": one.adapters[site(target, 1)]}, one.info)
    with pytest.raises(PatchMismatchError, match="no such module"):
        lost.apply(target.model)
    with pytest.raises(PatchError, match="changes no weight: it runs modules beside"):
        export_lora(one, tmp_path)
    assert before.differences(target.model) == []
    file = save_patch(one, tmp_path / "one.safetensors")
    ADAPTERS._entries.pop("Codebook")
    odd = memory(target, PROMPTS[0])
    with pytest.raises(PatchFormatError, match="Unknown adapter 'Codebook'"):
        load_patch(save_patch(odd, tmp_path / "odd.safetensors"))
    ADAPTERS._entries["Codebook"] = "test_adapters:Codebook"
    assert load_patch(file).rows() == one.rows()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_of_another_width_is_refused(family: str) -> None:
    target = lm(family)
    before = Snapshot(target.model)
    site = target.projection(1).path.removesuffix(".weight")
    width = target.model.config.hidden_size
    good = ModulePatch({site: (AddVector(torch.ones(width)),)}, info(target))
    good.apply(target.model)
    expected = logits(target.model)
    bad = ModulePatch({site: (AddVector(torch.ones(width - 1)),)}, info(target))
    with pytest.raises(PatchMismatchError, match=f"outputs of {width - 1} numbers.*have {width}"):
        bad.apply(target.model)
    assert same_bits(logits(target.model), expected)
    good.revert(target.model)
    assert before.differences(target.model) == []


def test_a_file_of_a_vector_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    target = lm("llama")
    patch = ModulePatch({"model.norm": (AddVector(torch.ones(3)),)}, info(target))
    file = save_patch(patch, tmp_path / "vector.safetensors")
    content = read_tensor_file(file, "easyedit", "a patch", "", PatchFormatError)
    for dtype in (torch.int64, torch.bool, torch.complex64):
        tensors = {name: tensor.to(dtype) for name, tensor in content.tensors.items()}
        write_tensor_file(file, tensors, "easyedit", content.header)
        with pytest.raises(PatchFormatError, match="a vector of shape"):
            load_patch(file)
