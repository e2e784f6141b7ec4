"""The Celery application of a worker process: built by a call, never at import.

Order of a pool child's life: fork -> `die_with_parent` -> memory limit -> Gateway (connections, key ring) -> tasks.
Nothing that holds a connection, a thread or a compiled kernel exists before the fork.
"""

from __future__ import annotations

import os

from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown

from gateway.jobs import celery_app
from gateway.log import configure_logging
from gateway.settings import Settings
from worker.process import die_with_parent, limit_memory
from worker.tasks import Runtime, register

__all__ = ["build_app"]


def build_app(settings: Settings, name: str) -> Celery:
    """The Celery application with every task registered and the pool children's start and end wired.

    `name` goes into lease owners and logs.  Called in the pool's parent process: its pid is what the children watch.
    """
    app = celery_app(settings)
    runtime = Runtime(settings, name)
    parent = os.getpid()

    def child_started(**_: object) -> None:
        die_with_parent(parent)
        limit_memory(settings.worker_memory_bytes)
        runtime.gw.index.ping()

    def child_ended(**_: object) -> None:
        runtime.close()

    def logging_wanted(**_: object) -> None:
        configure_logging(settings)

    setup_logging.connect(logging_wanted, weak=False)  # with a receiver here, Celery leaves logging alone
    worker_process_init.connect(child_started, weak=False)
    worker_process_shutdown.connect(child_ended, weak=False)
    register(app, runtime)
    return app
