"""Several processes of the API behind one port: what one signs the other takes, and one that dies is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn

from gateway.alive import Alive
from gateway.bootstrap import Gateway
from gateway.settings import child_environment
from gateway.tokens import mint_token
from palimpsest.cli_hosts import Role, unhealthy
from service.api import run_api
from tests.fakes import part10, take_in
from tests.running import ROOT, Rig, alive, free_port, until

pytestmark = pytest.mark.integration


def test_processes_share_a_port_and_outlive_one_another(tmp_path: Path) -> None:
    with Rig(tmp_path / "home", http_processes=2) as rig:
        row = take_in(rig.gw, part10(study="1.2.3.4")).row
        rig.start("broker", "api")
        url = f"http://127.0.0.1:{rig.settings.http_port}"
        rig.wait("api", lambda: answers(url))
        assert unhealthy(rig.settings, Role.API) == ""
        parent = psutil.Process(rig.pid("api"))
        assert until(lambda: len(parent.children()) == 2)
        assert until(lambda: beating(rig.gw) >= {child.pid for child in parent.children()})
        victims = [child.pid for child in parent.children()][:1]
        token = mint_token(rig.gw, "clinician", "viewer")
        headers = {"Authorization": f"Bearer {token}"}
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        assert until(lambda: not any(each.pid in victims and alive(each) for each in parent.children()))
        for _ in range(8):  # a connection each, so that whichever is free takes it
            answer = httpx.get(f"{url}/dicomweb/studies/1.2.3.4/instances", headers=headers, timeout=120)
            assert answer.status_code in (200, 204), answer.text
        assert until(lambda: len(parent.children()) == 2 and not set(victims) & {c.pid for c in parent.children()})
        assert rig.gw.index.get(row.id).sop_uid == row.sop_uid
        assert until(lambda: beating(rig.gw) >= {child.pid for child in parent.children()})
        children = parent.children()
        parent.terminate()
        assert until(lambda: not any(map(alive, children)))
        assert rig.children["api"].process.wait(120) == 0
        assert "does not answer" in unhealthy(rig.settings, Role.API)
        assert beating(rig.gw) == set(victims), "whoever ends in order says goodbye"


def test_a_worker_is_healthy_while_it_beats_on_this_host(gw: Gateway) -> None:
    alive = Alive(gw.index, "encode-1", "encode")
    assert "no worker" in unhealthy(gw.settings, Role.WORKER)
    gw.index.worker_beat(Alive(gw.index, "api-1", "api")._row)
    assert "no worker" in unhealthy(gw.settings, Role.WORKER)
    alive.start()
    assert until(lambda: not unhealthy(gw.settings, Role.WORKER))
    alive.close()
    assert "no worker" in unhealthy(gw.settings, Role.WORKER)
    assert "port" in unhealthy(gw.settings.model_copy(update={"dicom_port": free_port()}), Role.LISTENER)


def test_an_api_that_cannot_bind_leaves_no_heartbeat(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(server: uvicorn.Server, sockets: object) -> None:
        assert until(lambda: bool(beating(gw)))
        raise SystemExit(1)  # as uvicorn's own

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("gateway.steps.watch", lambda *_: None)  # our own process keeps its counts where they are
    with pytest.raises(SystemExit):
        run_api(gw.settings)
    assert beating(gw) == set()


def beating(gw: Gateway) -> set[int]:
    return {each.pid for each in gw.index.workers() if each.name == "api"}


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=20).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_sweep_starts_by_its_command(gw: Gateway) -> None:
    """It read the command line of `palimpsest` as its own, and refused the word sweep."""
    command = [sys.executable, "-m", "palimpsest", "sweep"]
    env = child_environment(gw.settings) | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, cwd=gw.settings.home)
    try:
        assert until(lambda: process.poll() is not None or any(each.name == "sweep" for each in gw.index.workers()))
    finally:
        process.terminate()
    assert process.wait(120) == 0
