"""What a GPU is used for, from a stand-in of the driver's tool to the admin page and the metrics."""

from __future__ import annotations

import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from gateway import metrics_read
from gateway.alive import Alive
from gateway.bootstrap import Gateway
from gateway.tokens import mint_token
from service.api import create_app
from service.board import Board
from tests.fakes import part10, take_in
from tests.running import until
from worker import device_load
from worker.device_load import NOT_KNOWN, Load, nvidia_smi, parse, watch_load

MIB = 1 << 20


def test_what_the_driver_does_not_tell_is_not_known() -> None:
    assert parse("20480, 143771, 37\n") == Load(20480 * MIB, 143771 * MIB, 37)
    assert parse("512, 16384, [N/A]\n") == Load(512 * MIB, 16384 * MIB, None)
    for text in ("", "No devices were found", "1, 2", "1, 2, 3, 4", "[N/A], -1, 0.5"):
        assert set(parse(text)) == {None}, text


def test_the_tool_is_asked_for_that_device_and_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_smi("GPU-1") == NOT_KNOWN  # no such program
    program = tmp_path / "nvidia-smi"
    program.touch(0o755)
    asked = tmp_path / "asked"
    for body, answer, seconds in (
        (f'echo "$*" "$PATH" > {asked}; echo "1, 2, 3"', Load(MIB, 2 * MIB, 3), 60.0),
        ("echo 1, 2, 3; exit 9", NOT_KNOWN, 60.0),
        ("exec /bin/sleep 300", NOT_KNOWN, 0.5),
    ):
        monkeypatch.setattr(device_load, "ANSWER_SECONDS", seconds)
        program.write_text(f"#!/bin/sh\n{body}\n")
        assert nvidia_smi("GPU-1") == answer, body
    assert nvidia_smi("") == NOT_KNOWN  # an unnamed device is not every device
    assert "--id=GPU-1" in asked.read_text() and str(tmp_path) not in asked.read_text()  # no environment of ours


def test_page_and_metrics_show_it(gw: Gateway) -> None:
    stop, asked = threading.Event(), []

    def read(uuid: str) -> Load:
        asked.append(uuid)
        return Load(20_000_000_000, 150_000_000_000, 37)

    gpu, other = (
        Alive(gw.index, f"{name}-a", name, device) for name, device in (("gpu-0", "CUDA device 0"), ("b", ""))
    )
    watch_load(gpu, "GPU-1", stop, read)
    assert until(lambda: gpu._row.busy is not None)
    stop.set()
    assert asked == ["GPU-1"]
    headers = {"Authorization": f"Bearer {mint_token(gw, 'admin', 'me')}"}

    def page() -> str:
        return TestClient(create_app(gw), headers=headers).get("/admin/system").text

    gw.index.worker_beat(other._row)
    assert "busy," not in page()  # no GPU, no column
    gw.index.worker_beat(gpu._row)
    assert "37 % busy, 20.0 GB of 150 GB" in page()
    text = metrics_read.exposition(gw, gw.queue.depths, dict).decode()
    for wanted in ('kind="used",worker="gpu-0"} 2e+10', 'worker="gpu-0"} 0.37'):
        assert wanted in text
    gw.index.worker_beat(replace(gpu._row, owner="gpu-0-z", busy=5))  # killed and started again
    gw.index.worker_beat(gpu._row)
    told = metrics_read.exposition(gw, gw.queue.depths, dict).decode()
    assert re.findall(r"(?m)^palimpsest_gpu_busy_ratio.*} (.*)$", told) == ["0.37"], "a series comes once, the newest"
    gw.index.worker_gone("gpu-0-z")
    gpu.load(*NOT_KNOWN)
    gw.index.worker_beat(gpu._row)
    assert "– busy, –" in page()
    assert "palimpsest_gpu_busy_ratio{" not in metrics_read.exposition(gw, gw.queue.depths, dict).decode()


def test_a_load_that_comes_while_a_task_ends_loses_nothing_of_it(gw: Gateway) -> None:
    alive, stop = Alive(gw.index, "gpu-0-a", "gpu-0"), threading.Event()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        watch = threading.Thread(target=lambda: [alive.load(1, 2, 3) for _ in iter(stop.is_set, True)])
        watch.start()
        for _ in range(2000):
            with alive.working("encode", 1):
                pass
    finally:
        sys.setswitchinterval(before)
        stop.set()
        watch.join()
    assert (alive._row.done, alive._row.task, alive._row.subject) == (2000, "", None)


def test_an_api_that_serves_is_no_worker(gw: Gateway) -> None:
    take_in(gw, part10())
    gw.index.worker_beat(Alive(gw.index, "api-a", "api")._row)
    assert "Instances wait and no worker is alive." in [each.text for each in Board(gw).picture().troubles]
