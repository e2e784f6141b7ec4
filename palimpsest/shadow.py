"""`palimpsest shadow`: what would be saved, measured on live traffic that is not touched, or on a folder.

Two processes: this one hands bytes on (shadow_relay) and does nothing else; the other one measures (shadow_watch).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from gateway.launch import bound
from palimpsest.shadow_plan import Plan
from palimpsest.shadow_relay import Copies, Relay, Relayed
from palimpsest.shadow_report import Report

__all__ = ["shadow_folder", "shadow_traffic"]

PAUSES: Final = (0.5, 1.0, 5.0, 30.0)
TELL_SECONDS: Final = 1.0
POLL_SECONDS: Final = 2.0


def shadow_traffic(plan: Plan, say: Callable[[str], None], seconds: float = 0.0) -> Relayed:
    """Relay and measure until SIGINT or SIGTERM, or for so long. Raises OSError: the port is taken."""
    with tempfile.TemporaryDirectory(prefix="palimpsest-shadow-") as work:
        return asyncio.run(_traffic(plan, Path(work), say, seconds))


async def _traffic(plan: Plan, work: Path, say: Callable[[str], None], seconds: float) -> Relayed:
    relayed = Relayed()
    copies = Copies(relayed, plan.buffer_bytes)
    relay = Relay(plan.to, copies, relayed)
    port = await relay.start(*plan.listen)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    say(f"listening on {plan.listen[0]}:{port}, everything goes on to {plan.to[0]}:{plan.to[1]}")
    watching = asyncio.create_task(_watch(plan, work, copies, relayed, stop))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds or None)
    stop.set()
    await relay.stop(plan.grace_seconds)
    say("measuring what waits ...")
    await watching
    return relayed


async def _watch(plan: Plan, work: Path, copies: Copies, relayed: Relayed, stop: asyncio.Event) -> None:
    """Keep a measuring process; when all is over, let it finish."""
    failures = 0
    while True:
        ours, theirs = socket.socketpair()
        with theirs:
            command = _command(plan, work, theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the relay to hear
            )
        _, writer = await asyncio.open_connection(sock=ours)
        copies.watch(writer.transport)
        ended = asyncio.create_task(process.wait())
        telling = asyncio.create_task(_tell(copies, stop))
        await asyncio.wait((ended, telling), return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            await _finish(plan, copies, writer, process)
            return
        telling.cancel()
        copies.watch(None)
        writer.transport.abort()
        relayed.watcher_restarts += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), PAUSES[min(failures, len(PAUSES) - 1)])
        failures += 1
        if stop.is_set():
            return


async def _tell(copies: Copies, stop: asyncio.Event) -> None:
    while not stop.is_set():
        copies.tell()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), TELL_SECONDS)


async def _finish(
    plan: Plan, copies: Copies, writer: asyncio.StreamWriter, process: asyncio.subprocess.Process
) -> None:
    await asyncio.sleep(0)
    copies.tell()
    copies.watch(None)
    if writer.can_write_eof():
        writer.write_eof()
    try:
        await asyncio.wait_for(process.wait(), plan.limits.finish_seconds + plan.grace_seconds)
    except TimeoutError:
        process.kill()
        await process.wait()


def _command(plan: Plan, work: Path, fd: int) -> list[str]:
    files = (("--json", plan.json_file), ("--page", plan.page))
    named = [part for option, path in files if path is not None for part in (option, str(path.absolute()))]
    return bound([
        sys.executable, "-m", "palimpsest.shadow_watch", "--fd", str(fd), "--work", str(work),
        "--limits", json.dumps(asdict(plan.limits)), "--link", str(plan.link_mbit), *named,
    ])  # fmt: skip


def shadow_folder(plan: Plan, folder: Path, stop: threading.Event, *, follow: bool, seconds: float = 0.0) -> Report:
    """Measure the files of a folder, which are only read; follow: and those that come, until `stop` or for so long."""
    from palimpsest.shadow_watch import Watcher  # brings the coder, which a relay has no use for

    deadline = time.monotonic() + seconds if seconds else None
    known: set[Path] = set()
    with tempfile.TemporaryDirectory(prefix="palimpsest-shadow-") as work:
        report = Report(source="folder", link_mbit=plan.link_mbit, began=time.time())
        watcher = Watcher(report, Path(work), plan.limits, (plan.json_file, plan.page))
        watcher.start()
        while not stop.is_set() and (deadline is None or time.monotonic() < deadline):
            for path in sorted(folder.rglob("*")):
                if stop.is_set() or (deadline is not None and time.monotonic() >= deadline):
                    break
                if path not in known and (size := _ready(path, follow)):
                    known.add(path)
                    watcher.offer(path, size, wait=True)
            watcher.write()
            if not follow:
                break
            stop.wait(POLL_SECONDS)
        watcher.finish(plan.limits.finish_seconds if stop.is_set() or seconds else math.inf)
    return report


def _ready(path: Path, follow: bool) -> int:
    """Bytes of a file that nobody writes any more; 0 for anything else."""
    try:
        found = path.stat()
    except OSError:
        return 0
    young = follow and time.time() - found.st_mtime < POLL_SECONDS
    return 0 if young or not stat.S_ISREG(found.st_mode) else found.st_size
