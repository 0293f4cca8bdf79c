"""Collections that go on where they were killed, texts sampled once, factors made once."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from easyeditor import MEMITHyperParams, ROMEHyperParams
from easyeditor.associative.solve import Cholesky
from easyeditor.errors import MomentsError
from easyeditor.lm import LM
from easyeditor.methods.memit import MEMIT
from easyeditor.methods.rome import ROME
from easyeditor.second_moments import (
    Moments,
    _CacheFiles,
    accumulate,
    cache_file,
    checkpoint,
    cost,
    digest_of,
    moments,
    running_sum,
    self_sampled,
)
from support import EDITS, Interrupt, Snapshot, failing_at, forked, lm, same_bits

ALL, LAYERS = 10**6, (0, 2)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(tiny.TEXT.replace(". ", ".\n"), encoding="utf-8")
    return str(path)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every batch, and small batches."""
    monkeypatch.setattr(checkpoint, "MIN_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "MIN_INTERVAL_WRITES", 0.0)
    monkeypatch.setattr(accumulate, "TOKENS_PER_PASS", 32)


def files(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in folder.iterdir())


def half(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if "-half-" in path.name)
    return found


def same(found: dict[int, Moments], wanted: dict[int, Moments]) -> bool:
    return found.keys() == wanted.keys() and all(
        same_bits(found[i].matrix, wanted[i].matrix) and found[i].tokens == wanted[i].tokens
        for i in wanted
    )


def interrupted(target: LM, at: int, folder: Path, **settings: object) -> None:
    failing_at(target.blocks[0], at)
    before = Snapshot(target.model)
    with pytest.raises(Interrupt):
        moments(target, LAYERS, directory=folder, **settings)
    assert before.differences(target.model) == []


# -- going on ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("fold", [2**18, 100], ids=["float32", "folded"])
@pytest.mark.parametrize("tokens", [ALL, 201])
def test_a_collection_goes_on_with_the_same_bits(
    fold: int, tokens: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_sum, "MAX_FLOAT32_TOKENS", fold)
    settings = {"source": text, "tokens": tokens}
    straight = lm("llama")
    passes = failing_at(straight.blocks[0], 0)
    whole = moments(straight, LAYERS, directory=tmp_path / "whole", **settings)
    assert passes() > 5
    folder = tmp_path / "kept"
    interrupted(lm("llama"), 4, folder, **settings)
    interrupted(lm("llama"), 2, folder, **settings)  # and again, one batch later
    resumed = lm("llama")
    rest = failing_at(resumed.blocks[0], 0)
    assert same(moments(resumed, LAYERS, directory=folder, **settings), whole)
    assert rest() == passes() - 4
    assert files(folder) == ["0.safetensors", "2.safetensors"]


def killed(step: int, folder: Path, **settings: Any) -> None:
    """Collect in another process, which is killed (SIGKILL) in this forward pass."""

    def work() -> None:
        self_sampled.SAVE_SECONDS = 0.0
        target, steps = lm("llama"), count(1)

        def die(_module: object, _args: object) -> None:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        target.blocks[0].register_forward_pre_hook(die)
        moments(target, LAYERS, directory=folder, **settings)

    assert forked(work) == -signal.SIGKILL


@pytest.mark.usefixtures("always")
def test_a_process_that_was_killed_goes_on(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    killed(5, folder, source=text, tokens=ALL)
    stale = folder / f".{half(folder).name}.4711.part"  # killed while it wrote
    stale.write_bytes(b"x" * 100)
    settings = {"source": text, "tokens": ALL}
    resumed, straight = lm("llama"), lm("llama")
    rest, passes = (failing_at(target.blocks[0], 0) for target in (resumed, straight))
    whole = moments(straight, LAYERS, directory=tmp_path / "whole", **settings)
    assert same(moments(resumed, LAYERS, directory=folder, **settings), whole)
    assert rest() == passes() - 4
    assert files(folder) == ["0.safetensors", "2.safetensors"]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("damage", ["truncated", "garbage", "foreign", "other layers"])
def test_a_checkpoint_that_cannot_be_read_is_ignored(
    damage: str, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"source": text, "tokens": ALL}
    whole = moments(lm("llama"), LAYERS, directory=tmp_path / "whole", **settings)
    folder = tmp_path / "kept"
    interrupted(lm("llama"), 4, folder, **settings)
    file = half(folder)
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-100])
    elif damage == "garbage":
        file.write_bytes(b"x" * 500)
    elif damage == "foreign":
        save_file({"something": torch.zeros(2)}, file)
    else:
        tensors = {name: t[:5, :5].contiguous() for name, t in load_file(file).items()}
        info = {"seen": "5", "unfolded": "5", "sequences": "1", "tokens": "5"}
        save_file(tensors, file, metadata=info)
    target = lm("llama")
    with caplog.at_level(logging.WARNING):
        found = moments(target, LAYERS, directory=folder, **settings)
    assert "half-collected second moments" in caplog.text
    assert "computed again" in caplog.text
    assert same(found, whole)
    assert files(folder) == ["0.safetensors", "2.safetensors"]


