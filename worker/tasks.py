"""The Celery tasks: thin edges around plain functions.  The only broad `except` of the worker rooms is here.

Messages carry ids and kinds only.  A task's return value matters to nobody but the retrieve caller: the database row
is the truth, a lost or doubled message changes nothing (every function below is idempotent and guarded by a lease).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import Celery

from codec.gpu import Batcher, NoDevice, open_device, open_processor
from gateway import metrics, steps
from gateway.accept import wake_up
from gateway.alive import Alive
from gateway.bootstrap import Gateway, build
from gateway.errors import Gone, IntegrityError, NotFound, PalimpsestError
from gateway.index import ENCODE_TASK, FORWARD_TASK, INDEX_TASK, RECODE_TASK, RETRIEVE_TASK, WARM_TASK
from gateway.instance import ForwardState, State
from gateway.jobs import new_owner
from gateway.settings import Settings
from worker.delivery import forward_instance, record_forward_failure
from worker.gpubatch import PATIENCE, Provers, process_batch
from worker.grouping import process_series
from worker.indexing import index_by_door, index_instance
from worker.pipeline import failure_reason, record_failure
from worker.prefetch import arrived, warm, warm_failed
from worker.recode import recode, recode_failed
from worker.retrieve import retrieve, retrieve_failure
from worker.verify import Verifier

__all__ = ["Runtime", "register"]

log = logging.getLogger(__name__)

Reply = dict[str, Any]


class Runtime:
    """What one pool child owns: a Gateway and a Verifier, both made after the fork, and the name it signs leases
    with. device: number of the CUDA device that it codes on, opened after the fork, too; None: it codes by itself.
    leave: ends the whole worker, warm; asked for when a device is stuck, which nothing but a new process heals.
    stopping: whether the whole worker is asked to end.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        device: int | None = None,
        leave: Callable[[], None] | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self.device = device
        self.stopping = stopping
        self._leave = leave
        self._name = name
        self._owner = ""
        self._gateway: Gateway | None = None
        self._verifier: Verifier | None = None
        self._provers: Provers | None = None
        self._batcher: Batcher | None = None
        self._alive: Alive | None = None

    @property
    def owner(self) -> str:
        """Lease owner: made after the fork, so every process and every life of it is another owner."""
        self._owner = self._owner or new_owner(self._name)
        return self._owner

    @property
    def gw(self) -> Gateway:
        """The Gateway of this process."""
        if self._gateway is None:
            self._gateway = build(self.settings)
        return self._gateway

    @property
    def alive(self) -> Alive:
        """The heartbeat of this process; whoever starts the process starts it."""
        if self._alive is None:
            device = "" if self.device is None else f"CUDA device {self.device}"
            self._alive = Alive(self.gw.index, self.owner, self._name, device)
        return self._alive

    @property
    def verifier(self) -> Verifier:
        """The proving process; it is started by its first use, so workers that never prove never have one."""
        if self._verifier is None:
            self._verifier = self._new_verifier()
        return self._verifier

    @property
    def provers(self) -> Provers:
        """The proving processes of a GPU worker."""
        if self._provers is None:
            self._provers = Provers(self._new_verifier, self.settings.gpu_provers)
        return self._provers

    @property
    def batcher(self) -> Batcher:
        """The device of a GPU worker. Raises NoDevice."""
        if self._batcher is None:
            self._batcher = Batcher(open_device(self.device or 0), open_processor(), patience=PATIENCE)
        return self._batcher

    def device_ready(self) -> bool:
        """Open the device, its kernels compiled; False where it cannot be used: then this worker ends, warm."""
        try:
            return self.batcher.lost is None
        except NoDevice as error:
            log.error("a GPU worker ends, CPU workers do its work: %s", error)
            if self._leave is not None:
                self._leave()
            return False

    def leave_if_stuck(self) -> None:
        """End this worker once its task is done if its device hangs; whoever supervises it starts another."""
        if self._leave is not None and self._batcher is not None and self._batcher.stuck:
            log.warning("a GPU worker ends: its device is stuck")
            self._leave()

    def _new_verifier(self) -> Verifier:
        # the memory that giving back will have, too; and time for a verdict before the task's own limit
        return Verifier(
            self.settings.keys_dir,
            timeout=self.settings.object_time_limit_seconds / 2,
            memory_bytes=self.settings.worker_memory_bytes,
            reference_every=self.settings.reference_every,
            settings=self.settings,
        )

    def end_verifier(self) -> None:
        """End the proving process, if there is one; the next proof starts another."""
        if self._verifier is not None:
            self._verifier.close()

    def close(self) -> None:
        """End the proving processes, let go of the device and close connections."""
        for owned in (self._alive, self._verifier, self._provers, self._batcher, self._gateway):
            if owned is not None:
                owned.close()
        self._alive = None
        self._verifier, self._provers, self._batcher, self._gateway = None, None, None, None


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """run: the work; failed: what is recorded when it raised, and what the caller is told."""

    run: Callable[..., Reply]
    failed: Callable[..., Reply]


def run_encode(runtime: Runtime, instance_id: int) -> Reply:
    """palimpsest.encode [instance id]: RECEIVED to ARCHIVED; then hands the forwards to the queue at once.

    What waits of the same series is taken along by a GPU worker, and where the policy groups series: their own
    messages then find nothing left to do.
    """
    if runtime.device is None:
        states = process_series(runtime.gw, runtime.verifier, instance_id, runtime.owner)
    else:
        try:
            states = process_batch(runtime.gw, runtime.provers, instance_id, runtime.owner, runtime.batcher)
        finally:
            runtime.leave_if_stuck()
    for each in states:
        for row in runtime.gw.index.forwards(each, ForwardState.WAITING):
            wake_up(runtime.gw, row.id)  # a message is found by its one argument
    arrived(runtime.gw, [each for each, state in states.items() if state == State.ARCHIVED])
    return {"state": states.get(instance_id, "not-claimed")}


