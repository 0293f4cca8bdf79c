"""Free text, sizes of changes, memory, and the dict of one case, against values made by hand."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from math import exp, log2

import pytest
import torch

import outer
import support
import tiny
from easyeditor import LM, Case, Edit, Generate, Probe, Score, timing
from easyeditor.errors import MissingExtraError
from easyeditor.evaluate import generation_metrics as text
from easyeditor.evaluate.aggregate import flatten
from easyeditor.evaluate.generation_metrics import (
    Consistency,
    contains,
    equals,
    natural_answer,
    ngram_entropy,
    normalise,
    perplexity,
)
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import EvalOptions, Replies, observe
from easyeditor.evaluate.scorers import scorers
from easyeditor.lm.forward.batching import TokenScores
from easyeditor.patches import norms
from easyeditor.patches.norms import change_norms, spectral_norm
from easyeditor.patches.patch import merge
from easyeditor.patches.weight import Dense, LowRank, weight_patch
from easyeditor.timing import peak_memory
from support import shared_lm

# -- right answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "normal"),
    [
        ("Paris", "paris"),
        ("  The   City, of\nParis! ", "city of paris"),
        ("A theatre for an anthem", "theatre for anthem"),  # articles are whole words
        ("U.S.A.", "u s"),  # a known loss: the last letter is an article
        ("São Tomé 12%", "são tomé 12"),
        ("“Paris” – or…", "paris or"),
        ("The", ""),
        ("?!", ""),
    ],
)
def test_normalise(said, normal):
    assert normalise(said) == normal


@pytest.mark.parametrize(
    ("said", "accepted", "holds", "is_it"),
    [
        ("Paris", ["paris"], True, True),
        ("The Paris.", ["Paris"], True, True),
        ("It is Paris, of course", ["Paris"], True, False),
        ("Parisian", ["Paris"], False, False),  # whole words
        ("New York City", ["York City"], True, False),
        ("New York", ["York New"], False, False),
        ("London", ["Paris", "london"], True, True),
        ("Rome", [], False, False),
        ("", ["Paris"], False, False),
        ("", ["The"], False, False),  # nothing left to compare is no answer
        ("anything", ["!"], False, False),
        ("A", ["The"], False, False),
    ],
)
def test_contains_and_equals(said, accepted, holds, is_it):
    assert (contains(said, accepted), equals(said, accepted)) == (holds, is_it)


@pytest.mark.parametrize(
    ("chat", "ends"), [(False, "Paris."), (True, "Paris.\nIt lies on the Seine.")]
)
def test_natural_answer(chat, ends):
    assert natural_answer(" \n Paris.\nIt lies on the Seine. ", chat) == ends
    assert natural_answer(" \n ", chat) == ""


# -- fluency ----------------------------------------------------------------------------------

TWO_OF_THREE = -(2 / 3 * log2(2 / 3) + 1 / 3 * log2(1 / 3))


@pytest.mark.parametrize(
    ("said", "pairs", "triples"),
    [
        ("", 0, 0),
        ("a b", 0, 0),  # too short to say
        ("a b c", 1, 0),  # two pairs, one triple
        ("a a a a a", 0, 0),
        ("a b a b", TWO_OF_THREE, 1),  # ab ba ab; aba bab
        ("a  b\nc d e", 2, log2(3)),
        ("A a A a", TWO_OF_THREE, 1),  # capitals count
    ],
)
def test_ngram_entropy(said, pairs, triples):
    assert ngram_entropy(said) == pytest.approx((2 / 3 * pairs + 4 / 3 * triples) / 2)


def test_repetition_is_less_fluent():
    assert ngram_entropy("the river " * 20) < ngram_entropy(tiny.TEXT[:200])


# -- consistency ------------------------------------------------------------------------------

REFERENCES = ["paris rome", "paris berlin"]


def test_consistency_by_hand():
    measure = Consistency(REFERENCES)
    rare, common = math.log(3 / 2) + 1, 1.0  # smoothed inverse frequencies in two documents
    expected = rare / math.hypot(rare, common)
    assert measure(["rome"], ["paris rome"]) == pytest.approx(expected)
    assert measure(["Rome, rome!"], ["paris rome"]) == pytest.approx(expected)
    assert measure(["rome unheard of"], ["paris rome"]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "references", "expected"),
    [
        (["paris rome"], ["paris rome"], 1),
        (["rome", "paris"], ["paris rome"], 1),  # several texts count as one
        (["rome"], ["berlin"], 0),
        ([""], ["berlin"], 0),
        (["vienna"], ["berlin"], 0),
    ],
)
def test_consistency_at_its_ends(written, references, expected):
    assert Consistency(REFERENCES)(written, references) == pytest.approx(expected)


def test_consistency_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(MissingExtraError, match=r"Consistency needs scikit-learn.*\[bench\]"):
        Consistency(REFERENCES)


# -- perplexity -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_perplexity_is_the_models_own_loss(family):
    lm = shared_lm(family)
    ids = torch.tensor([tiny.tokenizer()(outer.PROMPT)["input_ids"]])
    with torch.no_grad():
        loss = lm.model(input_ids=ids, labels=ids).loss
    assert perplexity(lm, outer.PROMPT) == pytest.approx(float(loss.exp()), rel=1e-5)


def test_windows_are_read_on_their_own_and_weigh_by_their_tokens(monkeypatch):
    monkeypatch.setattr(text, "WINDOW", 10)
    lm, said = shared_lm("gpt2"), tiny.TEXT[:120]
    ids = tiny.tokenizer()(said)["input_ids"]
    assert len(ids) % 10  # the last window is shorter
    total = count = 0
    for i in range(0, len(ids), 10):
        window = torch.tensor([ids[i : i + 10]])
        with torch.no_grad():
            logits = lm.model(window).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        count += window.shape[1] - 1
    assert perplexity(lm, said) == pytest.approx(exp(total / count), rel=1e-5)


@pytest.mark.parametrize(("family", "said"), [("t5", outer.PROMPT), ("gpt2", ""), ("gpt2", "T")])
def test_where_there_is_no_perplexity(family, said):
    assert math.isnan(perplexity(shared_lm(family), said))


def test_a_model_with_few_positions():
    lm = support.lm("gpt2", n_positions=16)
    assert len(tiny.tokenizer()(tiny.TEXT[:400])["input_ids"]) > 16
    assert math.isfinite(perplexity(lm, tiny.TEXT[:400]))


def test_the_perplexity_of_a_wreck():
    lm = support.lm("gpt2")
    lm.model.transformer.ln_f.weight.data.mul_(1e5)
    assert perplexity(lm, outer.PROMPT) == math.inf
    lm.model.transformer.ln_f.weight.data.mul_(math.nan)
    assert math.isnan(perplexity(lm, outer.PROMPT))


# -- the size of a change ---------------------------------------------------------------------


def parts(kind, d_in=64, d_out=32):
    generator = torch.Generator().manual_seed(7)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "rank one": [LowRank(noise(d_in, 1), noise(1, d_out))],
        "rank three": [LowRank(noise(d_in, 3), noise(3, d_out))],
        "dense": [Dense(noise(d_in, d_out))],
        "several": [LowRank(noise(d_in, 1), noise(1, d_out)), Dense(noise(d_in, d_out))],
        "nothing": [Dense(torch.zeros(d_in, d_out))],
        "one number": [Dense(torch.eye(d_in, d_out) * (torch.arange(d_in) == 5)[:, None])],
    }[kind]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "kind", ["rank one", "rank three", "dense", "several", "nothing", "one number"]
)
def test_sizes_are_those_of_linear_algebra(family, kind):
    lm = support.lm(family)
    path = lm.projection(1).path
    d_in, d_out = lm.projection(1).weight.shape
    own = parts(kind, d_in, d_out)
    patch = weight_patch(lm, "FT", (), outer.settings(), {path: own}, {})
    whole = sum(part.dense() for part in own)
    weight = lm.projection(1).weight
    expected = {
        "norm": torch.linalg.matrix_norm(whole).item(),
        "relative": (torch.linalg.matrix_norm(whole) / torch.linalg.matrix_norm(weight)).item(),
        "spectral": torch.linalg.matrix_norm(whole, 2).item(),
    }
    assert change_norms(lm, patch) == {path: pytest.approx(expected, rel=2e-3)}
    assert change_norms(lm, patch)[path]["norm"] == pytest.approx(expected["norm"], rel=1e-5)
    # The same on a model that carries this and other changes: relative to the unedited weight.
    patch.apply(lm.model)
    other = weight_patch(lm, "FT", (), outer.settings(), {path: parts("dense", d_in, d_out)}, {})
    other.apply(lm.model)
    assert change_norms(lm, patch) == {path: pytest.approx(expected, rel=2e-3)}


@pytest.mark.parametrize("width", [8, 10**4], ids=["LOBPCG", "exact"])
@pytest.mark.parametrize("kind", ["rank one", "rank three", "dense", "nothing", "one number"])
def test_a_spectral_norm_draws_no_random_numbers(kind, width, monkeypatch):
    monkeypatch.setattr(norms, "EXACT_WIDTH", width)
    change = sum(part.dense() for part in parts(kind))
    state = torch.get_rng_state()
    expected = torch.linalg.matrix_norm(change, 2).item()
    assert spectral_norm([Dense(change)]) == pytest.approx(expected, rel=1e-4)
    assert spectral_norm(parts(kind)) == pytest.approx(expected, rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_low_rank_change_is_not_multiplied_out(monkeypatch):
    (part,) = parts("rank three")
    expected = torch.linalg.matrix_norm(part.dense().double(), 2).item()
    monkeypatch.setattr(LowRank, "dense", None)
    assert spectral_norm([part, part]) == pytest.approx(2 * expected, rel=1e-6)


@pytest.mark.parametrize("kinds", [["rank one"], ["rank one"] * 3, ["rank three", "dense"]])
def test_a_compacted_change_is_the_same_change_in_one_part(kinds):
    lm = support.lm("llama")
    path = lm.projection(1).path
    made = [
        weight_patch(lm, "FT", (), outer.settings(), {path: parts(kind)}, {"train": 1.0})
        for kind in kinds
    ]
    short, whole = merge(made, compact=True), merge(made)
    assert len(short.entries[path]) == 1
    assert torch.allclose(short.dense(path), whole.dense(path), atol=1e-5)
    assert short.info == whole.info
    low = all(kind.startswith("rank") for kind in kinds)
    assert isinstance(short.entries[path][0], LowRank if low else Dense)


def test_a_long_sequence_is_compacted_to_a_dense_change():
    lm = support.lm("llama")
    path = lm.projection(1).path
    made = weight_patch(lm, "FT", (), outer.settings(), {path: parts("rank three")}, {})
    total = made
    for _ in range(10):
        total = merge([total, made], compact=True)
    (part,) = total.entries[path]
    assert isinstance(part, Dense)
    assert torch.allclose(part.delta, 11 * made.dense(path), rtol=1e-4, atol=1e-4)


# -- memory -----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its peak")
def test_peak_memory_sees_what_was_given_back():
    with peak_memory(torch.device("cpu")) as peak:
        torch.ones(200 * 2**20, dtype=torch.uint8)  # gone at once
    assert 190 < peak.extra_mb < 300
    assert peak.total_mb > peak.extra_mb
    with peak_memory(torch.device("cpu")) as after:
        torch.ones(2**20, dtype=torch.uint8)
    assert after.extra_mb < 50  # the peak was forgotten


def test_peak_memory_elsewhere(monkeypatch, tmp_path):
    """Without /proc it is what the system counts since the start of the process."""
    monkeypatch.setattr(timing, "Path", lambda _: tmp_path / "nothing" / "here")
    with peak_memory(torch.device("cpu")) as peak:
        pass
    assert peak.total_mb > 50
    assert peak.extra_mb == 0


# -- the dict of one case ---------------------------------------------------------------------


def scores(*logprobs, argmax=None):
    target = tuple(range(len(logprobs)))
    return TokenScores(target, logprobs, tuple(argmax or target))


CASE = Case(
    "c",
    Edit("P", "new", ground_truth="true"),
    (
        Probe("R1", ("new",), "rephrase"),
        Probe("R2", ("new",), "rephrase"),
        Probe("N", ("near",), "locality/neighborhood"),
        Probe("M", ("new",), "locality/neighborhood"),  # the truth here is the new target
        Probe("D", ("far",), "locality/distracting"),
        Probe("H", ("hop", "jump"), "portability/one_hop"),
    ),
    generation=("P", "R1"),
    references=("paris rome",),
)
OPTIONS = EvalOptions(answer_tokens=3, continuation_tokens=5)


def written(**answers):
    return {Generate(prompt, 3): text for prompt, text in answers.items()}


HALF, TENTH = math.log(0.5), math.log(0.1)
BEFORE = Replies(
    {
        Score("P", "new"): scores(TENTH, argmax=[7]),
        Score("P", "true"): scores(HALF),
        Score("R1", "new"): scores(TENTH),
        Score("R1", "true"): scores(HALF),
        Score("R2", "new"): scores(HALF),
        Score("R2", "true"): scores(TENTH),
        Score("N", "near"): scores(HALF, HALF, argmax=[3, 4]),
        Score("N", "new"): scores(TENTH),
        Score("N", "true"): scores(TENTH),
        Score("M", "new"): scores(HALF),
        Score("M", "true"): scores(TENTH),
        Score("D", "far"): scores(TENTH),
        Score("D", "new"): scores(HALF),
        Score("D", "true"): scores(TENTH),
        Score("H", "hop"): scores(HALF, HALF, argmax=[0, 9]),
    }
)
AFTER = Replies(
    {**BEFORE.scores}
    | {
        Score("P", "new"): scores(math.log(0.8)),
        Score("R1", "new"): scores(0.0, math.log(0.81), argmax=[0, 5]),
        Score("N", "near"): scores(HALF, HALF, argmax=[3, 5]),
    },
    written(P="It is new.\nReally true", R1="New", R2="true", H="a jump")
    | {Generate("P", 5, 0): "a b c", Generate("R1", 5, 0): "paris rome"},
    perplexity=12.5,
)


def test_summary_by_hand():
    found = summarise(CASE, BEFORE, AFTER, scorers(OPTIONS, [CASE]))
    assert found == {
        "rewrite_acc": 1.0,
        "rewrite_prob": {
            "target_new": pytest.approx(0.8),
            "ground_truth": pytest.approx(0.5),
        },
        "rephrase_acc": 0.75,
        "rewrite_success": 1.0,
        "rewrite_diff": pytest.approx(0.3),
        "rephrase_success": 1.0,
        "rephrase_diff": pytest.approx(((0.9 - 0.5) + (0.5 - 0.1)) / 2),
        "locality": {
            "neighborhood_acc": 0.75,  # a half of N's tokens, all of M's
            "neighborhood_success": 1.0,  # of N alone
            "neighborhood_diff": pytest.approx(0.4),
            "distracting_acc": 1.0,
            "distracting_success": 0.0,
            "distracting_diff": pytest.approx(-0.4),
        },
        "portability": {"one_hop_acc": 0.5},
        "generation": {
            "rewrite_acc": 1.0,
            "rewrite_exact": 0.0,
            "rephrase_acc": 0.5,
            "rephrase_exact": 0.5,
            "portability_acc": 1.0,
            "portability_exact": 1.0,
        },
        "fluency": pytest.approx((1 / 3 + 0) / 2),
        "consistency": pytest.approx(1.0),  # "a b c" holds no word of the references
        "perplexity": 12.5,
    }


def test_before_the_edit_locality_is_one_by_definition():
    found = summarise(CASE, BEFORE, BEFORE)
    assert not [key for key in flatten(found["locality"]) if key.endswith("_acc")]
    assert found["locality"]["neighborhood_success"] == 1.0
    assert found["rewrite_acc"] == 0.0
    assert not {"generation", "fluency", "consistency", "perplexity"} & set(found)


def test_without_the_true_answer_there_is_no_success_of_the_edit():
    case = Case("c", Edit("P", "new"), CASE.probes)
    found = summarise(case, BEFORE, AFTER)
    assert not {"rewrite_success", "rewrite_diff", "rephrase_success"} & set(found)
    assert found["rewrite_prob"]["ground_truth"] is None
    assert found["locality"]["neighborhood_success"] == 1.0  # against the new target


def test_a_bare_case():
    found = summarise(Case("c", Edit("P", "new")), BEFORE, AFTER)
    assert found["locality"] == found["portability"] == {}
    assert "rephrase_acc" not in found


def test_several_edits_of_a_case_count_alike():
    case = Case("c", Edit("P", "new"), also=(Edit("H", "hop"),))
    assert summarise(case, BEFORE, AFTER)["rewrite_acc"] == 0.75


def test_fewer_continuations_than_prompts():
    found = summarise(CASE, BEFORE, AFTER, scorers(replace(OPTIONS, continuations=1), [CASE]))
    assert found["fluency"] == pytest.approx(1 / 3)
    assert found["consistency"] == 0.0


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_everything_is_asked_that_is_summarised(family):
    lm = shared_lm(family)
    options = EvalOptions(3, 5, 1, heldout="You can see the river from here.")
    seen = observe(lm, [CASE], options)
    assert set(seen.scores) == set(BEFORE.scores)
    assert set(seen.texts) == {*written(P="", R1="", R2="", H=""), Generate("P", 5, 0)}
    found = summarise(CASE, seen, seen, scorers(options, [CASE]))
    assert set(found) == {
        *("rewrite_acc", "rewrite_prob", "rewrite_success", "rewrite_diff", "rephrase_acc"),
        *("rephrase_success", "rephrase_diff", "locality", "portability", "generation"),
        *("fluency", "consistency", "perplexity"),
    }
    assert math.isnan(found["perplexity"]) is (family == "t5")


def test_a_chat_is_read_to_the_end_of_its_turn():
    tokenizer = tiny.tokenizer().__class__(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    tokenizer.eos_token = "</s>"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    lm = LM(tiny.model("llama"), tokenizer, chat_template=True)
    assert observe(lm, [CASE]).chat
    texts = {**AFTER.texts, **written(P="It is:\nnew")}
    turn, line = Replies(AFTER.scores, texts, chat=True), Replies(AFTER.scores, texts)
    asking = scorers(OPTIONS, [CASE])
    assert summarise(CASE, BEFORE, turn, asking)["generation"]["rewrite_acc"] == 1.0
    assert summarise(CASE, BEFORE, line, asking)["generation"]["rewrite_acc"] == 0.0
