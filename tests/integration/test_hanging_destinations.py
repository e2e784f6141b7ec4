"""Destinations that take the connection and never say a word keep no other one waiting, with real worker processes."""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.circuit import circuit_path
from gateway.instance import ForwardState
from gateway.settings import Destination
from tests.fakes import part10, take_in
from tests.proving import InProcess
from tests.running import Rig
from worker.pipeline import process_instance

HANGING = ("hangs", "hangs-too")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "nas").mkdir()
    with ExitStack() as stack:
        places = [Destination(name="nas", kind="filesystem", path=str(tmp_path / "nas"))]
        for name in HANGING:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # connects; nobody ever reads
            places.insert(0, Destination(name=name, kind="dicom", port=server.getsockname()[1], ae_title="HANGS"))
        home = tmp_path / "home"
        settings = {"destinations": tuple(places), "network_timeout_seconds": 280.0, "forward_processes": 1}
        yield stack.enter_context(Rig(home, **settings))


def is_held(rig: Rig, name: str) -> bool:
    """Whether a process is at that destination now."""
    with circuit_path(rig.settings.run_dir, name).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_hanging_destinations_take_no_process_from_another(rig: Rig) -> None:
    rig.start("broker")
    rig.wait("broker", rig.broker_answers)
    rig.start("forward", "sweep")

    def archived() -> int:
        row = take_in(rig.gw, part10()).row
        process_instance(rig.gw, InProcess(rig.gw.keys), row.id, "test")  # type: ignore[arg-type]
        return row.id

    def states(instance_id: int) -> dict[str, ForwardState]:
        return {each.destination: each.state for each in rig.gw.index.forwards(instance_id)}

    first = archived()
    rig.wait("both hang", lambda: all(is_held(rig, name) for name in HANGING))
    others = [archived() for _ in range(3)]
    rig.wait("the folder has all", lambda: all(states(each)["nas"] == ForwardState.SENT for each in (first, *others)))
    assert all(is_held(rig, name) for name in HANGING)
    assert {states(each)[name] for each in (first, *others) for name in HANGING} == {ForwardState.WAITING}
