"""A real Celery worker for test_job_queue: `python queue_worker.py HOME TRACE` serves every queue."""

from __future__ import annotations

import sys
from pathlib import Path

from gateway.jobs import ENCODE_TASK, INDEX_TASK, QUEUES, RETRIEVE_TASK, celery_app
from gateway.settings import load_settings


def main(home: str, trace: str) -> None:
    """Tasks append what they got to the trace file; retrieve answers."""
    app = celery_app(load_settings(home=home))

    def note(*args: int | str) -> None:
        with Path(trace).open("a", encoding="utf-8") as file:
            file.write(" ".join(map(str, args)) + "\n")

    def retrieve(number: int, kind: str) -> dict[str, object]:
        if kind == "raise":
            raise ValueError("a secret")
        return {"number": number, "kind": kind}

    app.task(name=INDEX_TASK)(note)
    app.task(name=ENCODE_TASK)(note)
    app.task(name=RETRIEVE_TASK)(retrieve)
    options = [
        "--pool=solo",
        f"--queues={','.join(QUEUES)}",
        "--loglevel=ERROR",
        "--without-gossip",
        "--without-mingle",
    ]
    app.worker_main(["--quiet", "worker", *options, "--without-heartbeat"])


if __name__ == "__main__":
    main(*sys.argv[1:])
