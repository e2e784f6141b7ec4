"""Real processes for tests: broker, listener, workers and sweep on a home of their own, that can be killed at will."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from gateway.bootstrap import Gateway, build
from gateway.broker import server_command
from gateway.settings import Settings, child_environment, load_settings
from palimpsest.process import Child, ChildSpec

ROOT = Path(__file__).resolve().parent.parent

#: Bounds a hang on a busy machine; what comes true is not waited for.
WAIT_SECONDS = 120.0
#: Below the ports that Linux hands out by itself (ip_local_port_range, from 32768 on), a slice for each test process.
FIRST_PORT, SLICE, SLICES = 20_000, 1_500, 8


def until(condition: Callable[[], Any]) -> bool:
    """Wait for something that another thread or process does; False if it never came."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


@cache
def _ports() -> Iterator[int]:
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % SLICES
    first, start = FIRST_PORT + number * SLICE, random.SystemRandom().randrange(SLICE)
    return itertools.cycle(first + (start + step) % SLICE for step in range(SLICE))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on, nor is given before its user has it."""
    for port in itertools.islice(_ports(), SLICE):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


def alive(process: psutil.Process) -> bool:
    """Whether it runs: not what waits for its parent only, nor what goes while we look."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def command_of(process: psutil.Process) -> list[str]:
    """Its program and arguments; nothing if it goes while we look."""
    with suppress(psutil.NoSuchProcess):
        return list(process.cmdline())
    return []


def _worker(name: str, queues: str, concurrency: int) -> tuple[str, ...]:
    options = ("--queues", queues, "--concurrency", str(concurrency), "--name", name)
    return (sys.executable, "-m", "worker.process", *options)


@cache
def warm_kernels() -> None:
    """Compile every kernel once, as the supervisor does before it starts workers; a minute on a fresh clone."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "palimpsest.warm"], check=True, env=environment, stdout=subprocess.DEVNULL)


class Rig:
    """A gateway in processes. `settings`: what the processes see; `gw`: the test's own view of the same home.

    Processes that die are started again by `poll`, as the supervisor does.
    """

    def __init__(self, home: Path, **settings: Any) -> None:
        values = {"watermark_bytes": 0, "dicom_port": free_port(), "http_port": free_port(), "sweep_seconds": 0.5}
        values |= settings
        self.settings: Settings = load_settings(home=home, **values)
        self.gw: Gateway = build(self.settings)
        simple = {name: value for name, value in values.items() if isinstance(value, (int, float, str))}
        self._env = child_environment(self.settings) | {f"PALIMPSEST_{k.upper()}": str(v) for k, v in simple.items()}
        self._env |= {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": os.environ["NUMBA_CACHE_DIR"]}
        self._commands: dict[str, tuple[str, ...]] = {
            "broker": tuple(server_command(self.settings)),
            "listener": (sys.executable, "-m", "service.listener"),
            "api": (sys.executable, "-m", "service.api"),
            "encode": _worker("encode", "index,encode", 2),
            "forward": _worker("forward", "forward", 1),
            "retrieve": _worker("retrieve", "retrieve", 1),
            "sweep": (sys.executable, "-m", "worker.sweep"),
            "flower": (sys.executable, "-m", "palimpsest.flower_process"),
            "exporter": (sys.executable, "-m", "service.exporter"),
        }
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self.children.values():
            if child.process is not None and child.alive:
                child.process.send_signal(signal.SIGTERM)
        for child in self.children.values():
            child.stop()
        self.gw.close()

    def start(self, *names: str) -> None:
        """Start these processes."""
        if {"encode", "retrieve"} & set(names):
            warm_kernels()
        for name in names:
            spec = ChildSpec(name, self._commands[name], grace_seconds=5.0)
            self.children[name] = Child(spec, self.settings.home / "log", self._env, self.settings.home)
            self.children[name].start()

    def trace(self, name: str, out: Path, *calls: str) -> None:
        """Before its start: have strace(1) write these system calls of a process to `out`, with the files' paths."""
        strace = shutil.which("strace")
        assert strace is not None, "apt-get install strace"
        options = ("-f", "--seccomp-bpf", "-y", "-s", "4000", "-o", str(out), "-e", f"trace={','.join(calls)}")
        self._commands[name] = (strace, *options, *self._commands[name])

    def pid(self, name: str) -> int:
        """Process id of a running child."""
        process = self.children[name].process
        assert process is not None
        return process.pid

    def kill9(self, name: str) -> None:
        """SIGKILL, to the process alone: what it started must go by itself."""
        os.kill(self.pid(name), signal.SIGKILL)

    def poll(self) -> None:
        """Start again what has died."""
        for child in self.children.values():
            child.supervise()

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = 180.0) -> None:
        """Poll until the condition holds; fails with the ends of all logs when it does not come true.

        `seconds` bounds a hang on the slowest machine; it says nothing about speed.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {seconds:g} s\n{self.logs()}")
            self.poll()
            time.sleep(0.05)

    def logs(self) -> str:
        """The end of every log."""
        parts = []
        for name, child in self.children.items():
            text = child.log_path.read_text("utf-8", "replace") if child.log_path.exists() else ""
            parts.append(f"--- {name} ---\n{text[-2500:]}")
        return "\n".join(parts)

    def broker_answers(self) -> bool:
        """True once the broker's socket takes connections."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.settings.redis_socket)) == 0

    def listens(self) -> bool:
        """True once the DICOM port takes connections."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.settings.dicom_port)) == 0
