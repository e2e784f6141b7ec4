"""A child dies with its parent even while it still imports what it needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gateway.launch import bound
from tests.running import alive, command_of, until

pytestmark = pytest.mark.integration

PARENT = "import sys; from pathlib import Path; from worker.verify import Verifier; Verifier(Path(sys.argv[1])).start()"


def child_of(parent: psutil.Process, words: str) -> psutil.Process:
    """Its child once that runs the program of these words, and no launcher any more."""
    while True:
        for child in parent.children():
            command = command_of(child)
            if words in command and "-I" not in command:
                return child
        time.sleep(0.001)


def test_a_prover_that_starts_when_its_worker_is_killed_goes_too(tmp_path: Path) -> None:
    parent = psutil.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stderr=subprocess.DEVNULL)
    prover = child_of(parent, "worker.verify")
    prover.suspend()  # so that nothing that it does itself can end it
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert until(lambda: not alive(prover))


def test_the_launcher_becomes_the_program_and_refuses_another_parent() -> None:
    argv = bound([sys.executable, "-c", "import os; print(os.getpid())"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and int(process.stdout.read()) == process.pid
    stranger = [str(os.getppid()) if part == str(os.getpid()) else part for part in argv]
    done = subprocess.run(stranger, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the parent is gone" in done.stderr and not done.stdout
