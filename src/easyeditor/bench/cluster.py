"""An executor on Ray: one model per worker process, on this machine or on a cluster.

Only the driver writes. If a worker dies, its task is given to another; a task that has killed
several workers ends the run, and finished tasks stay recorded.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from easyeditor.bench.config import BenchmarkConfig
from easyeditor.bench.jobs import JobChain
from easyeditor.bench.worker import Result, Task, Worker
from easyeditor.errors import BenchError, MissingExtraError
from easyeditor.evaluate.query import Replies
from easyeditor.lm.model import LM
from easyeditor.progress import bar

log = logging.getLogger(__name__)
ATTEMPTS = 3
"""How often one task may lose its worker."""


class RayExecutor:
    """Executes task chains on workers of a Ray cluster; a context manager that stops them.

    Args:
        open_model: loads the model; called once in every worker.
        plan: the run.
        workers: how many; by default one per GPU of the cluster, or two without GPUs.
        address: of a running cluster; a local one is started by default.

    Raises:
        MissingExtraError: Ray is not installed.
        BenchError: the cluster cannot be reached, a worker could not start, or a task lost its
            worker three times.
    """

    def __init__(
        self,
        open_model: Callable[[], LM],
        plan: BenchmarkConfig,
        workers: int | None = None,
        address: str | None = None,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtraError.of("ray", "ray", "Working on a cluster") from None
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            _connect(ray, address)
        gpus = int(ray.cluster_resources().get("GPU", 0))
        self.size = workers or gpus or 2
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        if gpus:  # more workers than GPUs share them; a worker without a place would wait forever
            options["num_gpus"] = 1 / math.ceil(self.size / gpus)
        self._make = ray.remote(**options)(_Remote)
        self._open, self._plan = open_model, plan
        self._known: Any = None
        self._workers = [self._new() for _ in range(self.size)]

    def _new(self) -> Any:
        worker = self._make.remote(self._open, self._plan)
        if self._known is not None:
            worker.set_baseline.remote(self._known)
        return worker

    def set_baseline(self, before: Replies) -> None:
        """Send the unedited model's replies to every worker, also to those that start later."""
        self._known = self._ray.put(before)
        for worker in self._workers:
            worker.set_baseline.remote(self._known)

    def run(self, chains: Sequence[JobChain], what: str) -> None:
        """Run every task of every chain, one per worker at a time."""
        waiting = [(chain, task) for chain in chains if (task := chain.next()) is not None]
        idle = list(self._workers)
        busy: dict[Any, tuple[Any, JobChain, Task]] = {}
        lost: dict[int, int] = {}
        with bar(sum(chain.weight for chain in chains), what, "case") as progress:
            while waiting or busy:
                while waiting and idle:
                    worker = idle.pop()
                    chain, task = waiting.pop(0)
                    busy[worker.run_task.remote(task)] = (worker, chain, task)
                ready, _ = self._ray.wait(list(busy), num_returns=1)
                worker, chain, task = busy.pop(ready[0])
                result = self._result(ready[0])
                if result is None:
                    lost[id(chain)] = lost.get(id(chain), 0) + 1
                    if lost[id(chain)] >= ATTEMPTS:
                        raise BenchError(
                            f"{what}: {ATTEMPTS} workers died at the same task (positions "
                            f"{task.unit.start} to {task.unit.stop}). Most often memory ran out: "
                            "use fewer workers. Finished cases stay recorded."
                        )
                    log.warning("A worker died; another one takes over its task.")
                    self._workers.remove(worker)
                    self._workers.append(self._new())
                    idle.append(self._workers[-1])
                    waiting.insert(0, (chain, task))
                    continue
                idle.append(worker)
                lost.pop(id(chain), None)
                chain.done(task, result)
                following = chain.next()
                if following is not None:
                    waiting.insert(0, (chain, following))
                else:
                    progress.update(chain.weight)

    def _result(self, reference: Any) -> Result | None:
        errors = self._ray.exceptions
        try:
            result: Result = self._ray.get(reference)
        except errors.RayTaskError as error:  # what the task itself raised
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except errors.RayActorError as error:
            if error.actor_init_failed:  # raised by loading the model, and so by every attempt
                why = str(error).strip().splitlines()[-1]
                raise BenchError(f"A worker could not start: {why}") from None
            return None
        except (errors.ObjectLostError, errors.NodeDiedError, errors.OutOfMemoryError):
            return None
        return result

    def processes(self) -> list[int]:
        """Process ids of the workers."""
        pids: list[int] = self._ray.get([worker.pid.remote() for worker in self._workers])
        return pids

    def close(self) -> None:
        """Stop the workers, and the cluster if it was started here."""
        for worker in self._workers:
            self._ray.kill(worker)
        if self._started:
            self._ray.shutdown()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Remote:
    """A :class:`Worker` in a separate process."""

    def __init__(self, open_model: Callable[[], LM], plan: BenchmarkConfig) -> None:
        self._worker = Worker(open_model(), plan)

    def set_baseline(self, before: Replies) -> None:
        self._worker.set_baseline(before)

    def run_task(self, task: Task) -> Result:
        return self._worker.run_task(task)

    def pid(self) -> int:
        return os.getpid()


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise BenchError(f"No Ray cluster at {address or 'this machine'}: {error}") from None
