"""The gateway that `palimpsest selftest` breaks: `palimpsest run` as a process of its own, on a home of its own.

Everything in it runs under the fault layer. Its two destinations are a folder and a small C-STORE archive that is
reached through a fault proxy; doors are open directly and through fault proxies of their own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from gateway.bootstrap import Gateway, build
from gateway.instance import State
from gateway.settings import Destination, Settings, kernel_cache, load_settings
from gateway.tokens import mint_token
from palimpsest.addresses import base_url
from palimpsest.demo_destination import AE_TITLE
from palimpsest.faultlayer import Layer
from palimpsest.faultproxy import FaultProxy
from palimpsest.powerloss import Left, after_power_loss
from palimpsest.process import Child, ChildSpec
from palimpsest.supervisor import environment

__all__ = ["ROLES", "NotRunning", "UnderTest"]

#: role -> words of its command line
ROLES = {
    "listener": "service.listener", "api": "service.api", "index worker": "--queues index",
    "encode worker": "--queues encode", "retrieve worker": "--queues retrieve", "forward worker": "--queues forward",
    "verifier": "worker.verify", "sweep": "worker.sweep", "broker": "valkey-server",
    "supervisor": "palimpsest run --no-samples",
}  # fmt: skip
READY_SECONDS = 600.0  # with kernels to compile
GONE_SECONDS = 90.0  # who was killed while it waits for a busy disk goes when the disk has answered
POLL_SECONDS = 0.05
#: a gateway that gives up waiting, and looks again, in seconds and not in minutes: what is tested is that it does
QUICK = {
    "PALIMPSEST_LEASE_SECONDS": "4", "PALIMPSEST_SWEEP_SECONDS": "0.5", "PALIMPSEST_RESTART_PAUSE_SECONDS": "1",
    "PALIMPSEST_NETWORK_TIMEOUT_SECONDS": "6", "PALIMPSEST_HOT_CACHE": "off", "PALIMPSEST_MAX_ATTEMPTS": "5",
    "PALIMPSEST_FORWARD_MAX_ATTEMPTS": "1000", "PALIMPSEST_AE_TITLE": "PALIMPSEST", "PALIMPSEST_PROFILE": "demo",
}  # fmt: skip


class NotRunning(Exception):
    """The gateway under test did not come up, or did not die; the message has the end of its log."""


class UnderTest:
    """One gateway under test; started by `start`, ended with the block. home: a folder that is made anew."""

    def __init__(self, folder: Path, *, database: str | None = None, power: bool = False) -> None:
        """folder: for everything, kept by the caller. database: SQLAlchemy URL; None: SQLite in the home."""
        self.folder, self.home = folder, (folder / "home").resolve()
        self.nas, self.peer = folder / "nas", folder / "peer"
        self.nas.mkdir()
        self.platter = folder / "platter" if power else None
        if self.platter is not None:
            self.platter.mkdir()
        self.layer = Layer(folder / "faults", self.home, self.platter)
        peer_port, dicom_port, http_port = free_ports(3)
        self.to_peer = FaultProxy(("127.0.0.1", peer_port))
        self.to_listener = FaultProxy(("127.0.0.1", dicom_port))
        self.to_api = FaultProxy(("127.0.0.1", http_port))
        self._stack = contextlib.ExitStack()
        for proxy in (self.to_peer, self.to_listener, self.to_api):
            self._stack.enter_context(proxy)
        destinations = (
            Destination.model_validate({"name": "nas", "kind": "filesystem", "path": str(self.nas)}),
            Destination(name="peer", kind="dicom", port=self.to_peer.port, ae_title=AE_TITLE),
        )
        named = {"database_url": database} if database else {}
        self.settings: Settings = load_settings(
            home=self.home, destinations=destinations, dicom_port=dicom_port, http_port=http_port, profile="demo",
            **named,
        )  # fmt: skip
        self._link_kernels()
        self._gw: Gateway | None = None
        log = folder / "log"
        env = environment(self.settings) | QUICK | self.layer.environment
        run = ChildSpec("gateway", (sys.executable, "-m", "palimpsest", "run", "--no-samples"), 40.0)
        peer = ChildSpec(
            "peer", (sys.executable, "-m", "palimpsest.demo_destination", str(self.peer), str(peer_port)), 5.0
        )
        self._supervisor = Child(run, log, env, folder)
        self._peer = Child(peer, log, environment(self.settings), folder)

    def _link_kernels(self) -> None:
        """Kernels that were compiled before: this home is a new one."""
        kernel_cache().mkdir(parents=True, exist_ok=True)
        self.settings.numba_cache_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.settings.numba_cache_dir.symlink_to(kernel_cache())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in (self._supervisor, self._peer):
            child.stop()
        self.forget()
        self._stack.close()
        self.layer.__exit__(kind, error, trace)

    @property
    def gw(self) -> Gateway:
        """Our own view of the same home. Never used while the database is taken away."""
        if self._gw is None:
            self._gw = build(self.settings)
        return self._gw

    @property
    def url(self) -> str:
        """The web side."""
        return base_url(self.settings)

    def token(self, role: str = "service") -> str:
        """A bearer token that is valid now."""
        return mint_token(self.gw, role, "selftest")

    def forget(self) -> None:
        """Close our own view."""
        if self._gw is not None:
            self._gw.close()
            self._gw = None

    def start(self) -> None:
        """Start everything and wait until both doors answer. Raises NotRunning."""
        if not self._peer.alive:
            self._peer.start()
        self._supervisor.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Everything was started, and both doors answer. Raises NotRunning."""
        self.wait("the gateway", self._ready, READY_SECONDS)

    def _ready(self) -> bool:
        doors = (self.settings.dicom_port, self.settings.http_port)
        return all(self._answers(port) for port in doors) and bool(self.processes("sweep"))  # it is started last

    @staticmethod
    def _answers(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def wait(self, what: str, condition: Callable[[], object], seconds: float) -> None:
        """Poll, starting again what has died. Raises NotRunning."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise NotRunning(f"{what}: not within {seconds:g} s; {self._supervisor.log_tail(6)}")
            self.poll()
            time.sleep(POLL_SECONDS)

    def poll(self) -> None:
        """Start the supervisor again if it was killed, as init would."""
        self._supervisor.supervise()
        self._peer.supervise()

    def processes(self, role: str = "") -> list[psutil.Process]:
        """Live processes of a role, or all of the gateway."""
        words, found = ROLES.get(role, ""), []
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and words in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def _tree(self) -> list[psutil.Process]:
        process = self._supervisor.process
        if process is None:
            return []
        try:
            top = psutil.Process(process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.Error:
            return []

    def kill(self, role: str) -> bool:
        """SIGKILL a process of a role; False if there was none. NotRunning if what it started does not go by itself."""
        found = self.processes(role)
        if not found:
            return False
        with contextlib.suppress(psutil.Error):
            orphans = found[0].children(recursive=True)
            os.kill(found[0].pid, signal.SIGKILL)
            deadline = time.monotonic() + GONE_SECONDS
            while there := [each for each in orphans if _alive(each)]:
                if time.monotonic() > deadline:
                    raise NotRunning(f"{role} was killed; what it had started is still there: {_named(there)}")
                self.poll()
                time.sleep(POLL_SECONDS)
            return True
        return False

    def kill_all(self) -> None:
        """SIGKILL everything at once, as power loss does. Starts nothing again."""
        tree = self._tree()
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        if self._supervisor.process is not None:
            self._supervisor.process.wait()
        deadline = time.monotonic() + GONE_SECONDS
        while any(map(_alive, tree)):
            if time.monotonic() > deadline:
                raise NotRunning("a process outlived SIGKILL")
            time.sleep(POLL_SECONDS)
        self._supervisor.process = None

    def lose_power(self, *, seed: int | None = None) -> Left:
        """Everything dies, and the home becomes what the disk would hold; it is not started again.

        seed: None: only what was fsynced; else a mixture with what was not.
        """
        assert self.platter is not None
        self.forget()  # first: who closes SQLite's last connection writes a checkpoint, and we are not under the layer
        self.kill_all()
        after, before = self.home.with_name("after"), self.home.with_name("before")
        left = after_power_loss(self.platter, after, now=None if seed is None else self.home, seed=seed or 0)
        self.home.rename(before)
        after.rename(self.home)
        shutil.rmtree(before)
        for path in self.platter.iterdir():
            path.unlink()
        self._link_kernels()
        self.fill_platter()
        return left

    def fill_platter(self) -> None:
        """What lies on a disk at the start is durable: have the layer copy it."""
        paths = [self.home, *(path for path in self.home.rglob("*") if not path.is_symlink())]
        names = [str(path) for path in paths if path.is_dir() or path.is_file()]
        subprocess.run(["sync", *names], env=environment(self.settings) | self.layer.environment, check=True)

    def archived(self) -> int:
        """How many instances came as far as the archive."""
        counts = self.gw.index.counts().by_state
        return counts.get(State.ARCHIVED, 0) + counts.get(State.RELEASED, 0)

    def memory(self) -> Iterator[tuple[str, int]]:
        """(role, resident bytes of all its processes)."""
        for role in ROLES:
            total = 0
            for process in self.processes(role):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            yield role, total


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _named(processes: list[psutil.Process]) -> str:
    """Who they are, and in which state (D: waits for a disk)."""
    names = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            names.append(f"{' '.join(process.cmdline()[1:6])} ({process.status()})")
    return ", ".join(names)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
