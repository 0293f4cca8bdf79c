"""Datasets by file or by name: the kind is told by the fields, a name is fetched once."""

import pytest

import easyeditor
from dataset_cases import HERE, KINDS, saved
from easyeditor import Case, CaseDataset, Edit, ZsreDataset, open_dataset
from easyeditor.data import DATASETS, fetch
from easyeditor.errors import DataError


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_the_kind_is_told_by_the_fields(name, kind):
    data = open_dataset(HERE / f"{name}.json")
    assert type(data) is kind
    assert type(open_dataset(str(HERE / f"{name}.json"), size=1)) is kind
    assert isinstance(data, CaseDataset)


def test_every_kind_is_listed_and_public():
    classes = {DATASETS.get(name) for name in DATASETS}
    assert classes == set(KINDS.values())
    assert {kind.__name__ for kind in classes} <= set(easyeditor.__all__)
    assert all(DATASETS.get(name).name == name and DATASETS.get(name).title for name in DATASETS)
    assert list(DATASETS)[-1] == "edits"  # asked last: it is the most general


def test_options_go_to_the_kind():
    file = HERE / "counterfact.json"
    assert open_dataset(file, distracting=True)[0].probes[-1].name == "distracting"
    with pytest.raises(
        DataError, match=r"CounterFactDataset has no option 'distract'.*Did you mean"
    ):
        open_dataset(file, distract=True)
    with pytest.raises(DataError, match=r"ZsreDataset has no option 'kind'. It takes config"):
        open_dataset(HERE / "zsre.json", kind="x")


def test_fields_nobody_knows(tmp_path):
    with pytest.raises(
        DataError, match=r"line 2, record 1: no kind .* fields a, b\. Known: unstructured, mquake"
    ):
        open_dataset(saved(tmp_path, [{"a": 1, "b": 2}]))
    with pytest.raises(DataError, match="must hold named fields, not a list"):
        open_dataset(saved(tmp_path, [[1]]))
    with pytest.raises(DataError, match="holds no edits"):
        open_dataset(saved(tmp_path, []))


def test_a_bad_record_further_down_does_not_hide_the_kind(tmp_path):
    text = '{"prompt": "a", "target": "b"}\n{"prompt'
    data = open_dataset(saved(tmp_path, text, "edits.jsonl"))
    assert data[0] == Case("0", Edit("a", "b"))


@pytest.mark.parametrize("name", ["worldfact", "zsr", "knowedit/zsrre"])
def test_names_nobody_knows(name):
    with pytest.raises(DataError, match=r"neither a file nor a name. Did you mean .* Names: world"):
        open_dataset(name)


@pytest.fixture
def source(monkeypatch, tmp_path):
    """One name whose file lies on this machine, and a cache of its own."""
    monkeypatch.setenv("EASYEDITOR_CACHE", str(tmp_path / "cache"))
    for key in fetch.OFFLINE:
        monkeypatch.delenv(key, raising=False)

    def set_to(url):
        table = {"zsre": fetch.Source("zsre", str(url), "ours")}
        monkeypatch.setattr(fetch, "sources", lambda: table)

    set_to((HERE / "zsre.json").as_uri())
    return set_to


def test_a_name_is_fetched_once(source, tmp_path, monkeypatch):
    data = open_dataset("zsre")
    assert type(data) is ZsreDataset
    assert data.path == tmp_path / "cache" / "datasets" / "zsre.json"
    source((tmp_path / "gone.json").as_uri())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert list(open_dataset("zsre")) == list(data)  # what is here needs no network
    assert [file.name for file in data.path.parent.iterdir()] == ["zsre.json"]


@pytest.mark.parametrize("key", fetch.OFFLINE)
def test_offline_nothing_is_asked(source, monkeypatch, key):
    monkeypatch.setenv(key, "1")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(DataError) as error:
        open_dataset("zsre")
    told = str(error.value)
    assert f"zsre is not here yet and {key} is set. Fetch it by hand from file://" in told
    assert told.endswith("open_dataset('zsre.json'), or easyedit data describe zsre.json")


def test_a_source_that_fails(source, tmp_path):
    source((tmp_path / "gone.json").as_uri())
    with pytest.raises(DataError, match=r"could not be fetched \(.*Fetch it by hand from file:.*"):
        open_dataset("zsre")
    page = tmp_path / "page.json"
    page.write_text("<html>Sign in</html>")
    source(page.as_uri())
    with pytest.raises(DataError, match=r"page\.json gave no JSON\. Fetch it by hand"):
        open_dataset("zsre")
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_the_hub_may_be_a_mirror(source, monkeypatch):
    source("https://huggingface.co/datasets/a/b.json")
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"by hand from https://mirror\.example/datasets/a/b\.json"):
        open_dataset("zsre")


@pytest.mark.parametrize("offline", ["", "1"])
def test_the_password_of_a_mirror_is_not_shown(source, monkeypatch, offline):
    source("https://huggingface.co/datasets/a/b.json")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:pass-word@127.0.0.1:9/")
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    with pytest.raises(DataError, match=r"from https://\*\*\*@127\.0\.0\.1:9/datasets") as error:
        open_dataset("zsre")
    assert "pass-word" not in str(error.value)


def test_sources():
    known = fetch.sources()
    assert {"counterfact", "zsre", "knowedit/zsre", "mquake"} <= set(known)
    for name, told in known.items():
        assert told.kind in DATASETS
        assert told.url.startswith("https://")
        assert told.url.endswith(".json")
        assert fetch.cached(name).suffix == ".json"
    assert len({fetch.cached(name) for name in known}) == len(known)


def test_worldfacts_belong_to_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(fetch.SHIPPED, "worldfacts", HERE / "edits.json")
    assert open_dataset("worldfacts")[0].id == "eiffel"
    monkeypatch.setitem(fetch.SHIPPED, "worldfacts", tmp_path / "gone.json")
    with pytest.raises(DataError, match="worldfacts belongs to the package but is missing"):
        open_dataset("worldfacts")
