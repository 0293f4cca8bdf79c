"""Causal traces and logit lenses against plain passes, on every structural class."""

from __future__ import annotations

import pytest
import torch

from easyeditor.errors import SubjectNotFoundError, TraceError, UnsupportedModelError
from easyeditor.interpret.causal_trace import (
    KINDS,
    ROLES,
    CausalTrace,
    TraceOptions,
    average_traces,
    causal_trace,
    roles_of,
)
from easyeditor.interpret.logit_lens import logit_lens
from easyeditor.lm.hooks import reading_outputs
from easyeditor.methods.rome import ROME, ROMEHyperParams
from easyeditor.patches.stack import applied
from support import Snapshot, shared_lm
from tiers import STRUCTURAL
from zoo import load, world

PROMPT, SUBJECT = "You can see. The Eiffel Tower is located in the city of", "The Eiffel Tower"
FEW = TraceOptions(samples=2, window=2, noise=0.5)


@pytest.mark.parametrize("family", STRUCTURAL)
@pytest.mark.parametrize("options", [FEW, TraceOptions(samples=2, noise=0.5, severed="mlp")])
def test_starting_at_the_restored_layer_gives_what_whole_passes_give(family, options):
    lm = shared_lm(family)
    kinds = KINDS if options is FEW else ("state",)
    before = Snapshot(lm.model)
    traces = causal_trace(lm, PROMPT, SUBJECT, kinds=kinds, options=options)
    assert not before.differences(lm.model)
    whole = causal_trace(lm, PROMPT, SUBJECT, kinds=kinds, options=options, resume=False)
    for one, other in zip(traces, whole, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
        assert (one.scores[list(one.subject)] != one.corrupted).any()  # the subject's states matter


@pytest.mark.parametrize("family", ["llama", "gptj", "falcon", "opt", "bloom"])
def test_what_is_recorded_is_what_the_module_gave(family):
    """Falcon's block writes attention's output into the MLP's afterwards."""
    lm = shared_lm(family)
    modules = [lm.sublayer(layer, "mlp") for layer in range(lm.n_layers)]
    at_once = []
    hooks = [m.register_forward_hook(lambda _m, _a, y: at_once.append(y.clone())) for m in modules]
    with torch.no_grad(), lm.at_rest(), reading_outputs(modules) as outputs:
        lm.call(lm.pad([lm.text.row(PROMPT).ids]))
    for hook in hooks:
        hook.remove()
    assert len(at_once) == len(modules)
    assert all(torch.equal(one, other) for one, other in zip(outputs, at_once, strict=True))


def trace(family: str = "llama", **changes: object) -> CausalTrace:
    """Of hidden states, one by default."""
    options = TraceOptions(**{"samples": 2, "noise": 0.5, **changes})
    return causal_trace(shared_lm(family), PROMPT, SUBJECT, options=options)[0]


def test_the_cells_that_are_known_beforehand():
    result = trace()
    last, first = len(result.tokens) - 1, result.subject[0]
    assert result.scores[last, -1] == pytest.approx(result.clean, abs=1e-6)
    assert result.scores[:last, -1].tolist() == pytest.approx([result.corrupted] * last, abs=1e-6)
    assert first > 0
    assert (result.scores[:first] == torch.tensor(result.corrupted)).all()
    assert result.is_top
    assert "".join(result.tokens).strip() == PROMPT
    assert result.total_effect == pytest.approx(result.clean - result.corrupted)


def test_one_cell_is_what_a_plain_hook_computes():
    """Without any of the tracer's parts but its noise."""
    lm, layer = shared_lm("llama"), 1
    result = trace(samples=1)
    ids = torch.tensor([lm.text.row(PROMPT).ids])
    embedding, block = lm.model.get_input_embeddings(), lm.blocks[layer]
    first, last = result.subject
    width = embedding.weight.shape[1]
    noise = (
        torch.randn(1, last - first + 1, width, generator=torch.Generator().manual_seed(1)) * 0.5
    )
    states = []
    with torch.no_grad():
        seen = block.register_forward_hook(lambda _m, _a, out: states.append(out))
        lm.model(ids)
        seen.remove()
        clean = states[0][0] if isinstance(states[0], tuple) else states[0]

        def corrupt(_module, _args, output):
            output = output.clone()
            output[:, first : last + 1] += noise
            return output

        def restore(_module, _args, output):
            (output[0] if isinstance(output, tuple) else output)[:, last] = clean[:, last]

        hooks = [embedding.register_forward_hook(corrupt), block.register_forward_hook(restore)]
        logits = lm.model(ids).logits[0, -1]
        for hook in hooks:
            hook.remove()
    token = lm.model(ids).logits[0, -1].argmax()
    assert float(logits.softmax(-1)[token]) == pytest.approx(
        float(result.scores[last, layer]), abs=1e-6
    )


def test_another_subject_in_place_of_noise():
    result = causal_trace(
        shared_lm("llama"),
        "Anna plays the",
        "Anna",
        options=TraceOptions(swap_with="Anna", metric="logit_difference"),
    )[0]
    assert result.corrupted == pytest.approx(result.clean, abs=1e-5)  # nothing was swapped
    with pytest.raises(TraceError, match="another number of tokens"):
        trace(swap_with="The very tall tower of iron in Paris")


def test_the_same_noise_for_every_cell_and_another_seed_another():
    assert torch.equal(trace().scores, trace().scores)
    assert not torch.equal(trace().scores, trace(seed=2).scores)


def test_roles_cover_the_tokens_from_the_subject_on():
    assert roles_of(7, (1, 3)) == dict(zip(ROLES, ([1], [2], [3], [4], [5], [6]), strict=True))
    assert roles_of(3, (1, 2))["last subject token"] == [2]
    assert roles_of(4, (2, 2))["first subject token"] == []


def test_averages_are_of_effects_by_role():
    one, other = trace(), trace(seed=2)
    average = average_traces([one, other])
    last = one.subject[1]
    expected = torch.stack([one.effects[last], other.effects[last]])
    row = ROLES.index("last subject token")
    torch.testing.assert_close(average.effects[row], expected.mean(0))
    torch.testing.assert_close(average.half_widths[row], 1.96 * expected.std(0) / 2**0.5)
    assert average.n == 2
    with pytest.raises(TraceError, match="at least one"):
        average_traces([])


def test_what_cannot_be_traced_is_said():
    lm = shared_lm("llama")
    before = Snapshot(lm.model)
    with pytest.raises(SubjectNotFoundError):
        causal_trace(lm, PROMPT, "Big Ben")
    with pytest.raises(TraceError, match="No kind"):
        causal_trace(lm, PROMPT, SUBJECT, kinds=("layer",))
    with pytest.raises(TraceError, match="samples"):
        TraceOptions(samples=0)
    with pytest.raises(TraceError, match="No metric"):
        TraceOptions(metric="loss")
    with pytest.raises(TraceError, match="severed"):
        TraceOptions(severed="state")
    with pytest.raises(TraceError, match="needs an answer"):
        logit_lens(lm, PROMPT, [])
    assert not before.differences(lm.model)


def test_a_block_without_attention_is_said():
    lm = shared_lm("mamba")
    with pytest.raises(UnsupportedModelError, match="no attention"):
        causal_trace(lm, PROMPT, SUBJECT, kinds=("attention",), options=FEW)


@pytest.mark.parametrize("family", STRUCTURAL)
def test_the_lens_on_the_last_layer_is_the_model(family):
    lm = shared_lm(family)
    before = Snapshot(lm.model)
    lens = logit_lens(lm, PROMPT, ["Rome", "Paris"])
    assert not before.differences(lm.model)
    row = lm.text.row(PROMPT)
    with torch.no_grad(), lm.at_rest():
        logits = lm.call(lm.pad([row.ids])).logits[0].float()
    for i, answer in enumerate(lens.answers):
        token = lm.text.row(PROMPT, answer).target[0]
        torch.testing.assert_close(lens.probabilities[i, :, -1], logits.softmax(-1)[:, token])
        expected = (logits > logits[:, token, None]).sum(-1) + 1
        assert lens.ranks[i, :, -1].tolist() == expected.tolist()
    assert [row[-1] for row in lens.top] == [lm.tokenizer.decode([t]) for t in logits.argmax(-1)]
    assert (lens.probabilities[..., 0] != lens.probabilities[..., -1]).any()


@pytest.mark.parametrize("layer", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_fact_that_rome_wrote_at_a_layer_is_found_there(layer):
    """A place that is known by construction, at the subject's last token; sums over cases."""
    lm = load("llama")
    config = ROMEHyperParams(
        layers=[layer], mom2_adjustment=False, context_template_length_params=[]
    )
    method = ROME(config)
    few = {"samples": 4, "window": 1}
    mlp, state, severed = torch.zeros(3, lm.n_layers)
    for case in world.cases("eval")[:5]:
        edit = case.edit
        query = lm, edit.prompt.text, edit.subject, edit.target
        with applied(lm.model, method.edit(lm, [edit], method.initial_state(lm)).patch):
            for sums, kind, options in (
                (mlp, "mlp", TraceOptions(**few)),
                (state, "state", TraceOptions(**few)),
                (severed, "state", TraceOptions(**few, severed="mlp")),
            ):
                result = causal_trace(*query, kinds=(kind,), options=options)[0]
                sums += result.effects[result.subject[1]]
    others = [i for i in range(1, lm.n_layers) if i != layer]  # the first MLP makes the key
    assert mlp[layer] > 5 * mlp[others].max()
    # Without MLPs the states below it bring nothing back, and those from it on bring most.
    assert (severed[:layer] < 0.1 * state[:layer]).all()
    assert severed[layer:].sum() > 0.7 * state[layer:].sum()
