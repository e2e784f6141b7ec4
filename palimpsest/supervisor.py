"""One process that starts all others, keeps them running, and takes them with it when it ends, however it ends.

Order of start: broker, database, doors (listener, API, demo destination), compiled kernels, workers, sweep. Objects
that arrive while kernels are being compiled wait in the spool. Order of stop: doors, workers, sweep, broker.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from gateway.childsecrets import EVERYTHING, Need
from gateway.settings import Destination, Settings, child_environment
from palimpsest.addresses import base_url, reachable
from palimpsest.broker import broker_spec, wait_for_broker
from palimpsest.process import Child, ChildSpec

READY_SECONDS = 60.0
WORKER_GRACE_SECONDS = 20.0  # a task that takes longer is killed; its lease runs out and it is done again
POLL_SECONDS = 0.2
#: Secrets that every process needs which works on objects.
WORKING: frozenset[Need] = frozenset({"database", "queue", "keys"})
DEMO_NAME = "demo"


class StartFailed(Exception):
    """Something that must be there before we run is not; the message says what to do."""


@dataclass(frozen=True)
class Stage:
    """Children that are started, and stopped, together."""

    name: str
    children: tuple[ChildSpec, ...]


def with_demo_destination(settings: Settings) -> Settings:
    """The settings plus a destination of our own, if this is a demonstration and no other was configured."""
    from palimpsest.demo_destination import AE_TITLE

    if settings.profile != "demo" or settings.destinations:
        return settings
    demo = Destination(name=DEMO_NAME, kind="dicom", port=settings.demo_destination_port, ae_title=AE_TITLE)
    return settings.model_copy(update={"destinations": (demo,)})


def stages(settings: Settings) -> tuple[Stage, ...]:
    """Every process of one gateway, in the order of start."""
    return (
        Stage("broker", () if settings.redis_url else (broker_spec(settings),)),
        Stage("doors", _doors(settings)),
        Stage("workers", _workers(settings)),
    )


def _doors(settings: Settings) -> tuple[ChildSpec, ...]:
    doors = [
        ChildSpec("listener", _python("-m", "service.listener"), needs=WORKING),
        ChildSpec("api", _python("-m", "service.api"), needs=WORKING | {"sign-in"}),
    ]
    if settings.flower:
        doors.append(ChildSpec("flower", _python("-m", "palimpsest.flower_process"), needs=frozenset({"queue"})))
    if any(d.name == DEMO_NAME for d in settings.destinations):
        folder = str(settings.home / "demo-destination")
        argv = _python("-m", "palimpsest.demo_destination", folder, str(settings.demo_destination_port))
        doors.append(ChildSpec("demo-destination", argv))
    return tuple(doors)


def _workers(settings: Settings) -> tuple[ChildSpec, ...]:
    pools = (
        ("index", "index", 1),  # its own: what just arrived is found by QIDO-RS at once, however long an encode takes
        ("encode", "encode", settings.encode_processes),
        ("retrieve", "retrieve", settings.retrieve_processes),
        ("forward", "forward", settings.forward_processes),
    )
    workers = [
        ChildSpec(
            f"worker-{name}",
            _python("-m", "worker.process", "--queues", queues, "--concurrency", str(count), "--name", name),
            WORKER_GRACE_SECONDS,
            WORKING | {"destinations"} if name == "forward" else WORKING,
        )
        for name, queues, count in pools
    ]
    devices = [
        ChildSpec(
            f"worker-gpu-{number}",
            _python("-m", "worker.process", "--queues", "gpu", "--name", f"gpu-{number}", "--device", str(number)),
            WORKER_GRACE_SECONDS,
            WORKING,
        )
        for number in settings.gpu_devices
    ]
    return (*workers, *devices, ChildSpec("sweep", _python("-m", "worker.sweep"), needs=WORKING))


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, *arguments)


def environment(settings: Settings, needs: Collection[Need] = EVERYTHING) -> dict[str, str]:
    """What every child gets: equal settings, no package shadowed by the folder it runs in, output at once; of the
    secrets those that it needs.
    """
    env = child_environment(settings, needs)
    env["PYTHONSAFEPATH"] = "1"
    env["PYTHONUNBUFFERED"] = "1"
    return env


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Hold the home folder's lock. Raises StartFailed if another supervisor has it; the kernel frees it when we die."""
    path = settings.local_run_dir / "supervisor.lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise StartFailed(
                f"another `palimpsest run` (process {owner}) already uses {settings.home}: stop it, or choose another "
                "folder with --home or PALIMPSEST_HOME"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def check_ports(settings: Settings) -> None:
    """Raise StartFailed if a port that a child will listen on is taken, naming the port and the setting."""
    wanted: list[tuple[str, int, str, str]] = [(settings.http_host, settings.http_port, "HTTP", "PALIMPSEST_HTTP_PORT")]
    if settings.listens_plain:
        wanted.append((settings.dicom_host, settings.dicom_port, "DICOM", "PALIMPSEST_DICOM_PORT"))
    if settings.listens_tls:
        wanted.append((settings.dicom_host, settings.dicom_tls_port, "DICOM over TLS", "PALIMPSEST_DICOM_TLS_PORT"))
    if any(d.name == DEMO_NAME for d in settings.destinations):
        wanted.append(
            ("127.0.0.1", settings.demo_destination_port, "demo destination", "PALIMPSEST_DEMO_DESTINATION_PORT")
        )
    for host, port, what, setting in wanted:
        problem = _port_problem(host, port)
        if problem:
            raise StartFailed(
                f"port {port} on {host} ({what}) cannot be used: {problem}; choose another with {setting}=..."
            )