@pytest.mark.usefixtures("always")
def test_other_layers_start_from_the_beginning(text: str, tmp_path: Path) -> None:
    settings = {"source": text, "tokens": ALL}
    interrupted(lm("llama"), 4, tmp_path / "kept", **settings)
    other = moments(lm("llama"), [1], directory=tmp_path / "kept", **settings)
    assert same(other, moments(lm("llama"), [1], directory=tmp_path / "whole", **settings))
    assert half(tmp_path / "kept").is_file()  # the first one may still go on


def test_a_short_collection_pays_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accumulate, "TOKENS_PER_PASS", 32)
    interrupted(lm("llama"), 4, tmp_path / "kept", source=text, tokens=ALL)
    assert not (tmp_path / "kept").exists()


def test_checkpoints_are_as_seldom_as_they_are_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = 0.0, []
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now))

    def write(*_: object) -> bool:
        nonlocal now
        written.append(now)
        now += 10
        return True

    monkeypatch.setattr(checkpoint, "write_cache_file", write)
    own = checkpoint.Checkpoint(tmp_path / "half.safetensors")
    state = running_sum.RunningSums([2], [torch.device("cpu")])
    for second in range(0, 600, 5):
        now = max(now, float(second))
        own.write_if_due(state, checkpoint.TextPosition())
    assert written == [60, 270, 480]  # 60 s, then 20 × 10 s after each


@pytest.mark.usefixtures("always")
def test_a_full_disk_gets_no_checkpoint(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * 2 * 4 * 64**2 - 1))
    with caplog.at_level(logging.WARNING):
        interrupted(lm("llama"), 4, tmp_path / "kept", source=text, tokens=ALL)
    assert caplog.text.count("no room") == 1
    assert files(tmp_path / "kept") == []


