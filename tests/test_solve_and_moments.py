"""The closed form is the dense one, and second moments are those of the unedited model's tokens."""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import tiny
from easyeditor import LM
from easyeditor.associative.solve import Cholesky, closed_form
from easyeditor.errors import MissingExtraError, MomentsError
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.methods.rome import ROME, ROMEHyperParams
from easyeditor.second_moments import Moments, moments, self_sampled
from support import EDITS, Snapshot, lm, same_bits, shared_lm, unsettle

ALL = 10**6
DOCUMENTS = [
    "The Eiffel Tower is located in the city of Paris.",
    "Therefore we went home. Because it rained, I stayed inside.",
    "You can see",
    "",
    "Berlin is the capital of Germany and Rome is the capital of Italy.",
]


# -- the closed form -----------------------------------------------------------------------------


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moment(d_in: int, seed: int = 1) -> torch.Tensor:
    keys = random(d_in, 4 * d_in, seed=seed)
    return keys @ keys.T / (4 * d_in)


def dense(keys: torch.Tensor, c: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
    """Minimise ``tr Uᵀ C U + slack`` by its whole optimality system, nothing inverted by hand."""
    d_in, n = keys.shape
    top = torch.cat([c, keys], 1)
    bottom = torch.cat([keys.T, -torch.diag(slack)], 1)
    right = torch.cat([torch.zeros(d_in, n, dtype=c.dtype), torch.eye(n, dtype=c.dtype)])
    return torch.linalg.solve(torch.cat([top, bottom]), right)[:d_in]


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize(
    "slack", [0.0, 0.1, 1.0, 15000.0, "rising", "one exact"], ids=lambda s: f"slack={s}"
)
@pytest.mark.parametrize("identity", [True, False])
def test_the_small_system_solves_the_large_one(n: int, slack: float | str, identity: bool) -> None:
    keys, c = random(24, n), torch.eye(24).double() if identity else moment(24)
    factor = Cholesky.identity() if identity else Cholesky.of(c)
    given: float | torch.Tensor = 0.0
    if isinstance(slack, str):
        given = torch.linspace(0 if slack == "one exact" else 0.1, 2.0, n, dtype=torch.float64)
    else:
        given = slack
    each = torch.as_tensor(given, dtype=torch.float64).expand(n)
    found, wanted = closed_form(keys, factor, given), dense(keys, c, each)
    assert (found - wanted).norm() < 1e-3 * wanted.norm()  # the ridge on C is a part in 100,000
    exact = each == 0
    torch.testing.assert_close(
        (keys.T @ found)[exact], torch.eye(n, dtype=torch.float64)[exact], rtol=0, atol=1e-9
    )


def test_a_positive_slack_is_the_ridge_of_the_memit_paper() -> None:
    keys, c, strength = random(24, 5), moment(24), 15.0
    wanted = torch.linalg.solve(strength * c + keys @ keys.T, keys)
    found = closed_form(keys, Cholesky.of(c), strength)
    assert (found - wanted).norm() < 1e-3 * wanted.norm()


def test_the_same_exact_key_twice_is_one_constraint() -> None:
    key, other, c = random(24, 1), random(24, 1, seed=5), moment(24)
    twice = closed_form(torch.cat([key, key, other], 1), Cholesky.of(c), 0.0)
    once = closed_form(torch.cat([key, other], 1), Cholesky.of(c), 0.0)
    torch.testing.assert_close(twice[:, 0] + twice[:, 1], once[:, 0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(twice[:, 2], once[:, 1], rtol=1e-6, atol=1e-9)


def test_the_factor_applies_the_inverse() -> None:
    c, keys = moment(24), random(24, 3)
    found = Cholesky.of(c.float()).solve(keys.float())
    assert found.dtype == torch.float64
    assert (c @ found - keys).norm() < 1e-3 * keys.norm()
    assert torch.equal(Cholesky.identity().solve(keys), keys)


@pytest.mark.parametrize("rank", [1, 5, 23])
def test_a_moment_of_too_few_tokens_can_be_factored(rank: int) -> None:
    few, key = random(24, rank), random(24, 1, seed=9)
    solved = Cholesky.of(few @ few.T / rank).solve(key)
    assert solved.isfinite().all()
    assert float(key.T @ solved) > 0
    assert float(few[:, :1].T @ Cholesky.of(few @ few.T / rank).solve(few[:, :1])) < rank + 1e-6


# -- moments -------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "id": 1}) for text in DOCUMENTS))
    return str(path)


Collect = Callable[..., dict[int, Moments]]


@pytest.fixture
def collect(tmp_path: Path, file: str) -> Collect:
    """Moments from the small file, kept in this test's folder."""

    def collected(target: LM, layers: Sequence[int], **changes: object) -> dict[int, Moments]:
        settings = {"source": file, "tokens": ALL, "directory": tmp_path / "kept", **changes}
        return moments(target, layers, **settings)

    return collected


def tokens_of(target: LM, documents: Sequence[str] = DOCUMENTS) -> list[list[int]]:
    return [target.tokenizer(text)["input_ids"] for text in documents if text]


def naive(target: LM, layer: int, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Whole unpadded passes, one outer product per token, in float64."""
    keys: list[torch.Tensor] = []
    module = target.projection(layer).module
    handle = module.register_forward_pre_hook(
        lambda _module, args: keys.append(args[0].reshape(-1, args[0].shape[-1]).double())
    )
    with torch.no_grad():
        for ids in sequences:
            target.model(input_ids=torch.tensor([ids]))
    handle.remove()
    seen = torch.cat(keys)
    return torch.stack([torch.outer(key, key) for key in seen]).mean(0)


def assert_moment(made: Moments, wanted: torch.Tensor, tokens: int) -> None:
    assert made.tokens == tokens
    assert made.matrix.dtype == torch.float32
    assert (made.matrix - wanted).norm() < 1e-5 * wanted.norm()


class Passes:
    """Counts how often each block of a model runs."""

    def __init__(self, target: LM) -> None:
        self.counts = [0] * target.n_layers
        for i, block in enumerate(target.blocks):
            block.register_forward_pre_hook(self._counter(i))

    def _counter(self, i: int) -> Callable[..., None]:
        def count(_module: object, _args: object) -> None:
            self.counts[i] += 1

        return count


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_moments_are_the_mean_over_all_real_tokens(family: str, collect: Collect) -> None:
    target = shared_lm(family)
    sequences = tokens_of(target)
    assert len({len(ids) for ids in sequences}) > 2  # so there is padding to leave out
    for layer, made in collect(target, [2, 0]).items():
        assert_moment(made, naive(target, layer, sequences), sum(map(len, sequences)))


@pytest.mark.parametrize("tokens", [1, 10, 17, 40])
def test_no_more_tokens_are_read_than_asked(tokens: int, collect: Collect) -> None:
    target = shared_lm("llama")
    sequences, left = [], tokens
    for ids in tokens_of(target):
        sequences.append(ids[:left])
        left -= len(sequences[-1])
        if not left:
            break
    made = collect(target, [1], tokens=tokens)[1]
    assert_moment(made, naive(target, 1, sequences), tokens)


def test_no_more_documents_are_read_than_asked(collect: Collect) -> None:
    target = shared_lm("llama")
    sequences = tokens_of(target)[:2]
    made = collect(target, [1], documents=2)[1]
    assert_moment(made, naive(target, 1, sequences), sum(map(len, sequences)))


def test_a_long_document_is_read_in_windows(collect: Collect, tmp_path: Path) -> None:
    target, long = shared_lm("llama"), tmp_path / "long.txt"
    long.write_text(tiny.TEXT, encoding="utf-8")
    (ids,) = tokens_of(target, [tiny.TEXT])
    assert len(ids) > 128 + 1
    windows = [ids[i : i + 128] for i in range(0, len(ids), 128)]
    made = collect(target, [1], source=str(long))[1]
    assert_moment(made, naive(target, 1, windows), len(ids))


def test_a_file_of_one_endless_line_is_read_to_its_end(collect: Collect, tmp_path: Path) -> None:
    target, path = shared_lm("llama"), tmp_path / "one line.jsonl"
    text = tiny.TEXT * 20
    path.write_text(json.dumps({"text": text}))
    made = collect(target, [1], source=str(path))[1]
    assert made.tokens == pytest.approx(len(target.tokenizer(text)["input_ids"]), abs=1)


def test_one_pass_serves_all_layers_and_stops_at_the_highest(collect: Collect) -> None:
    target = lm("llama")
    passes = Passes(target)
    both = collect(target, [1, 0])
    assert passes.counts == [1, 1, 0]
    assert set(both) == {0, 1}


def test_a_model_in_training_is_read_at_rest(collect: Collect, tmp_path: Path) -> None:
    quiet = collect(lm("gpt2"), [1], directory=tmp_path / "a")[1]
    busy = lm("gpt2")
    unsettle(busy.model)
    before = Snapshot(busy.model)
    state = torch.get_rng_state()
    made = collect(busy, [1], directory=tmp_path / "b")[1]
    assert before.differences(busy.model) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert same_bits(made.matrix, quiet.matrix)


def test_a_chat_model_reads_plain_text(collect: Collect, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}user: {{ m['content'] }}\nreply: {% endfor %}"
    target = LM(tiny.model("llama"), tokenizer, chat_template=True)
    sequences = tokens_of(target)
    assert_moment(collect(target, [1])[1], naive(target, 1, sequences), sum(map(len, sequences)))


# -- sources -------------------------------------------------------------------------------------


def test_a_text_file_holds_one_document_per_line(collect: Collect, tmp_path: Path) -> None:
    target, path = shared_lm("llama"), tmp_path / "documents.txt"
    path.write_text("\n".join(DOCUMENTS), encoding="utf-8")
    made = collect(target, [1], source=str(path))[1]
    sequences = tokens_of(target)  # a line's end is no part of the document
    assert_moment(made, naive(target, 1, sequences), sum(map(len, sequences)))
    assert made.source == str(path)


@pytest.mark.parametrize("line", ['{"body": "The city"}', "The city", '["The city"]', '"text"'])
def test_a_jsonl_line_without_text_is_an_error_that_names_it(
    line: str, collect: Collect, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "The Eiffel Tower"}\n' + line)
    with pytest.raises(MomentsError, match=r"bad\.jsonl.*2"):
        collect(lm("llama"), [1], source=str(path))


@pytest.mark.parametrize("name", ["nowhere.txt", "nowhere.jsonl"])
def test_a_missing_file_is_an_error_that_names_it(
    name: str, collect: Collect, tmp_path: Path
) -> None:
    with pytest.raises(MomentsError, match=name):
        collect(lm("llama"), [1], source=str(tmp_path / name))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_text_is_an_error(content: str, collect: Collect, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    with pytest.raises(MomentsError, match=r"empty\.txt.*no text"):
        collect(lm("llama"), [1], source=str(path))


def test_a_dataset_without_its_package_says_how_to_get_it(
    collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    target = lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(MissingExtraError, match=r'pip install "easyedit-lm\[datasets\]"') as caught:
        collect(target, [1], source="wikipedia")
    assert isinstance(caught.value, ImportError)
    assert before.differences(target.model) == []


def test_a_dataset_is_streamed(collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*name: str, **options: object) -> Iterator[dict[str, str]]:
        asked.append((name, options))
        yield from ({"text": text} for text in DOCUMENTS)
        raise AssertionError("read further than asked")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    target = shared_lm("llama")
    made = collect(target, [1], source="some/texts", documents=len(DOCUMENTS) - 1)[1]
    assert asked == [(("some/texts",), {"split": "train", "streaming": True})]
    sequences = tokens_of(target, DOCUMENTS[:-1])
    assert_moment(made, naive(target, 1, sequences), sum(map(len, sequences)))


def test_a_dataset_that_cannot_be_read_is_an_error(
    collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(*_name: str, **_options: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(MomentsError, match=r"some/texts.*no network"):
        collect(lm("llama"), [1], source="some/texts")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "lfm2"])
def test_text_sampled_from_the_model_needs_nothing_else(
    family: str, collect: Collect, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    first = lm(family)
    made = collect(first, [0, 1], source="self", tokens=70)
    again = collect(lm(family), [0, 1], source="self", tokens=70, directory=tmp_path / "other")
    other = collect(lm(family), [0], source="self", tokens=70, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for layer in (0, 1):
        assert made[layer].tokens == 70
        assert same_bits(made[layer].matrix, again[layer].matrix)
    assert not torch.equal(made[0].matrix, other[0].matrix)
    sampled = list(self_sampled.TEXTS(first)[70, 0])
    cut = [sampled[0], sampled[1][: 70 - len(sampled[0])]]
    assert_moment(made[1], naive(first, 1, cut), 70)


def test_by_default_ten_tokens_per_width_are_read(collect: Collect) -> None:
    made = collect(lm("llama"), [1], source="self", tokens=None)[1]
    assert made.tokens == 10 * 64


def test_the_condition_number_is_that_of_the_matrix() -> None:
    assert Moments(torch.diag(torch.tensor([4.0, 1.0, 0.5])), 9, "x").condition_number() == 8
    few = torch.ones(3, 3)
    assert Moments(few, 1, "x").condition_number() > 1e12


# -- the cache -----------------------------------------------------------------------------------


def test_what_was_collected_is_read_back(collect: Collect) -> None:
    made = collect(lm("llama"), [0, 1])
    again = lm("llama")
    passes = Passes(again)
    read = collect(again, [0, 1])
    assert passes.counts == [0, 0, 0]
    for layer in (0, 1):
        assert same_bits(read[layer].matrix, made[layer].matrix)
        assert (read[layer].tokens, read[layer].source) == (made[layer].tokens, made[layer].source)
    collect(again, [1, 2, 0])
    assert passes.counts == [1, 1, 1]
    collect(again, [2])
    assert passes.counts == [1, 1, 1]


CHANGES = {
    "weights": {"seed": 1},
    "precision": {"dtype": torch.bfloat16},
    "tokens": {"tokens": 20},
    "documents": {"documents": 2},
}


@pytest.mark.parametrize("what", CHANGES)
def test_other_circumstances_are_other_moments(what: str, collect: Collect) -> None:
    collect(lm("llama"), [1])
    changes = CHANGES[what]
    model = {key: changes[key] for key in changes if key in {"seed", "dtype"}}
    target = lm("llama", **model)
    passes = Passes(target)
    collect(target, [1], **{key: changes[key] for key in changes if key not in model})
    assert passes.counts == [1, 1, 0]


def test_another_text_under_the_same_name_is_another_source(collect: Collect, file: str) -> None:
    target = lm("llama")
    first = collect(target, [1])[1]
    Path(file).write_text(json.dumps({"text": "She plays the piano well."}))
    assert collect(target, [1])[1].tokens != first.tokens


def test_every_matrix_counts_in_the_name_of_the_cache() -> None:
    model = tiny.model("llama", num_hidden_layers=12)
    before = fingerprint(model).digest
    unseen = []
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            kept = parameter.detach().clone()
            parameter.data.mul_(1.5)
            if fingerprint(model).digest == before:
                unseen.append(name)
            parameter.data.copy_(kept)
    assert fingerprint(model).digest == before
    assert unseen == []


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "another"])
def test_a_damaged_file_is_collected_again(damage: str, collect: Collect, tmp_path: Path) -> None:
    made = collect(lm("llama"), [1])[1].matrix.clone()  # as it is mapped from the file
    (path,) = (tmp_path / "kept").iterdir()
    whole = path.read_bytes()
    if damage == "another":
        save_file({"something": torch.zeros(2)}, path)
    else:
        path.write_bytes({"truncated": whole[:-100], "empty": b"", "garbage": b"x" * 500}[damage])
    target = lm("llama")
    passes = Passes(target)
    assert same_bits(collect(target, [1])[1].matrix, made)
    assert passes.counts == [1, 1, 0]
    assert same_bits(collect(target, [1])[1].matrix, made)
    assert passes.counts == [1, 1, 0]
    assert [p.name for p in (tmp_path / "kept").iterdir()] == [path.name]


def test_moments_that_cannot_be_kept_are_still_given(
    collect: Collect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        made = collect(lm("llama"), [1], directory=blocked / "kept")
    assert made[1].tokens > 0
    assert "could not be kept" in caplog.text


# -- patched models ------------------------------------------------------------------------------


@pytest.fixture
def rome(file: str, tmp_path: Path) -> ROME:
    return ROME(
        ROMEHyperParams(
            layers=[1],
            v_num_grad_steps=2,
            context_template_length_params=(),
            mom2_dataset=file,
            stats_dir=str(tmp_path / "stats"),
        )
    )


def test_a_patched_model_is_refused_unless_its_moments_are_there(
    collect: Collect, rome: ROME
) -> None:
    target = lm("llama")
    patch = rome.edit(target, EDITS[:1]).patch
    patch.apply(target.model)
    before = Snapshot(target.model)
    with pytest.raises(MomentsError, match="carries patches"):
        collect(target, [2])
    assert before.differences(target.model) == []
    patch.revert(target.model)
    made = collect(target, [2])
    patch.apply(target.model)
    passes = Passes(target)
    assert same_bits(collect(target, [2])[2].matrix, made[2].matrix)
    assert passes.counts == [0, 0, 0]
    with pytest.raises(MomentsError):
        collect(target, [1, 2], tokens=30)


def test_a_method_collects_once_and_tells_models_apart(rome: ROME) -> None:
    target = lm("llama")
    passes = Passes(target)
    rome.edit(target, EDITS[:1])
    first = passes.counts[0]
    rome.edit(target, EDITS[:1])
    assert passes.counts[0] - first < first
    other = lm("llama", seed=1)
    fresh = ROME(rome.hyperparams)
    (mine,), (its,) = (m.edit(other, EDITS[:1]).patch.entries.values() for m in (rome, fresh))
    assert torch.equal(mine[0].u, its[0].u)
    assert torch.equal(mine[0].v, its[0].v)
