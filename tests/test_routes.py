"""Edits that change no weight: prompts go elsewhere, and everything else stays as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from transformers import GenerationConfig

import tiny
from easyeditor import LM, Edit, Generate
from easyeditor.errors import DownstreamError, PatchMismatchError, PatchStateError
from easyeditor.evaluate.downstream import downstream
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.forward.batching import scored_sequences
from easyeditor.lm.forward.prefix_cache import MIN_PREFIX_TOKENS, Prefix, shared_prefix_groups
from easyeditor.lm.inference import generate, score
from easyeditor.lm.routing import Rerouted
from easyeditor.patches.copies import edited_copy
from easyeditor.patches.patch import PatchInfo, merge
from easyeditor.patches.route import RoutePatch
from easyeditor.patches.stack import applied, is_patched, stack_of
from support import Snapshot, lm, shared_lm
from tiers import tiered

ASKED = ["Berlin is the capital of", "She plays the piano", "Rome is the capital of"]
PAIRS = [(prompt, answer) for prompt in ASKED for answer in ("Italy", "well")]
FRONT = "You can see the river. "


def sampled(lm, prompts, n_tokens):
    return generate(lm, [Generate(prompt, n_tokens, seed=0) for prompt in prompts])


@dataclass(frozen=True, slots=True, eq=False)
class Detour(RoutePatch):
    """Prompts that begin with one of ``words`` get more text, or another model."""

    words: tuple[str, ...]
    info: PatchInfo
    other: LM | None = None
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kind: ClassVar[str] = "test"

    @classmethod
    def merge(cls, patches: Sequence[Detour], compact: bool = False) -> Detour:
        words = tuple(word for patch in patches for word in patch.words)
        return cls(words, patches[0].info, patches[0].other)

    def reroute(self, lm: LM, prompts: Sequence[str]) -> list[Rerouted | None]:
        return [
            Rerouted(FRONT + str(p), self.other) if str(p).startswith(self.words) else None
            for p in prompts
        ]

    def dump(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {}, {"words": self.words}

    @classmethod
    def load(cls, info: Any, tensors: Any, data: Any, extras: Any) -> Detour:
        return cls(tuple(data["words"]), info)


def patch(target: LM, *words: str, other: LM | None = None) -> Detour:
    edit = Edit(ASKED[0], "Italy")
    return Detour(words, PatchInfo.of(target, "test", [edit], HyperParams(), {}), other)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_routed_prompts_are_answered_elsewhere_and_the_others_to_the_bit(family: str) -> None:
    target = lm(family)
    other = LM(tiny.model(family, seed=5), tiny.tokenizer())
    plain, said = score(target, PAIRS), generate(target, ASKED, 6)
    long = sampled(target, ASKED, 6)
    for who in (None, other):
        own = patch(target, "Berlin", other=who)
        own.apply(target.model)
        asked = who or lm(family)
        expected = score(asked, [(FRONT + ASKED[0], answer) for answer in ("Italy", "well")])
        scores, told = score(target, PAIRS), generate(target, ASKED, 6)
        assert scores[2:] == plain[2:]
        for got, want in zip(scores[:2], expected, strict=True):
            assert got.logprobs == pytest.approx(want.logprobs, abs=1e-5)
            assert got.logprobs != pytest.approx(plain[0].logprobs, abs=1e-4)
        assert told[1:] == said[1:]
        assert told[0] == generate(asked, [FRONT + ASKED[0]], 6)[0]
        assert sampled(target, ASKED, 6)[1:] == long[1:]
        own.revert(target.model)
        assert score(target, PAIRS) == plain


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_models_own_generate_goes_the_same_way(family: str) -> None:
    target = lm(family)
    batch = target.pad([target.text.row(p).ids for p in ASKED], left=True)
    fed = {"input_ids": batch.ids, "attention_mask": batch.mask, "max_new_tokens": 5}
    before = target.model.generate(**fed, do_sample=False)
    own = patch(target, "Berlin")
    own.apply(target.model)
    routed = target.model.generate(**fed, do_sample=False)
    wanted = generate(target, ASKED, 5)
    start = 0 if family == "t5" else batch.ids.shape[1]
    told = [target.tokenizer.decode(row[start:], skip_special_tokens=True) for row in routed]
    assert told == wanted
    if family != "t5":
        assert torch.equal(routed[:, :start], batch.ids)
    own.revert(target.model)
    assert "generate" not in vars(target.model)
    assert torch.equal(target.model.generate(**fed, do_sample=False), before)


class Heard:
    """A streamer."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"return_dict_in_generate": True},
        {"max_length": 40},
        {"prefix_allowed_tokens_fn": lambda row, ids: [5 + row]},
        {"streamer": True},
        {"generation_config": GenerationConfig(max_new_tokens=4, return_dict_in_generate=True)},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_generate_do_what_they_do_without_a_route(options: dict[str, Any]) -> None:
    """A row that goes elsewhere is continued as its other text is by the plain model."""
    target, plain = lm("llama"), lm("llama")
    patch(target, "Berlin").apply(target.model)
    asked = ASKED[:1] if "streamer" in options else ASKED
    rows = [target.text.row(text).ids for text in asked]
    batch = target.pad(rows, left=True)
    width = batch.ids.shape[1]
    limit = {} if {"max_length", "generation_config"} & set(options) else {"max_new_tokens": 4}
    heard = [Heard() for _ in range(2)]
    given = {**options, "do_sample": False, **limit}
    streamed = [{"streamer": each} if "streamer" in options else {} for each in heard]
    out = target.model.generate(batch.ids, attention_mask=batch.mask, **{**given, **streamed[0]})
    as_dict = not isinstance(out, torch.Tensor)
    assert as_dict == any("return_dict" in str(value) for value in options.items())
    result = (out.sequences if as_dict else out).split(options.get("num_return_sequences", 1))
    for i, (text, found) in enumerate(zip(asked, result, strict=True)):
        ids = torch.tensor([plain.text.row(FRONT + text if i == 0 else text).ids])
        how = {**given, **streamed[1]}
        if "max_length" in how:
            how["max_new_tokens"] = how.pop("max_length") - width
        if "prefix_allowed_tokens_fn" in how:
            how["prefix_allowed_tokens_fn"] = lambda _row, _ids, i=i: [5 + i]
        wanted = plain.model.generate(ids, **how)
        wanted = (wanted.sequences if as_dict else wanted)[:, ids.shape[1] :]
        assert torch.equal(found[:, :width], batch.ids[i].expand(len(found), -1))
        assert torch.equal(found[:, width : width + wanted.shape[1]], wanted)
    if "streamer" in options:
        assert heard[0].tokens == result[0][0].tolist()
        assert heard[0].ended == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"output_scores": True}, "output_scores was asked for"),
        (
            {"generation_config": GenerationConfig(output_logits=True)},
            "output_logits was asked for",
        ),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "inputs_embeds was given"),
        ({"past_key_values": ()}, "past_key_values was given"),
        ({"streamer": Heard()}, "a streamer was given with 2 prompts"),
        ({"input_ids": None}, "no input_ids was given"),
    ],
)
def test_what_a_routed_generate_cannot_do(options: dict[str, Any], why: str) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    route = patch(target, "Berlin")
    route.apply(target.model)
    with pytest.raises(PatchStateError, match=f"{why}. Give the prompts as tokens"):
        target.model.generate(**{"input_ids": torch.tensor([[5, 6], [7, 8]]), **options})
    route.revert(target.model)
    assert before.differences(target.model) == []