@pytest.mark.usefixtures("always")
def test_a_collection_that_was_killed_between_two_files_goes_on(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder = {"source": text, "tokens": ALL}, tmp_path / "kept"
    whole = moments(lm("llama"), LAYERS, directory=tmp_path / "whole", **settings)
    true, written = _CacheFiles.store, []

    def store(self: _CacheFiles, layer: int, made: Moments) -> Moments:
        if written:
            raise Interrupt
        written.append(layer)
        return true(self, layer, made)

    monkeypatch.setattr(_CacheFiles, "store", store)
    with pytest.raises(Interrupt):
        moments(lm("llama"), LAYERS, directory=folder, **settings)
    monkeypatch.undo()
    resumed = lm("llama")
    passes = failing_at(resumed.blocks[0], 0)
    assert same(moments(resumed, LAYERS, directory=folder, **settings), whole)
    assert passes() == 0
    assert files(folder) == ["0.safetensors", "2.safetensors"]


# -- text sampled from the model -----------------------------------------------------------------


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few short sequences at a time."""
    monkeypatch.setattr(self_sampled, "ROWS", 2)
    monkeypatch.setattr(self_sampled, "LENGTH", 5)


@pytest.mark.usefixtures("groups")
def test_a_sampling_goes_on_with_the_same_text(tmp_path: Path) -> None:
    straight, settings = lm("llama"), {"source": "self", "tokens": 60, "seed": 3}
    whole = moments(straight, LAYERS, directory=tmp_path / "whole", **settings)
    folder = tmp_path / "kept"
    interrupted(lm("llama"), 13, folder, **settings)  # in the third group of five passes
    assert files(folder) == ["text.safetensors"]
    resumed = lm("llama")
    passes = failing_at(resumed.blocks[0], 0)
    assert same(moments(resumed, LAYERS, directory=folder, **settings), whole)
    text = self_sampled.TEXTS(straight)[60, 3]
    assert self_sampled.TEXTS(resumed)[60, 3] == text
    groups_left = -(-len(text) // 2) - 2
    assert passes() == 5 * groups_left + 1


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("family", ["llama", "gemma2", "lfm2"])
def test_a_sampling_goes_on_within_a_group_with_the_same_bits(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_sampled, "SAVE_SECONDS", 0.0)
    settings = {"source": "self", "tokens": 60, "seed": 3}
    straight, resumed = lm(family), lm(family)
    whole = moments(straight, LAYERS[:1], directory=tmp_path / "whole", **settings)
    folder = tmp_path / "kept"
    for steps in (3, 7):  # the second time it fails in the next group
        failing_at(resumed.blocks[0], steps)
        with pytest.raises(Interrupt):
            moments(resumed, LAYERS[:1], directory=folder, **settings)
        resumed = lm(family)
    (file,) = folder.iterdir()
    stored = load_file(file)
    assert (len(stored["lengths"]), stored["steps"].shape) == (2, (1, 2))
    assert same(moments(resumed, LAYERS[:1], directory=folder, **settings), whole)
    text = self_sampled.TEXTS(straight)[60, 3]
    assert self_sampled.TEXTS(resumed)[60, 3] == text


@pytest.mark.usefixtures("groups")
def test_a_process_killed_while_it_samples_goes_on(tmp_path: Path) -> None:
    folder, settings = tmp_path / "kept", {"source": "self", "tokens": 40}
    killed(8, folder, **settings)
    (file,) = folder.iterdir()
    stored = load_file(file)
    assert (len(stored["lengths"]), stored["steps"].shape) == (2, (2, 2))
    resumed, straight = lm("llama"), lm("llama")
    drawn: list[int] = []
    real = torch.multinomial
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "multinomial", lambda *a, **m: drawn.append(1) or real(*a, **m))
        found = moments(resumed, LAYERS, directory=folder, **settings)
    groups_left = -(-len(self_sampled.TEXTS(resumed)[40, 0]) // 2) - 1
    assert len(drawn) == 5 * groups_left - 2  # what was drawn is only read again
    assert same(found, moments(straight, LAYERS, directory=tmp_path / "whole", **settings))
    assert self_sampled.TEXTS(resumed)[40, 0] == self_sampled.TEXTS(straight)[40, 0]


def test_a_large_vocabulary_says_what_it_costs_and_what_is_cheaper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(self_sampled, "ROWS", 1)
    monkeypatch.setattr(self_sampled, "LENGTH", 3)
    model = tiny.model("llama")
    model.resize_token_embeddings(262_144, mean_resizing=False)
    target = LM(model, tiny.tokenizer())
    settings = {"source": "self", "tokens": 5, "directory": tmp_path}
    with caplog.at_level(logging.WARNING):
        moments(lm("llama"), [0], **settings)
    assert caplog.text == ""  # what is quick announces nothing
    monkeypatch.setattr(cost, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(cost, "LONG_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING):
        moments(target, [0], **settings)
    sampling, reading = (record.message for record in caplog.records)
    assert "Sampling 5 tokens" in sampling
    assert "vocabulary: 262144" in sampling
    assert "1 of 5 tokens in" in sampling
    assert re.search(r"memory so far: [1-9]\d+ MB", sampling)
    assert "mom2_dataset='FILE.txt'" in sampling
    assert "--dataset FILE.txt" in sampling
    assert "Reading 5 tokens up to layer 0" in reading
    assert "mom2_n_tokens=N" in reading


def test_a_text_is_sampled_once_for_all_processes(tmp_path: Path) -> None:
    settings = {"source": "self", "tokens": 60, "directory": tmp_path / "kept"}
    moments(lm("llama"), [0], **settings)
    other = lm("llama")
    passes = failing_at(other.blocks[0], 0)
    found = moments(other, [1], **settings)
    assert passes() == 1
    alone = moments(lm("llama"), [1], **{**settings, "directory": tmp_path / "other"})
    assert same(found, alone)


@pytest.mark.parametrize("damage", ["garbage", "foreign", "no state"])
def test_a_damaged_text_is_sampled_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"source": "self", "tokens": 60, "directory": tmp_path / "kept"}
    whole = moments(lm("llama"), [0], **settings)
    for path in (tmp_path / "kept").iterdir():
        if "text" not in path.name:
            path.unlink()
        elif damage == "garbage":
            path.write_bytes(b"x" * 300)
        elif damage == "foreign":
            save_file({"something": torch.zeros(2)}, path)
        else:
            tensors = load_file(path)
            save_file({**tensors, "generator": torch.zeros(3, dtype=torch.uint8)}, path)
    with caplog.at_level(logging.WARNING):
        again = moments(lm("llama"), [0], **settings)
    assert "sampled texts" in caplog.text
    assert same(again, whole)


# -- factors -------------------------------------------------------------------------------------

Maker = Callable[[], "ROME | MEMIT"]


@pytest.fixture(params=["ROME", "MEMIT"])
def method(request: pytest.FixtureRequest, text: str, tmp_path: Path) -> Maker:
    """Makes a method that has met no model yet."""
    settings = {
        "v_num_grad_steps": 2,
        "context_template_length_params": (),
        "mom2_dataset": text,
        "mom2_n_tokens": 300,
        "stats_dir": str(tmp_path / "stats"),
    }
    if request.param == "ROME":
        return lambda: ROME(ROMEHyperParams(layers=[1], **settings))
    return lambda: MEMIT(MEMITHyperParams(layers=[0, 1], mom2_update_weight=1, **settings))


@pytest.fixture
def factored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths of what is factored while the test runs."""
    seen: list[int] = []
    real = Cholesky.of.__func__

    def of(kind: type[Cholesky], moment: torch.Tensor, **more: bool) -> Cholesky:
        seen.append(len(moment))
        return real(kind, moment, **more)

    monkeypatch.setattr(Cholesky, "of", classmethod(of))
    return seen


def patch_of(make: Maker) -> dict[str, torch.Tensor]:
    """What a new process would make: a method and a model that know nothing of earlier ones."""
    patch = make().edit(lm("llama"), EDITS[:1]).patch
    parts = {path: own[0] for path, own in patch.entries.items()}
    return {f"{path}.{name}": getattr(p, name) for path, p in parts.items() for name in "uv"}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


def factor_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "stats").glob("*.cholesky.safetensors"))


