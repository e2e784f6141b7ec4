"""What one worker process is: its environment, its limits and its life; `python -m worker.process` starts one.

A worker process is a Celery prefork parent that never touches an image, and pool children that do.  The parent's job
is to set the environment before numba can be imported (numba reads NUMBA_CACHE_DIR once, at import) and to fork;
everything that holds a connection, a key or a kernel is built in the child, after the fork (see
`worker.tasks.Runtime`).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from gateway.bootstrap import checked_policy
from gateway.errors import PalimpsestError
from gateway.lifecycle import announced
from gateway.settings import Settings, load_settings, python_environment, use_numba_cache

__all__ = ["die_with_parent", "limit_memory", "main", "worker_arguments"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h

QUEUES = ("index", "encode", "forward", "retrieve", "gpu")
HARD_LIMIT_FACTOR = 1.2  # the soft limit raises inside the task, the hard one kills the child; both count as an attempt


def die_with_parent(expected_parent: int) -> None:
    """Ask the kernel to SIGKILL this process when its parent dies, however it dies (Linux prctl(2)).

    `expected_parent` is the parent's pid as the parent itself wrote it down: if the parent died before the request
    was made, the request would never fire, so the process ends at once.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != expected_parent:
        os.kill(os.getpid(), signal.SIGKILL)


def limit_memory(limit_bytes: int) -> None:
    """Cap this process's private memory: an absurd size in a header then ends as MemoryError, not as a dead machine.

    RLIMIT_DATA counts private writable mappings (setrlimit(2)), so mapped files and libraries stay free.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    cap = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (cap, hard))


def pool_size(settings: Settings, queues: Sequence[str], wanted: int) -> int:
    """Pool children: forwarding takes one per destination and one more, so that a slow destination delays no other."""
    if "forward" not in queues:
        return wanted
    return max(wanted, len(settings.destinations) + 1)


def worker_arguments(settings: Settings, queues: Sequence[str], concurrency: int, name: str) -> list[str]:
    """The Celery command line of one worker process.

    No gossip or mingle, and heartbeats for Flower alone: nobody else listens, and each is traffic on the broker.
    """
    silent = [] if settings.flower else ["--without-heartbeat"]
    soft = settings.object_time_limit_seconds
    return [
        "--quiet",
        "worker",
        "--pool=prefork",
        f"--queues={','.join(queues)}",
        f"--concurrency={concurrency}",
        f"--hostname={name}@%h",
        f"--soft-time-limit={soft}",
        f"--time-limit={soft * HARD_LIMIT_FACTOR}",
        "--loglevel=WARNING",
        "--without-gossip",
        "--without-mingle",
        *silent,
    ]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line of `python -m worker.process`."""
    parser = argparse.ArgumentParser(prog="python -m worker.process", description="One Palimpsest worker process.")
    parser.add_argument("--queues", required=True, help="comma-separated, from: " + ", ".join(QUEUES))
    parser.add_argument("--concurrency", type=int, default=1, help="pool children (default 1)")
    parser.add_argument("--name", default="worker", help="name shown in logs and leases")
    parser.add_argument("--device", type=int, default=None, help="CUDA device to code on; default: this processor")
    arguments = parser.parse_args(argv)
    arguments.queues = [queue for queue in arguments.queues.split(",") if queue]
    unknown = sorted(set(arguments.queues) - set(QUEUES))
    if unknown or not arguments.queues:
        parser.error(f"unknown queues: {', '.join(unknown) or '(none given)'}")
    if arguments.device is not None and arguments.concurrency != 1:
        parser.error("one process a device: --device goes with --concurrency 1")
    return arguments


def check_device(number: int) -> None:
    """End this process with a clear text unless CUDA device `number` can be used; asked in a process of its own,
    because CUDA does not survive the fork that comes later.
    """
    command = [sys.executable, "-m", "codec.gpu_device", str(number)]
    found = subprocess.run(command, env=python_environment(Path(__file__).resolve().parent.parent), check=False)
    if found.returncode:
        raise SystemExit("this worker does not start: its device cannot be used (see above); CPU workers do its work")


def main(argv: Sequence[str] | None = None) -> None:
    """Start one worker process and serve its queues until SIGTERM (warm: running tasks finish first)."""
    arguments = parse_arguments(argv)
    settings = load_settings()
    try:
        checked_policy(settings)  # here, not in the children: a pool would start them again and again
    except PalimpsestError as error:
        raise SystemExit(f"this worker does not start: {error}") from None
    use_numba_cache(settings)
    if arguments.device is not None:
        check_device(arguments.device)
    from worker.app import build_app  # after the environment is set: imports reach numba only in the children

    restart = threading.Event()
    concurrency = pool_size(settings, arguments.queues, arguments.concurrency)
    app = build_app(settings, arguments.name, restart, arguments.device)
    try:
        with announced(settings, f"worker-{arguments.name}"):
            app.worker_main(worker_arguments(settings, arguments.queues, concurrency, arguments.name))
    finally:
        if restart.is_set():  # same pid, same parent, same death signal (prctl(2): kept over execve)
            os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    main()