def _port_problem(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # what closed a moment ago may be reused, as servers do
        try:
            probe.bind((host, port))
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return ""


class Supervisor:
    """Starts, watches and stops the children. All children are started by the thread that calls `run`."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self._say = say
        self._stop = threading.Event()
        self._signals = 0
        self._log_dir = settings.log_dir
        self._running: list[list[Child]] = []

    @property
    def children(self) -> list[Child]:
        """All children started so far."""
        return [child for stage in self._running for child in stage]

    @property
    def stopping(self) -> threading.Event:
        """Set when everything is to stop."""
        return self._stop

    def run(self, body: Callable[[], int] | None = None) -> int:
        """Start everything, run `body` in a thread (its result ends the run; None: until a signal), stop everything.

        Returns body's result, 0 after a signal, 1 if the start failed (the reason is said).
        """
        old = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._start()
            return self._watch(body)
        except StartFailed as error:
            if self._stop.is_set():
                return 0
            self._say(f"[red]could not start:[/red] {error}")
            return 1
        finally:
            self._stop.set()
            self.stop()
            for number, handler in old.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 2:  # impatient: the kernel takes all children with us
            os.kill(os.getpid(), signal.SIGKILL)

    def _start(self) -> None:
        broker, doors, workers = stages(self.settings)
        self._start_stage(broker)
        self._wait("broker", lambda: wait_for_broker(self.settings, 0.5))
        self.prepare()
        self._start_stage(doors)
        ports = self.settings.open_dicom_ports
        self._wait("listener", lambda: all(self._listens(self.settings.dicom_host, port) for port in ports))
        self._wait("api", self._api_answers)
        self._warm_up()
        self._start_stage(workers)

    def prepare(self) -> None:
        """Folders, database migrations and key ring, once, before any process needs them."""
        from gateway.bootstrap import build

        build(self.settings).close()

    def _start_stage(self, stage: Stage) -> None:
        home, pause = self.settings.home, self.settings.restart_pause_seconds
        children = [
            Child(spec, self._log_dir, environment(self.settings, spec.needs), home, pause) for spec in stage.children
        ]
        self._running.append(children)
        for child in children:
            child.start()

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        child = next((c for c in self.children if c.spec.name == name), None)
        while not ready():
            if self._stop.is_set():
                raise StartFailed("interrupted")
            if child is not None and not child.alive:
                raise StartFailed(f"{name} ended at once; the end of {child.log_path}:\n{child.log_tail()}")
            if time.monotonic() > deadline:
                tail = f"; the end of {child.log_path}:\n{child.log_tail()}" if child else ""
                raise StartFailed(f"{name} did not answer within {READY_SECONDS:g} s{tail}")
            time.sleep(0.05)

    @staticmethod
    def _listens(host: str, port: int) -> bool:
        try:
            with socket.create_connection((reachable(host), port), timeout=1):
                return True
        except OSError:
            return False

    def _api_answers(self) -> bool:
        if self.settings.listens_https:  # the certificate names the hospital's host, which may not lead to this process
            return self._listens(self.settings.http_host, self.settings.http_port)
        url = base_url(self.settings) + "/healthz"
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _warm_up(self) -> None:
        """Compile the kernels once, in a process of its own, so that no worker compiles while objects wait."""
        stamp = self.settings.numba_cache_dir / "warmed"
        if stamp.is_file():
            return
        self._say("compiling the codec's kernels (first start of this version, about a minute) ...")
        spec = ChildSpec("warm-up", _python("-m", "palimpsest.warm"))
        child = Child(spec, self._log_dir, environment(self.settings, spec.needs), self.settings.home)
        child.start()
        while child.alive and not self._stop.wait(POLL_SECONDS):
            self._supervise()  # objects come in meanwhile
        if self._stop.is_set():
            child.stop()
            raise StartFailed("interrupted")
        assert child.process is not None
        if child.process.returncode:
            self._say(f"[yellow]warm-up failed, workers will compile themselves:[/yellow] {child.log_tail(3)}")
        else:
            stamp.touch()
            for other in self.settings.numba_cache_dir.parent.iterdir():
                if other != self.settings.numba_cache_dir:
                    shutil.rmtree(other, ignore_errors=True)  # another version's

    def _watch(self, body: Callable[[], int] | None) -> int:
        outcome: list[int] = []
        thread = threading.Thread(target=self._run_body, args=(body, outcome), daemon=True) if body else None
        if thread is not None:
            thread.start()
        while not self._stop.wait(POLL_SECONDS):
            self._supervise()
        if thread is not None:
            thread.join(timeout=5)
        return outcome[0] if outcome else 0

    def _supervise(self) -> None:
        for child in self.children:
            line = child.supervise()
            if line:
                self._say(f"[yellow]{line}[/yellow]")

    def _run_body(self, body: Callable[[], int], outcome: list[int]) -> None:
        outcome.append(1)  # what counts if body raises
        try:
            outcome[0] = body()
        finally:
            self._stop.set()

    def stop(self) -> None:
        """Stop everything in order: doors, workers and sweep, broker. Safe to call twice."""
        broker, doors, workers = (*self._running, [], [], [])[:3]
        for group in (doors, workers, broker):
            threads = [threading.Thread(target=child.stop) for child in group]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self._running.clear()