def test_a_batch_without_a_mask_is_masked_as_usual() -> None:
    target = lm("llama")
    batch = target.pad([target.text.row(text).ids for text in ASKED], left=True)
    patch(target, "Berlin").apply(target.model)
    how = {"max_new_tokens": 4, "do_sample": False}
    with_mask = target.model.generate(batch.ids, attention_mask=batch.mask, **how)
    assert torch.equal(target.model.generate(inputs=batch.ids, **how), with_mask)


def test_a_copy_is_routed_and_the_original_is_not() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    twin = edited_copy(target.model, patch(target, "Berlin"))
    assert type(twin) is type(target.model)
    assert twin.lm_head.weight.data_ptr() == target.model.lm_head.weight.data_ptr()
    copied = LM(twin, target.tokenizer)
    assert generate(copied, ASKED, 4)[0] == generate(target, [FRONT + ASKED[0]], 4)[0]
    assert generate(copied, ASKED, 4)[1:] == generate(target, ASKED, 4)[1:]
    again = edited_copy(twin, patch(target, "She"))
    assert len(stack_of(again).patches) == 2
    assert "generate" in vars(again)
    assert before.differences(target.model) == []
    assert not is_patched(target.model)


def test_patches_of_one_kind_act_as_one_and_come_off_in_any_order() -> None:
    target = lm("llama")
    first, second = patch(target, "Berlin"), patch(target, "Rome")
    plain = generate(target, ASKED, 4)
    routed = [generate(target, [FRONT + prompt], 4)[0] for prompt in ASKED]
    first.apply(target.model)
    second.apply(target.model)
    assert generate(target, ASKED, 4) == [routed[0], plain[1], routed[2]]
    first.revert(target.model)
    assert generate(target, ASKED, 4) == [plain[0], plain[1], routed[2]]
    with applied(target.model, first):
        assert generate(target, ASKED, 4) == [routed[0], plain[1], routed[2]]
    second.revert(target.model)
    assert generate(target, ASKED, 4) == plain
    merge([first, second]).apply(target.model)
    assert generate(target, ASKED, 4) == [routed[0], plain[1], routed[2]]


