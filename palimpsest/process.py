"""Child processes that cannot outlive their parent, and that are started again when they die.

Two guards against orphans: the kernel sends SIGKILL when the supervisor dies (prctl PR_SET_PDEATHSIG), and every child
leads a process group of its own, which is killed whole when the child is stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from gateway.childsecrets import NOTHING, Need
from gateway.launch import bound

BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STABLE_SECONDS = 60.0  # a child that lived this long starts again with the shortest pause
LOG_KEEP_BYTES = 32 << 20


@dataclass(frozen=True)
class ChildSpec:
    """What to run: name (of its log file too), command line, seconds it gets to stop after SIGTERM, and the secrets of
    the environment that its work needs.
    """

    name: str
    argv: tuple[str, ...]
    grace_seconds: float = 10.0
    needs: frozenset[Need] = NOTHING


@dataclass
class Child:
    """One supervised process. Must be started by a thread that lives as long as the child may (prctl(2), NOTES)."""

    spec: ChildSpec
    log_dir: Path
    env: dict[str, str]
    cwd: Path
    longest_pause: float = BACKOFF_SECONDS[-1]  # seconds
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    last_exit: int | None = None
    _failures: int = 0
    _started_at: float = 0.0
    _due_at: float = field(default=0.0)

    @property
    def log_path(self) -> Path:
        """Where its standard output and error go."""
        return self.log_dir / f"{self.spec.name}.log"

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it, output appended to its log file."""
        self.log_dir.mkdir(parents=True, exist_ok=True)
        _rotate(self.log_path)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                bound(self.spec.argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, cwd=self.cwd,
                start_new_session=True,
            )  # fmt: skip
        self._started_at = time.monotonic()

    def supervise(self) -> str | None:
        """One look: start it again when it is due. Returns a line for people when something happened, else None."""
        if self.alive:
            return None
        now = time.monotonic()
        if self.process is not None:
            self.last_exit = self.process.returncode
            self._kill_group()
            self.process = None
            self._failures = 0 if now - self._started_at > STABLE_SECONDS else self._failures
            pause = min(BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)], self.longest_pause)
            self._failures += 1
            self._due_at = now + pause
            return (
                f"{self.spec.name} ended ({describe_exit(self.last_exit)}); again in {pause:g} s, see {self.log_path}"
            )
        if now < self._due_at:
            return None
        self.restarts += 1
        self.start()
        return f"{self.spec.name} started again"

    def stop(self) -> bool:
        """SIGTERM, then after the grace time SIGKILL for its whole group. True if it went by itself."""
        if self.process is None:
            return True
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        gone = _wait(self.process, self.spec.grace_seconds)
        self._kill_group()
        self.process.wait()
        return gone

    def _kill_group(self) -> None:
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # PermissionError: only zombies are left (macOS)
            return

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log, for an error message."""
        try:
            content = self.log_path.read_bytes()[-8192:]
        except OSError:
            return ""
        return "\n".join(content.decode("utf-8", "replace").splitlines()[-lines:])


def describe_exit(code: int | None) -> str:
    """An exit status in words: 'exit status 1' or 'SIGKILL'."""
    if code is None:
        return "unknown"
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _rotate(path: Path) -> None:
    """Keep one old log file, so that logs cannot fill the disk that the spool needs."""
    if path.exists() and path.stat().st_size > LOG_KEEP_BYTES:
        path.replace(path.with_suffix(".log.1"))