def kept_moments(tmp_path: Path) -> list[tuple[Path, torch.Tensor, dict[str, str]]]:
    """Every file of a moment, what is in it, and the words about it."""
    files = set((tmp_path / "stats").iterdir()) - set(factor_files(tmp_path))
    read = [(path, cache_file.read_cache_file(path, "")) for path in sorted(files)]
    assert read
    return [(path, found[0]["moment"], found[1]) for path, found in read]


def test_preparing_factors_and_an_edit_does_not(
    method: Maker, factored: list[int], tmp_path: Path
) -> None:
    """What factoring takes must not come on top of what an edit holds."""
    target, made = lm("llama"), method()
    made.initial_state(target)
    assert len(factored) == len(factor_files(tmp_path)) > 0
    assert not made._metrics._metrics
    factored.clear()
    made.edit(target, EDITS[:1])
    assert factored == []


def test_a_second_process_does_not_factor(
    method: Maker, factored: list[int], tmp_path: Path
) -> None:
    first = patch_of(method)
    made = len(factored)
    assert made == len(factor_files(tmp_path)) > 0
    second = patch_of(method)
    assert len(factored) == made
    assert equal(second, first)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "foreign", "narrower", "of another"])
def test_a_damaged_factor_is_made_again(
    damage: str, method: Maker, factored: list[int], tmp_path: Path
) -> None:
    first = patch_of(method)
    made = len(factored)
    for path in factor_files(tmp_path):
        whole, upper = path.read_bytes(), load_file(path)["upper"]
        info = cache_file.read_cache_file(path, "")[1]
        if damage == "truncated":
            path.write_bytes(whole[:-100])
        elif damage == "garbage":
            path.write_bytes(b"x" * 300)
        elif damage == "foreign":
            save_file({"something": torch.zeros(2)}, path)
        elif damage == "narrower":
            save_file({"upper": upper[:5, :5].contiguous()}, path, metadata=info)
        else:
            save_file({"upper": 2 * upper}, path, metadata={"moment": "0" * 16})
    assert equal(patch_of(method), first)
    assert len(factored) == 2 * made
    assert equal(patch_of(method), first)
    assert len(factored) == 2 * made


def test_a_changed_moment_never_meets_an_old_factor(
    method: Maker, factored: list[int], tmp_path: Path
) -> None:
    first = patch_of(method)
    made = len(factored)
    for path, moment, info in kept_moments(tmp_path):
        matrix = moment + torch.diag(torch.linspace(0, 1, len(moment)))
        save_file({"moment": matrix}, path, metadata=info | {"digest": digest_of(matrix)})
    changed = patch_of(method)
    assert len(factored) == 2 * made
    assert not equal(changed, first)
    for path in factor_files(tmp_path):
        path.unlink()
    assert equal(patch_of(method), changed)


