"""Declared caches of a model: apart for its columns, and dropped where they are no longer valid."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from easyeditor.lm.caches import CacheStore, LMCache
from support import lm


def test_entries_hang_on_one_model_and_one_cache():
    first, second = LMCache("numbers"), LMCache("numbers")
    a, b = lm("llama"), lm("llama")
    first(a)["x"] = 1
    assert first(a) == {"x": 1}
    assert first(b) == second(a) == {}
    a.caches.clear()
    assert first(a) == {}


def test_entries_of_another_version_are_dropped():
    model = nn.Linear(2, 2)
    model.version = 1
    holder = SimpleNamespace(caches=CacheStore(), model=model)
    cache = LMCache("numbers", lambda module: module.version)
    cache(holder)["x"] = 1
    assert cache(holder) == {"x": 1}
    model.version = 2
    assert cache(holder) == {}


def test_an_encoder_and_its_decoder_share_no_entries():
    target, cache = lm("t5"), LMCache("numbers")
    cache(target)["x"] = 1
    assert cache(target.encoder_side()) == {}
    cache(target.encoder_side())["x"] = 2
    assert cache(target.encoder_side()) == {"x": 2}
