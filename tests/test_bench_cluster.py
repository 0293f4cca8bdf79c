"""The same runs on a local Ray cluster: workers are killed, nothing is lost or told twice."""

from __future__ import annotations

import os
import sys
import types
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import benching
import tiny
from benching import killing, numbers, plan, records, tables
from easyeditor import load
from easyeditor.bench import cluster
from easyeditor.bench.cluster import RayExecutor
from easyeditor.bench.jobs import IndependentJob, SequentialJob
from easyeditor.bench.runner import SerialExecutor, run
from easyeditor.bench.worker import Worker
from easyeditor.errors import BenchError, MissingExtraError, ModelLoadError

QUIET = pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")


@pytest.fixture(autouse=True, scope="module")
def one_alone():
    """Every case of the single protocol is a unit, so that there is something to share."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("easyeditor.bench.config.CASES_PER_FORWARD", 1)
        yield


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """What loads the model in a worker: from a folder, as for users."""
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny.model("llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return partial(load, str(folder), device="cpu")


def children():
    """Command lines of what this process started and is still there (on Linux)."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = status.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.append(status.with_name("cmdline").read_bytes())
    return found


@pytest.fixture(scope="module")
def ray():
    """A cluster with one CPU; whatever happens, it is gone afterwards."""
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    assert not [told for told in children() if b"ray" in told]


# -- a real cluster ---------------------------------------------------------------------------


@QUIET
@pytest.mark.slow
def test_a_worker_is_killed(ray, opened, monkeypatch, tmp_path):
    lm, wanted = opened(), plan("single", ("FT", "ROME"))
    whole = run(lm, wanted, tmp_path / "whole")
    with RayExecutor(opened, wanted, workers=2) as executor:
        first = executor.processes()
        assert len(set(first)) == 2
        killing(monkeypatch, IndependentJob, executor, 1)
        run(lm, wanted, tmp_path / "out", executor)
        now = executor.processes()
        assert len({*first, *now}) == 3
        assert [os.getpid() in pids for pids in (first, now)] == [False, False]
    assert numbers(tmp_path / "out") == numbers(whole)
    assert tables(tmp_path / "out") == tables(whole)
    assert ray.is_initialized()  # it was there before


@pytest.mark.slow
@QUIET
def test_a_sequence_goes_on_in_another_worker(ray, opened, monkeypatch, tmp_path):
    lm, wanted = opened(), plan("sequential", ("MEMIT",))
    whole = run(lm, wanted, tmp_path / "whole")
    with RayExecutor(opened, wanted, workers=1) as executor:
        killing(monkeypatch, SequentialJob, executor, 2)
        run(lm, wanted, tmp_path / "out", executor)
    assert numbers(tmp_path / "out") == numbers(whole)
    assert tables(tmp_path / "out") == tables(whole)


@pytest.mark.slow
@QUIET
def test_a_task_that_kills_every_worker(ray, opened, caplog, tmp_path):
    def fatal():  # a model that takes its process with it when it is asked for anything
        lm = opened()
        lm.model.register_forward_pre_hook(lambda *_: os._exit(1))
        return lm

    wanted = plan()
    with (
        RayExecutor(fatal, wanted, workers=1) as executor,
        pytest.raises(BenchError, match=r"unedited model: 3 workers died at the same task"),
    ):
        run(opened(), wanted, tmp_path / "out", executor)
    assert caplog.text.count("A worker died; another one takes over") == 2
    assert not (tmp_path / "out" / "FT").exists()
    run(opened(), wanted, tmp_path / "out")  # the folder was let go, and nothing is wrong with it


@pytest.mark.slow
@QUIET
def test_a_worker_that_cannot_load_the_model(ray, opened, tmp_path):
    def missing():
        raise ModelLoadError("No folder './here' on this host.")

    with (
        RayExecutor(missing, plan(), workers=1) as executor,
        pytest.raises(BenchError, match=r"A worker could not start: .*No folder './here'"),
    ):
        run(opened(), plan(), tmp_path / "out", executor)


# -- what a cluster may do, played --------------------------------------------------------------


