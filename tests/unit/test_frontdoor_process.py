"""Supervised children: started again, stopped whole, and never left behind, whatever kills the supervisor."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gateway.settings import load_settings
from palimpsest import process
from palimpsest.process import Child, ChildSpec, describe_exit
from palimpsest.supervisor import (
    StartFailed,
    check_ports,
    environment,
    only_one,
    stages,
    with_demo_destination,
)

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
# ignores SIGTERM, and has a child of its own in the same group; prints both ids
STUBBORN = (
    sys.executable, "-c",
    "import os, signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(os.getpid(), inner.pid, flush=True)\n"
    "time.sleep(600)\n",
)  # fmt: skip


def eventually(true: Callable[[], object], seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    made: list[Child] = []

    def child(argv: tuple[str, ...], grace: float = 5.0) -> Child:
        made.append(Child(ChildSpec("probe", argv, grace), tmp_path / "log", dict(os.environ), tmp_path))
        return made[-1]

    yield child
    for one in made:
        if one.process is not None:
            one.process.kill()
            one.stop()


def test_a_child_that_dies_is_started_again_and_the_pauses_grow(make, monkeypatch) -> None:
    monkeypatch.setattr(process, "BACKOFF_SECONDS", (0.01, 0.02, 0.03))
    child = make((sys.executable, "-c", "raise SystemExit(3)"))
    child.start()
    said: list[str] = []
    assert eventually(lambda: said.append(child.supervise() or "") or child.restarts >= 4)
    lines = [line for line in said if line]
    assert child.last_exit == 3
    assert [line.split("again in ")[1].split(" s")[0] for line in lines if "again in" in line][:4] == [
        "0.01", "0.02", "0.03", "0.03",
    ]  # fmt: skip
    assert "exit status 3" in lines[0]


def test_a_running_child_is_left_alone(make) -> None:
    child = make(SLEEPER)
    child.start()
    pid = child.process.pid
    assert child.supervise() is None
    assert child.process.pid == pid and child.restarts == 0
    assert child.stop() is True
    assert not runs(pid)


def test_stop_kills_the_whole_group_of_a_child_that_does_not_listen(make) -> None:
    child = make(STUBBORN, grace=0.2)
    child.start()
    assert eventually(lambda: len(child.log_path.read_text().split()) == 2)
    outer, inner = map(int, child.log_path.read_text().split())
    assert outer == child.process.pid
    assert child.stop() is False
    assert eventually(lambda: not runs(outer) and not runs(inner))


def test_output_goes_to_the_log_and_a_large_log_is_rotated(make, monkeypatch) -> None:
    monkeypatch.setattr(process, "LOG_KEEP_BYTES", 10)
    child = make((sys.executable, "-c", "print('a line that is longer than ten bytes')"))
    for _ in range(2):
        child.start()
        child.process.wait(timeout=120)
    assert child.log_tail() == "a line that is longer than ten bytes"
    assert child.log_path.with_suffix(".log.1").is_file()


def test_killing_the_parent_with_sigkill_takes_the_child_along(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom palimpsest.process import Child, ChildSpec\n"
        f"here = Path({str(tmp_path)!r})\n"
        f"child = Child(ChildSpec('probe', {SLEEPER!r}), here, dict(os.environ), here)\n"
        "child.start()\nprint(child.process.pid, flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    # the launcher has become the sleeper: from here on only the kernel's promise keeps it from being an orphan
    assert eventually(lambda: "time.sleep" in " ".join(psutil.Process(pid).cmdline()[-1:]))
    parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=120)
    parent.stdout.close()
    assert eventually(lambda: not runs(pid))


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit status 0"), (-9, "SIGKILL"), (-250, "signal 250"), (None, "unknown")]
)
def test_exit_statuses_in_words(code: int | None, words: str) -> None:
    assert describe_exit(code) == words


def test_a_second_supervisor_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    settings.run_dir.mkdir(parents=True)
    refused = pytest.raises(StartFailed, match=f"process {os.getpid()}.*PALIMPSEST_HOME")
    with only_one(settings), refused, only_one(settings):
        pass
    with only_one(settings):  # free again
        pass


@pytest.mark.parametrize(
    ("field", "setting"), [("dicom_port", "PALIMPSEST_DICOM_PORT"), ("http_port", "PALIMPSEST_HTTP_PORT")]
)
def test_a_port_in_use_is_named_with_its_setting(tmp_path: Path, field: str, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = load_settings(**{"home": tmp_path, "dicom_port": 0, "http_port": 0, field: port})
        with pytest.raises(StartFailed, match=f"port {port} .*{setting}"):
            check_ports(settings)


def test_the_demo_destination_is_for_demonstrations_without_another_one(tmp_path: Path) -> None:
    demo = with_demo_destination(load_settings(home=tmp_path, demo_destination_port=4711))
    assert [(d.name, d.port, d.kind) for d in demo.destinations] == [("demo", 4711, "dicom")]
    assert with_demo_destination(load_settings(home=tmp_path, profile="production")).destinations == ()
    own = load_settings(home=tmp_path, destinations=[{"name": "pacs", "port": 104}])
    assert with_demo_destination(own) is own


def test_every_process_of_a_gateway_is_started_and_gets_equal_settings(tmp_path: Path) -> None:
    settings = with_demo_destination(load_settings(home=tmp_path, dicom_port=1104, http_port=1180))
    specs = [spec for stage in stages(settings) for spec in stage.children]
    assert [spec.name for spec in specs] == [
        "broker", "listener", "api", "demo-destination", "worker-index", "worker-encode", "worker-retrieve",
        "worker-forward", "sweep",
    ]  # fmt: skip
    env = environment(settings)
    assert env["PALIMPSEST_HOME"] == str(tmp_path) and env["PALIMPSEST_DICOM_PORT"] == "1104"
    assert "DEMO_ARCHIVE" in env["PALIMPSEST_DESTINATIONS"]
    assert env["NUMBA_CACHE_DIR"] == str(settings.numba_cache_dir)


def test_no_embedded_broker_when_there_is_another(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, redis_url="redis://elsewhere:6379/0")
    assert stages(settings)[0].children == ()


def test_every_child_is_a_module_that_exists(tmp_path: Path) -> None:
    import importlib.util

    settings = with_demo_destination(load_settings(home=tmp_path))
    for stage in stages(settings):
        for spec in stage.children:
            if spec.argv[0] == sys.executable:
                assert spec.argv[1] == "-m" and importlib.util.find_spec(spec.argv[2]) is not None
