"""The main job as a user runs it: `palimpsest run` in a folder and on ports of its own, real processes throughout."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file

from gateway.part10 import peek
from palimpsest.compare import compare
from palimpsest.samples import SAMPLES
from tests.running import ROOT, alive, command_of, free_port
from tests.weightfiles import without_weights

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
START_SECONDS = 480.0  # compiling every kernel from nothing on a busy machine


class Front:
    """A home folder with free ports, and `palimpsest` commands run against it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True)
        Path(os.environ["NUMBA_CACHE_DIR"]).mkdir(parents=True, exist_ok=True)
        (home / "numba").symlink_to(Path(os.environ["NUMBA_CACHE_DIR"]).parent)  # compiled once for all tests
        ports = ("DICOM_PORT", "HTTP_PORT", "DEMO_DESTINATION_PORT")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PALIMPSEST_", "REDIS_", "DATABASE_"))}
        self.env |= {f"PALIMPSEST_{name}": str(free_port()) for name in ports}
        self.env |= {"PALIMPSEST_HOME": str(home), "PALIMPSEST_WATERMARK_BYTES": "0", "PALIMPSEST_SWEEP_SECONDS": "1"}
        self.env |= {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
        self.lines: list[str] = []

    def call(self, *arguments: str, ok: bool = True, seconds: float = START_SECONDS) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "palimpsest", *arguments], env=self.env, cwd=self.home, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) is ok, done.stdout + self.logs()
        return done.stdout

    def start(self) -> psutil.Popen:
        """`palimpsest run`, up and running."""
        process = psutil.Popen(
            [sys.executable, "-m", "palimpsest", "run", "--no-samples"], env=self.env, cwd=self.home, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.lines = []
        threading.Thread(target=lambda: self.lines.extend(process.stdout), daemon=True).start()
        self.wait("running", lambda: any("Ctrl-C" in line for line in self.lines) or not process.is_running())
        return process

    def wait(self, what: str, true: Callable[[], object], seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s\n{''.join(self.lines)}{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        ends = {path.name: path.read_text("utf-8", "replace")[-1500:] for path in self.home.glob("log/*.log")}
        return "\n".join(f"--- {name}\n{end}" for name, end in ends.items())

    def left_behind(self, processes: list[psutil.Process]) -> list[psutil.Process]:
        """Those of `processes`, and all others that name this home in their environment, which still run."""
        found = {p.pid: p for p in processes}
        for process in psutil.process_iter():
            try:
                if process.environ().get("PALIMPSEST_HOME") == str(self.home):
                    found[process.pid] = process
            except psutil.Error:
                continue
        return [p for p in found.values() if alive(p)]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    return Front(tmp_path_factory.mktemp("main-job") / "home")


@pytest.fixture(scope="module")
def running(front: Front) -> Iterator[psutil.Popen]:
    """One running gateway for the tests below; the last of them ends it."""
    process = front.start()
    yield process
    for child in [*_family(process), process]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(timeout=120)


def _family(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True) if alive(process) else []


def test_once_takes_every_sample_all_the_way_and_back(front: Front) -> None:
    output = front.call("run", "--once", "--limit", "400", seconds=500)
    assert f"all {len(SAMPLES)} samples archived, forwarded, given back and equal" in output, output
    facts = json.loads(front.call("status", "--json"))
    assert facts["counts"]["by_state"] == {"RELEASED": len(SAMPLES)}
    assert facts["counts"]["forwards"] == {"demo": {"SENT": len(SAMPLES)}}
    assert facts["counts"]["by_form"]["CODED"] >= 15
    assert len(without_weights((front.home / "demo-destination").glob("*.dcm"))) == len(SAMPLES)
    assert "intact" in front.call("audit", "verify")
    front.wait("none left", lambda: not front.left_behind([]), 120)


def test_ctrl_c_stops_everything_cleanly(front: Front) -> None:
    running = front.start()
    family = _family(running)
    assert len(family) >= 8
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=120) == 0
    front.wait("said so", lambda: any("stopped" in line for line in front.lines), 120)
    front.wait("none left", lambda: not front.left_behind(family), 120)


def test_sending_versions_strangers_and_everything_twice(front: Front, running: psutil.Popen, tmp_path: Path) -> None:
    source = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    folder = tmp_path / "mine"
    folder.mkdir()
    dataset = dcmread(source)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.77"
    dcmwrite(folder / "first.dcm", dataset, enforce_file_format=True)
    dataset.StudyDescription = "corrected header, same pixels, same UID"
    dcmwrite(folder / "corrected.dcm", dataset, enforce_file_format=True)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dcmwrite(folder / "other-pixels.dcm", dataset, enforce_file_format=True)
    (folder / "notes.txt").write_text("not an image")

    report = tmp_path / "report.json"
    output = front.call("send", str(folder), "--json", str(report), "--associations", "1")
    facts = json.loads(report.read_text())
    assert facts["accepted"] == facts["archived"] == facts["restored"] == 3, output
    assert facts["superseded"] == 2 and facts["refused"] == {"not-part10": 1}
    assert all(file["compared"] == "bytes" for file in facts["files"])

    front.call("send", str(folder), "--json", str(report))
    again = json.loads(report.read_text())
    assert again["known_before"] == again["restored"] == 3

    head = peek(folder / "first.dcm")
    out = tmp_path / "out"
    front.call("fetch", str(head.study_uid), str(head.series_uid), str(head.sop_instance_uid), "--out", str(out))
    (fetched,) = out.iterdir()
    assert fetched.name == f"{head.sop_instance_uid}.dcm"
    assert any(compare(path, fetched).equal for path in folder.glob("*.dcm"))


def test_a_second_supervisor_and_a_taken_port_are_refused(front: Front, running: psutil.Popen, tmp_path: Path) -> None:
    assert re.search(rf"another .*process {running.pid}", front.call("run", ok=False))
    other = Front(tmp_path / "other")
    other.env["PALIMPSEST_DICOM_PORT"] = front.env["PALIMPSEST_DICOM_PORT"]
    assert f"port {front.env['PALIMPSEST_DICOM_PORT']} on 127.0.0.1 (DICOM)" in other.call("run", ok=False)


def test_a_killed_child_comes_back(front: Front, running: psutil.Popen) -> None:
    listener = next(p for p in _family(running) if "service.listener" in command_of(p))
    listener.kill()
    front.wait("said", lambda: any("listener started again" in line for line in front.lines))
    front.wait("listens", lambda: json.loads(front.call("status", "--json"))["parts"]["listener"] == "ok")


def test_sigkill_of_the_supervisor_leaves_no_orphan(front: Front, running: psutil.Popen) -> None:
    # the pool children of Celery, and what those start, are grandchildren: they must go as well
    front.wait("grandchildren", lambda: len(_family(running)) - len(running.children()) >= 4)
    family = _family(running)
    running.kill()
    running.wait(timeout=120)
    front.wait("no orphan", lambda: not front.left_behind(family), 120)
