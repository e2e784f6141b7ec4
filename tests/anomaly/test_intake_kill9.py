"""Listener processes killed with SIGKILL while eight associations send: what was acknowledged is there, once, whole."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import psutil
import pytest

from gateway import audit
from tests.acceptance.intake import Refused, Sender, uids
from tests.running import Rig, until

LANES = 8
OBJECTS = 20  # a lane
KILLS = 6

pytestmark = [pytest.mark.anomaly, pytest.mark.integration]


def lane(port: int, number: int, acknowledged: list[str], failures: list[str]) -> None:
    """Send each object until it was acknowledged, as a modality does."""
    source, sender = uids(7, number), None
    for _ in range(OBJECTS):
        uid = next(source)
        while True:
            try:
                sender = sender or Sender(port, "PALIMPSEST", timeout=60)
                sender.send(uid)
                break
            except (Refused, OSError):
                failures.append(uid)
                sender = None
                time.sleep(0.05)
        acknowledged.append(uid)


def kill_busiest(parent: psutil.Process) -> bool:
    """SIGKILL the child that serves most, not one that happens to serve nobody; False if one went while we looked."""
    with suppress(psutil.NoSuchProcess):
        busiest = max(parent.children(), key=lambda child: len(child.net_connections("tcp")))
        busiest.kill()
        return True
    return False


@pytest.mark.timeout(600)
def test_what_was_acknowledged_survives_every_kill(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    failures: list[str] = []
    with Rig(tmp_path / "home", listener_processes=2) as rig:
        rig.start("broker", "listener")
        rig.wait("listener", rig.listens)
        parent = psutil.Process(rig.pid("listener"))
        lanes = [
            threading.Thread(target=lane, args=(rig.settings.dicom_port, number, acknowledged, failures), daemon=True)
            for number in range(LANES)
        ]
        for thread in lanes:
            thread.start()
        total = LANES * OBJECTS
        for kill in range(KILLS):
            rig.wait("progress", lambda kill=kill: len(acknowledged) >= (kill + 1) * total // (KILLS + 2))  # type: ignore[misc]
            assert until(lambda: len(parent.children()) == 2)  # the one killed before is started again first
            before = len(acknowledged)
            assert until(lambda: kill_busiest(parent))
            there = set(acknowledged[:before])
            assert all(rig.gw.index.by_sop(uid) is not None for uid in there), "an acknowledged object has no row"
        rig.wait("all sent", lambda: len(acknowledged) == total)
        for thread in lanes:
            thread.join(120)
        assert failures, "the kills met nobody"
        assert until(lambda: len(parent.children()) == 2)
        assert rig.gw.index.counts().total == total == len(set(acknowledged))
        for uid in acknowledged:
            [row] = rig.gw.index.versions(uid)
            assert sha256(rig.gw.spool.path(row.digest).read_bytes()).hexdigest() == row.digest
        assert len(list(rig.gw.spool)) == total
        assert audit.verify(rig.gw.index).ok
