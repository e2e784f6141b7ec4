"""The Celery application of a worker process: built by a call, never at import.

Order of a pool child's life: fork -> `die_with_parent` -> memory limit -> Gateway (connections, key ring) -> tasks.
Nothing that holds a connection, a thread or a compiled kernel exists before the fork.
"""

from __future__ import annotations

import mmap
import os
import signal
from threading import Event
from typing import Any

from celery import Celery, bootsteps
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown, worker_shutting_down
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from gateway import steps
from gateway.jobs import celery_app
from gateway.log import configure_logging
from gateway.metrics_read import ROLES
from gateway.settings import Settings
from worker.device_load import watch_load
from worker.process import die_with_parent, limit_memory
from worker.tasks import Runtime, register

__all__ = ["build_app"]

WATCH_SECONDS = 1.0
DEVICE_START_SECONDS = 600.0


def build_app(settings: Settings, name: str, restart: Event, device: int | None = None) -> Celery:
    """The Celery application with every task registered and the pool children's start and end wired.

    `name` goes into lease owners and logs. `restart` is set, and a warm shutdown begun, when the broker was replaced.
    Called in the pool's parent process: its pid is what the children watch. `device`: see `worker.tasks.Runtime`.
    """
    app = celery_app(settings)
    if device is not None:  # a child that compiles kernels for a device is up when it has done so; the default is 4 s
        app.conf.worker_proc_alive_timeout = DEVICE_START_SECONDS
    parent = os.getpid()
    stopping = mmap.mmap(-1, 1)  # shared with the children; a byte, because a signal handler may take no lock
    runtime = Runtime(
        settings, name, device, leave=lambda: os.kill(parent, signal.SIGTERM), stopping=lambda: stopping[0] != 0
    )
    ended = Event()

    def child_started(**_: object) -> None:
        die_with_parent(parent)
        if device is None:  # a CUDA driver maps far more than it uses: there the container's own limit has to do
            limit_memory(settings.worker_memory_bytes)
        runtime.gw.index.ping()
        runtime.alive.start()
        steps.watch(settings, role_of(name))
        if device is not None and runtime.device_ready():
            runtime.alive.on(str(runtime.batcher))  # compiled before the first object waits for it
            watch_load(runtime.alive, runtime.batcher.uuid, ended)

    def child_ended(**_: object) -> None:
        ended.set()
        runtime.close()
        steps.unwatch()

    def stop_begun(**_: object) -> None:
        stopping[0] = 1

    def logging_wanted(**_: object) -> None:
        configure_logging(settings)

    setup_logging.connect(logging_wanted, weak=False)  # with a receiver here, Celery leaves logging alone
    worker_shutting_down.connect(stop_begun, weak=False)
    worker_process_init.connect(child_started, weak=False)
    worker_process_shutdown.connect(child_ended, weak=False)
    app.steps["worker"].add(broker_watch(restart))
    register(app, runtime)
    return app


def role_of(name: str) -> str:
    """The role in metrics of a worker of this name: its first word, if it is one that we give."""
    word = name.partition("-")[0]
    return word if word in (*ROLES, "gpu") else "worker"


def broker_watch(restart: Event) -> type[bootsteps.StartStopStep]:
    """A worker step that ends the worker, warm, when the broker it started with is gone.

    Measured with Celery and kombu 5.7: an acknowledgement that fails because the broker died is logged and dropped, its
    prefetch slot is never given back, and a worker whose slots were all taken consumes nothing ever again. A fresh
    process is the one state that is known to be right; what was lost on the way is sent again by the sweep.
    """

    class BrokerWatch(bootsteps.StartStopStep):  # type: ignore[misc]
        """Compares the server's run id (new at each start of a Redis-protocol server) with the first one seen."""

        requires = {"celery.worker.components:Timer"}
        first: str | None = None

        def start(self, worker: Any) -> None:
            """Look now and then, in the worker's own event loop: no thread lives in a process that forks."""
            worker.timer.call_repeatedly(WATCH_SECONDS, self.look, (worker,))

        def look(self, worker: Any) -> None:
            """Begin a warm shutdown if the broker is another one now; a broker that is away is waited for."""
            try:
                with worker.app.connection_for_read() as connection:
                    found = str(connection.default_channel.client.info("server")["run_id"])
            except (KombuError, RedisError, OSError):
                return
            self.first = self.first or found
            if found != self.first and not restart.is_set():
                restart.set()
                os.kill(os.getpid(), signal.SIGTERM)

    return BrokerWatch
