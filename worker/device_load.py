"""What a GPU is used for, by everybody who uses it, as the driver's own tool says it: for the worker's heartbeat.

`nvidia-smi` comes with the driver, into containers too (capability `utility`). It runs beside the worker, in a thread
of its own: a driver that hangs costs the figures, never the work or the heartbeat.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.alive import Alive

__all__ = ["NOT_KNOWN", "Load", "nvidia_smi", "parse", "watch_load"]

READ_SECONDS: Final = 15.0
ANSWER_SECONDS: Final = 10.0
MIB: Final = 1 << 20


class Load(NamedTuple):
    """memory_used, memory_total: bytes; busy: percent of the last moment in which a kernel ran; None: not known."""

    memory_used: int | None
    memory_total: int | None
    busy: int | None


NOT_KNOWN: Final = Load(None, None, None)


def nvidia_smi(uuid: str) -> Load:
    """The load of the GPU of that UUID, NOT_KNOWN where there is no such tool, GPU or answer."""
    program = shutil.which("nvidia-smi")
    if program is None or not uuid:
        return NOT_KNOWN
    query = "--query-gpu=memory.used,memory.total,utilization.gpu"
    command = [program, query, "--format=csv,noheader,nounits", f"--id={uuid}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, env={}, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return NOT_KNOWN
    return parse(done.stdout)


def parse(text: str) -> Load:
    """One line 'MiB, MiB, percent'; what is no number ('[N/A]' on shares of a GPU) is not known."""
    values = [int(each) if each.strip().isdecimal() else None for each in text.strip().split(",")]
    if len(values) != 3:
        return NOT_KNOWN
    used, total, busy = values
    return Load(None if used is None else used * MIB, None if total is None else total * MIB, busy)


def watch_load(alive: Alive, uuid: str, stop: threading.Event, read: Callable[[str], Load] = nvidia_smi) -> None:
    """Keep the heartbeat's load fresh until `stop`, from a thread that ends with the process."""

    def run() -> None:
        while not stop.is_set():
            alive.load(*read(uuid))
            stop.wait(READ_SECONDS)

    threading.Thread(target=run, name="device-load", daemon=True).start()