def test_what_cannot_be_routed() -> None:
    target = lm("llama")
    own = patch(target, "Berlin")
    with pytest.raises(PatchMismatchError):
        own.apply(tiny.model("gpt2"))
    own.apply(target.model)
    with pytest.raises(PatchStateError, match="applied"):
        own.apply(target.model)
    bare = tiny.model("llama")
    own.apply(bare)
    with pytest.raises(PatchStateError, match=r"no tokenizer.*LM\(model, tokenizer\)"):
        bare.generate(torch.tensor([[5, 6]]), max_new_tokens=2)
    own.revert(bare)
    assert bare.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape[1] > 2


# -- long beginnings ------------------------------------------------------------------------------

LONG = "Because it rained, I stayed inside and you went to see the river in the city. " * 3


@pytest.mark.parametrize("family", tiered(f for f in tiny.CAUSAL if f != "mpt"))
def test_a_shared_beginning_changes_no_score(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MPT has too few positions here; sliding windows fall back to whole passes."""
    target = shared_lm(family)
    pairs = [(LONG + prompt, answer) for prompt, answer in PAIRS]
    fast = score(target, pairs)
    monkeypatch.setattr("easyeditor.lm.forward.prefix_cache.MIN_PREFIX_TOKENS", 10_000)
    slow = score(target, pairs)
    for mine, its in zip(fast, slow, strict=True):
        assert mine.logprobs == pytest.approx(its.logprobs, abs=2e-4)
        assert mine.argmax == its.argmax


def test_what_is_shared_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    target = lm("llama")
    seen: list[int] = []
    call = LM.call
    monkeypatch.setattr(
        LM,
        "call",
        lambda self, batch, **m: seen.append(batch.ids.numel()) or call(self, batch, **m),
    )
    score(target, [(LONG + prompt, "Italy") for prompt in ASKED])
    whole = sum(len(target.text.row(LONG + prompt, "Italy").ids) for prompt in ASKED)
    assert sum(seen) < whole / 2
    rows = [target.text.row(LONG + prompt, "Italy") for prompt in ASKED]
    plan = scored_sequences(rows)
    ((shared, own),) = shared_prefix_groups(plan, [0] * len(plan))
    assert shared >= MIN_PREFIX_TOKENS
    assert sorted(own) == [0, 1, 2]
    assert [length for length, _ in shared_prefix_groups(plan, [0, 1, 2])] == [
        0
    ]  # of different changes
    with target.at_rest(), torch.no_grad():
        assert Prefix(target, plan[0].ids[:shared]).usable
        window = lm("mistral")
        assert not Prefix(window, plan[0].ids[:shared]).usable


def test_a_harness_that_does_not_see_the_edit_is_refused() -> None:
    target = lm("llama")
    patch(target, "Berlin").apply(target.model)
    with pytest.raises(DownstreamError, match="Only edits of weights"):
        downstream(target, ["tiny_cities"])