def encode_failed(runtime: Runtime, error: BaseException, instance_id: int) -> Reply:
    """Give the row back, due again by class of error."""
    # the error may have come in the middle of a proof (time limit): an answer still in the pipe would be taken for the
    # next object's
    runtime.end_verifier()
    record_failure(runtime.gw, instance_id, runtime.owner, error)
    return {"error": failure_reason(error)}


def run_index(runtime: Runtime, instance_id: int) -> Reply:
    """palimpsest.index [instance id]: attributes and metadata."""
    return {"complete": index_instance(runtime.gw, instance_id)}


def index_failed(runtime: Runtime, error: BaseException, instance_id: int) -> Reply:
    """Ours to mend: the sweep sends it again. The file's fault: what the door knew must do, or it would never end."""
    if not isinstance(error, (PalimpsestError, OSError)):
        index_by_door(runtime.gw, instance_id)
    return {"error": failure_reason(error)}


def run_forward(runtime: Runtime, forward_id: int) -> Reply:
    """palimpsest.forward [forward id]: this one and whatever else is due for its destination."""
    return {"delivered": forward_instance(runtime.gw, forward_id, runtime.owner, runtime.verifier)}


def forward_failed(runtime: Runtime, error: BaseException, forward_id: int) -> Reply:
    """Give the forward back; what no retry heals becomes a dead letter."""
    runtime.end_verifier()  # as in `encode_failed`
    reason = failure_reason(error)
    permanent = isinstance(error, (Gone, IntegrityError, NotFound))
    record_forward_failure(runtime.gw, forward_id, runtime.owner, reason, permanent=permanent)
    return {"error": reason}


def run_retrieve(runtime: Runtime, instance_id: int, kind: str) -> Reply:
    """palimpsest.retrieve [instance id, kind]: a file in the cache, or the problem."""
    began, outcome = steps.now(), "failure"
    try:
        found = retrieve(runtime.gw, instance_id, kind)
        outcome = "success"
    finally:
        steps.retrieved(kind, began, outcome)
    return found


def retrieve_failed(runtime: Runtime, error: BaseException, instance_id: int, kind: str) -> Reply:
    """The problem as the API passes it on."""
    return retrieve_failure(runtime.gw, instance_id, error)


def run_warm(runtime: Runtime, instance_id: int, left: int) -> Reply:
    """palimpsest.warm [instance id, how many more of its series]: a copy in the cache before anybody asks."""
    return warm(runtime.gw, instance_id, left)


def warm_task_failed(runtime: Runtime, error: BaseException, instance_id: int, left: int) -> Reply:
    """Nothing waits for it."""
    return warm_failed(error)


def run_recode(runtime: Runtime, instance_id: int) -> Reply:
    """palimpsest.recode [instance id]: a smaller archive object for what was coded in a hurry."""
    return {"outcome": recode(runtime.gw, runtime.verifier, instance_id, runtime.owner, runtime.stopping)}


def recode_task_failed(runtime: Runtime, error: BaseException, instance_id: int) -> Reply:
    """The object that there is stays; nothing waits for another."""
    runtime.end_verifier()  # as in `encode_failed`
    recode_failed(runtime.gw, instance_id, runtime.owner, error)
    return {"error": failure_reason(error)}


TASKS: dict[str, TaskSpec] = {
    ENCODE_TASK: TaskSpec(run_encode, encode_failed),
    INDEX_TASK: TaskSpec(run_index, index_failed),
    FORWARD_TASK: TaskSpec(run_forward, forward_failed),
    RETRIEVE_TASK: TaskSpec(run_retrieve, retrieve_failed),
    WARM_TASK: TaskSpec(run_warm, warm_task_failed),
    RECODE_TASK: TaskSpec(run_recode, recode_task_failed),
}


def register(app: Celery, runtime: Runtime) -> None:
    """Register every task with the application."""
    for name, spec in TASKS.items():
        app.task(name=name, shared=False)(_edge(runtime, name, spec))


def _edge(runtime: Runtime, name: str, spec: TaskSpec) -> Callable[..., Reply]:
    """The task edge: no error leaves it, each is recorded where its class says; logs name ids and reasons, never
    texts.
    """

    def task(*args: int | str) -> Reply:
        try:
            with runtime.alive.working(name.rpartition(".")[2], args[0] if isinstance(args[0], int) else None):
                return spec.run(runtime, *args)
        except Exception as error:  # noqa: BLE001 - the Celery task edge, one of the project's three
            reason = failure_reason(error)
            metrics.TASKS_FAILED.labels(task=name, reason=reason).inc()
            # what we did not foresee is told with its place in the code; what we did, with its reason alone
            unforeseen = not isinstance(error, PalimpsestError)
            log.warning("task failed", extra={"task": name, "reason": reason}, exc_info=unforeseen)
            return _record(runtime, spec, error, args)

    return task


def _record(runtime: Runtime, spec: TaskSpec, error: BaseException, args: tuple[int | str, ...]) -> Reply:
    """Write the failure down; if even that fails (no database), the lease runs out by itself and the sweep tries
    again.
    """
    try:
        return spec.failed(runtime, error, *args)
    except PalimpsestError as second:
        return {"error": second.reason}