class Played:
    """The part of Ray the executor uses, in this process: calls happen when waited for."""

    class Error(Exception):
        cause = None
        actor_init_failed = False

    exceptions = types.SimpleNamespace(
        RayTaskError=type("RayTaskError", (Error,), {}),
        RayActorError=type("RayActorError", (Error,), {}),
        ObjectLostError=type("ObjectLostError", (Error,), {}),
        NodeDiedError=type("NodeDiedError", (Error,), {}),
        OutOfMemoryError=type("OutOfMemoryError", (Error,), {}),
    )

    def __init__(self, gpus=0):
        self.gpus, self.options, self.deaths, self.calls = gpus, [], set(), 0
        self.error = self.exceptions.RayActorError

    is_initialized = staticmethod(lambda: True)
    put = staticmethod(lambda value: value)
    kill = staticmethod(lambda actor: None)

    def cluster_resources(self):
        return {"GPU": self.gpus} if self.gpus else {}

    def remote(self, **options):
        self.options.append(options)
        ray = self

        class Method:
            def __init__(self, bound):
                self.bound = bound

            def remote(self, *args):
                return lambda: self.bound(*args)

        class Actor:
            def __init__(self, kind, *args):
                self._inner = kind(*args)
                self.set_baseline = types.SimpleNamespace(remote=self._inner.set_baseline)

            @property
            def run_task(self):
                return Method(self._do)

            def _do(self, task):
                ray.calls += 1
                if ray.calls in ray.deaths:
                    raise ray.error("died")
                return self._inner.run_task(task)

        return lambda kind: types.SimpleNamespace(remote=lambda *args: Actor(kind, *args))

    def wait(self, calls, num_returns):
        return calls[-1:], calls[:-1]  # the latest first: no order may be relied on

    def get(self, call):
        return call()


@pytest.fixture
def played(monkeypatch):
    ray = Played()
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


@pytest.mark.slow
def test_every_step_of_a_sequence_may_lose_its_worker(played, tmp_path):
    """Three deaths are too many at one task only."""
    wanted = plan("sequential")
    whole = run(benching.lm(), wanted, tmp_path / "whole")
    played.deaths = {1, 2, 4, 6, 7, 9, 10}  # once or twice before each of the five tasks
    with RayExecutor(benching.lm, wanted, workers=1) as executor:
        run(benching.lm(), wanted, tmp_path / "out", executor)
    assert played.calls == 5 + 7
    assert numbers(tmp_path / "out") == numbers(whole)


@pytest.mark.parametrize("name", ["ObjectLostError", "NodeDiedError", "OutOfMemoryError"])
def test_other_ways_to_lose_a_worker(played, name, tmp_path):
    played.error, played.deaths = getattr(played.exceptions, name), {2}
    with RayExecutor(benching.lm, plan(), workers=2) as executor:
        run(benching.lm(), plan(), tmp_path, executor)
    assert [r["position"] for r in records(tmp_path)] != [0, 1, 2]  # in the order they came
    assert sorted(r["position"] for r in records(tmp_path)) == [0, 1, 2]


def test_what_a_task_raises_goes_up_and_the_rest_is_kept(played, monkeypatch, tmp_path):
    real, tasks = Worker.run_task, []

    def run_task(self, task):
        tasks.append(task)
        if len(tasks) == 3:
            error = played.exceptions.RayTaskError("in a worker")
            error.cause = MemoryError("no room")
            raise error
        return real(self, task)

    with monkeypatch.context() as patched:
        patched.setattr(Worker, "run_task", run_task)
        with RayExecutor(benching.lm, plan(), workers=1) as executor, pytest.raises(MemoryError):
            run(benching.lm(), plan(), tmp_path / "out", executor)
    assert len(records(tmp_path / "out")) == 1
    whole = run(benching.lm(), plan(), tmp_path / "whole")
    run(benching.lm(), plan(), tmp_path / "out", SerialExecutor(Worker(benching.lm(), plan())))
    assert numbers(tmp_path / "out") == numbers(whole)


@pytest.mark.parametrize(
    ("gpus", "workers", "size", "share"),
    [
        (0, None, 2, None),
        (0, 5, 5, None),
        (4, None, 4, 1),
        (4, 2, 2, 1),
        (4, 8, 8, 0.5),
        (2, 3, 3, 0.5),
    ],
)
def test_every_worker_finds_a_place(played, gpus, workers, size, share):
    played.gpus = gpus
    with RayExecutor(benching.lm, plan(), workers) as executor:
        assert executor.size == size
    (options,) = played.options
    assert options.get("num_gpus") == share
    assert "num_cpus" not in options  # then an idle worker would hold a core


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"easyedit-lm\[ray\]"):
        RayExecutor(benching.lm, plan())


@pytest.mark.parametrize("error", [ConnectionError, RuntimeError, ValueError, OSError])
def test_no_cluster_there(error, played, monkeypatch):
    def init(**_):
        raise error("refused")

    monkeypatch.setattr(played, "is_initialized", lambda: False)
    monkeypatch.setattr(played, "init", init, raising=False)
    with pytest.raises(BenchError, match=r"No Ray cluster at 10.0.0.1:6379: refused"):
        RayExecutor(benching.lm, plan(), address="10.0.0.1:6379")
    with pytest.raises(BenchError, match="No Ray cluster at this machine: refused"):
        RayExecutor(benching.lm, plan())


def test_the_module_needs_no_ray():
    assert "ray" not in vars(cluster)