@pytest.mark.parametrize("damage", ["one bit", "not a number", "zero", "no digest and zero"])
def test_a_damaged_moment_is_collected_again_with_a_warning(
    damage: str, method: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = patch_of(method)
    for path, moment, info in kept_moments(tmp_path):
        if damage == "one bit":
            content = bytearray(path.read_bytes())
            content[-11] ^= 1 << 6
            path.write_bytes(content)
            continue
        value = float("nan") if damage == "not a number" else 0.0
        stated = {k: v for k, v in info.items() if k != "digest" or not damage.startswith("no")}
        save_file({"moment": torch.full_like(moment, value)}, path, metadata=stated)
    assert equal(patch_of(method), first)
    assert "computed again" in caplog.text
    assert all(digest_of(moment) == info["digest"] for _, moment, info in kept_moments(tmp_path))


def test_one_flipped_bit_of_a_factor_is_seen(method: Maker, tmp_path: Path) -> None:
    first = patch_of(method)
    for path in factor_files(tmp_path):
        content = bytearray(path.read_bytes())
        content[-11] ^= 1 << 6
        path.write_bytes(content)
    assert equal(patch_of(method), first)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0])
def test_a_matrix_without_a_factor_is_refused_by_name(value: float) -> None:
    with pytest.raises(MomentsError, match="no Cholesky factor"):
        Cholesky.of(torch.full((4, 4), value))


def test_factoring_changes_no_file_of_a_moment(method: Maker, tmp_path: Path) -> None:
    patch_of(method)
    assert all(digest_of(moment) == info["digest"] for _, moment, info in kept_moments(tmp_path))


def test_a_moment_whose_file_states_no_digest_finds_its_factor(
    method: Maker, factored: list[int], tmp_path: Path
) -> None:
    first = patch_of(method)
    made = len(factored)
    for path, moment, info in kept_moments(tmp_path):
        del info["digest"]
        save_file({"moment": moment.clone()}, path, metadata=info)
    assert equal(patch_of(method), first)
    assert len(factored) == made


def test_a_factor_that_takes_the_memory_of_its_moment_has_the_same_bits() -> None:
    keys = torch.randn(40, 160, generator=torch.Generator().manual_seed(1))
    c = keys @ keys.T
    apart = Cholesky.of(c)
    inside = Cholesky.of(c, overwrite=True)
    assert same_bits(inside.upper, apart.upper)
    assert inside.upper.data_ptr() == c.data_ptr() != apart.upper.data_ptr()


def test_the_default_reads_the_texts_of_the_package(tmp_path):
    from easyeditor import MEMITHyperParams, ROMEHyperParams
    from easyeditor.data.corpus import own_paragraphs, own_texts

    assert sorted(" ".join(own_paragraphs()).split()) == sorted(" ".join(own_texts()).split())
    assert len(list(own_paragraphs())) * 10 < len(list(own_texts()))  # few first tokens
    straight = lm("llama")
    (moment,) = moments(straight, [1], tokens=300, directory=tmp_path).values()
    assert (moment.source, moment.tokens) == ("shipped", 300)
    assert not list(tmp_path.glob("*-text.safetensors"))  # nothing was sampled
    for settings in (ROMEHyperParams, MEMITHyperParams):
        assert settings().mom2_dataset == "shipped"
        assert settings.preset("smollm2-135m").mom2_dataset == "self"


def test_a_settled_cache_file_is_read_for_its_digest_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "numbers.safetensors"
    assert cache_file.write_cache_file(path, {"a": torch.ones(4)}, {}, "numbers")
    passes: list[Path] = []
    digests = cache_file._digests
    monkeypatch.setattr(cache_file, "_digests", lambda file: passes.append(file) or digests(file))
    for _ in range(2):  # written a moment ago: it could be written again in the same tick
        assert cache_file.read_cache_file(path, "numbers") is not None
    assert len(passes) == 2
    later = cache_file.time.time_ns() + 2 * cache_file.SETTLED_NS
    monkeypatch.setattr(cache_file, "time", SimpleNamespace(time_ns=lambda: later))
    for _ in range(3):
        assert cache_file.read_cache_file(path, "numbers") is not None
    assert len(passes) == 3
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cache_file.read_cache_file(path, "numbers") is None
    assert len(passes) == 4
