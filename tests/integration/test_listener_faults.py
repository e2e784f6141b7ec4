"""A network that breaks between sender and listener, and peers that only take places: nothing lost, doubled or kept."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from pydicom.data import get_testdata_file
from pynetdicom import _config

from gateway import audit
from gateway.bootstrap import Gateway, build
from gateway.jobs import MemoryQueue
from gateway.settings import load_settings
from palimpsest.faultproxy import Fault, FaultProxy, In
from service import listener_receive
from service.listener import Listener
from service.listener_limits import WAITING_FROM_ONE
from tests.acceptance.intake import SIZE, Refused, Sender, association_request, uids
from tests.running import Rig, alive, until

pytestmark = pytest.mark.integration

IDLE_SECONDS = 3.0
Place = tuple[Gateway, Listener]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Place]]:
    for name in ("UNRESTRICTED_STORAGE_SERVICE", "LOG_HANDLER_LEVEL"):
        monkeypatch.setattr(_config, name, getattr(_config, name))
    monkeypatch.setattr(_config, "VALIDATORS", dict(_config.VALIDATORS))
    running: list[Place] = []

    def make(**settings: Any) -> Place:
        values = {"dicom_port": 0, "watermark_bytes": 0, "network_timeout_seconds": IDLE_SECONDS}
        gateway = build(load_settings(home=tmp_path / "home", **values | settings), queue=MemoryQueue())
        listener = Listener(gateway)
        listener.start()
        running.append((gateway, listener))
        return running[-1]

    yield make
    for gateway, listener in running:
        listener.stop(grace_seconds=0.2)
        gateway.close()


def port_of(listener: Listener) -> int:
    assert listener.port is not None
    return listener.port


def send(port: int, uid: str) -> int:
    """Try until Success, as a modality does; how many tries it took."""
    for number in range(1, 30):
        try:
            # what falls silent does so at the first try; of the others none is given up
            sender = Sender(port, "PALIMPSEST", timeout=2 * IDLE_SECONDS if number == 1 else 120)
            sender.send(uid)
        except (Refused, OSError):
            continue
        with suppress(Refused, OSError):  # the object is acknowledged: what breaks now breaks nothing
            sender.close()
        return number
    raise AssertionError("never a Success")


def at_rest(gateway: Gateway, listener: Listener) -> bool:
    """No association, no thread of one, no file half received."""
    return (
        not listener._active()
        and listener._door.connections.associated == 0
        and not listener._door.connections._waiting
        and not any(gateway.settings.incoming_dir.iterdir())
    )


def whole(gateway: Gateway, acknowledged: list[str]) -> bool:
    """Exactly one row for each, and every file is what its name says."""
    rows = [gateway.index.versions(uid) for uid in acknowledged]
    files = [gateway.spool.path(row.digest) for found in rows for row in found]
    return (
        [len(found) for found in rows] == [1] * len(acknowledged)
        and all(sha256(path.read_bytes()).hexdigest() == path.name for path in files)
        and gateway.index.counts().total == len(acknowledged) == len(list(gateway.spool))
        and audit.verify(gateway.index).ok
    )


#: the request, the command, data, the last byte but some; on the way back the answer to the request, and to the object
PLACES = [
    ("up", In.pdu(1)),
    ("up", In.pdu(2)),
    ("up", In.pdu(4)),
    ("up", In.offset(512 << 10)),
    ("down", In.pdu(1)),
    ("down", In.pdu(2)),
]


@pytest.mark.parametrize("kind", ["cut", "reset", "silent"])
def test_a_broken_connection_loses_and_doubles_nothing(start: Callable[..., Place], kind: Any) -> None:
    gateway, listener = start()
    source = uids(1, 1)
    acknowledged = [next(source) for _ in PLACES]
    faults = [[Fault(kind, place, way)] for way, place in PLACES]  # type: ignore[arg-type]
    with ThreadPoolExecutor(len(PLACES)) as pool:
        tries = list(pool.map(lambda uid, fault: through(listener, uid, *fault), acknowledged, faults))
    assert tries == [2] * len(PLACES)
    assert until(lambda: at_rest(gateway, listener))
    assert whole(gateway, acknowledged)
    received = Counter(event["event"] for event in audit.tail(gateway.index))
    assert received["received"] == len(PLACES) and received["duplicate"] == 1  # whose answer was lost


def through(listener: Listener, uid: str, *faults: Fault) -> int:
    with FaultProxy(("127.0.0.1", port_of(listener)), *faults) as proxy:
        return send(proxy.port, uid)


def test_a_slow_network_is_only_slow(start: Callable[..., Place]) -> None:
    gateway, listener = start()
    source = uids(2, 1)
    slow = [
        Fault("delay", seconds=0.02),
        Fault("throttle", rate=2e6),
        Fault("crumbs", size=700),
        Fault("delay", way="down"),
    ]
    acknowledged = [next(source) for _ in slow]
    with ThreadPoolExecutor(len(slow)) as pool:
        assert list(pool.map(lambda uid, fault: through(listener, uid, fault), acknowledged, slow)) == [1] * len(slow)
    assert until(lambda: at_rest(gateway, listener))
    assert whole(gateway, acknowledged)


def test_an_object_may_take_longer_than_the_idle_timeout(start: Callable[..., Place]) -> None:
    gateway, listener = start()
    source = uids(9, 1)
    acknowledged = [next(source), next(source)]
    slow = Fault("throttle", rate=SIZE / (1.4 * IDLE_SECONDS))
    with FaultProxy(("127.0.0.1", port_of(listener)), slow) as proxy:
        sender = Sender(proxy.port, "PALIMPSEST", timeout=120)
        for uid in acknowledged:  # over one association, which the first one must not have ended
            sender.send(uid)
        sender.close()
    assert whole(gateway, acknowledged)


class _Straying(Sender):
    """Sends data sets in another presentation context than their commands."""

    def _fragment(self, control: int, data: memoryview) -> None:
        context = 1 if control & 1 else 3
        self.connection.sendall(struct.pack(">BxLLBB", 4, len(data) + 6, len(data) + 2, context, control) + data)


def test_a_data_set_in_another_context_than_its_command_is_not_taken(start: Callable[..., Place]) -> None:
    gateway, listener = start()  # its transfer syntax could be another one than the file would say
    with pytest.raises((Refused, OSError)):
        _Straying(port_of(listener), "PALIMPSEST", timeout=120).send(next(uids(10, 1)))
    assert until(lambda: at_rest(gateway, listener))
    assert gateway.index.counts().total == 0


@pytest.mark.peers
def test_storescu_through_a_network_that_breaks(start: Callable[..., Place]) -> None:
    program = shutil.which("storescu")
    if program is None:
        assert os.environ.get("PALIMPSEST_REQUIRE_PEERS") != "1", "storescu is required"
        pytest.skip("storescu is not installed")
    gateway, listener = start()
    files = [str(get_testdata_file(name, download=False)) for name in ("CT_small.dcm", "MR_small.dcm")]
    faults = [
        Fault("reset", In.pdu(3)),
        Fault("cut", In.pdu(5)),
        Fault("silent", In.pdu(4)),
        Fault("reset", In.pdu(3), "down"),
    ]
    with FaultProxy(("127.0.0.1", port_of(listener)), *faults) as proxy:
        codes: list[int] = []
        while not codes or codes[-1]:
            assert len(codes) < 10
            command = [program, "-to", "60", "-td", "5", "-ta", "5", "127.0.0.1", str(proxy.port), *files]
            codes.append(subprocess.run(command, capture_output=True, timeout=200).returncode)
        assert proxy.struck == len(faults) == len(codes) - 1
    assert until(lambda: at_rest(gateway, listener))
    assert gateway.index.counts().total == len(files) == len(list(gateway.spool))


def test_associations_opened_and_dropped_leave_nothing(start: Callable[..., Place]) -> None:
    gateway, listener = start(max_associations=50)
    port, process = port_of(listener), psutil.Process()

    def drop(number: int) -> None:
        peer = socket.create_connection(("127.0.0.1", port), timeout=120)
        with peer, suppress(OSError):  # how the other side ends it is not asked
            if number % 3:
                peer.sendall(association_request("PALIMPSEST"))
            if number % 3 == 2:
                peer.recv(6)
            if number % 2:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST

    def round_of(count: int) -> tuple[int, int]:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(drop, range(count)))
        assert until(lambda: at_rest(gateway, listener))
        return process.num_fds(), threading.active_count()

    before = round_of(60)
    round_of(240)
    assert until(lambda: process.num_fds() <= before[0] + 2 and threading.active_count() <= before[1] + 2)
    assert send(port, next(uids(3, 1))) == 1


# --- limits ------------------------------------------------------------------------------------------------------


def lines(gateway: Gateway) -> list[dict[str, Any]]:
    return [event["detail"] for event in audit.tail(gateway.index) if event["event"] == "refused"]


def ask(port: int, calling: bytes = b"INTAKE") -> tuple[socket.socket, bytes]:
    """Ask for an association; the connection and the first ten bytes of the answer (b'' if it was closed)."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=120)
    try:
        peer.sendall(association_request("PALIMPSEST").replace(b"INTAKE".ljust(16), calling.ljust(16)))
        return peer, peer.recv(10)
    except ConnectionError:
        return peer, b""


def test_an_address_that_is_not_allowed_is_closed_before_it_was_heard(
    start: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, listener = start()
    monkeypatch.setattr(type(gateway.settings), "allows_address", lambda settings, address: False)
    for _ in range(40):
        peer, answer = ask(port_of(listener))
        peer.close()
        assert answer == b""
    assert until(lambda: len(lines(gateway)) == 1)
    listener.stop(grace_seconds=0.2)  # writes what was counted
    assert sum(line["count"] for line in lines(gateway)) == 40 and len(lines(gateway)) == 2
    assert {(line["reason"], line["address"]) for line in lines(gateway)} == {("address-not-allowed", "127.0.0.1")}


def test_outside_the_demo_only_this_machine_may_connect_unless_said(tmp_path: Path) -> None:
    production = load_settings(home=tmp_path, profile="production")
    allowed = [production.allows_address(each) for each in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "10.1.2.3")]
    assert allowed == [True, True, True, False]
    listed = load_settings(home=tmp_path, profile="production", address_allow="10.0.0.0/8,fe80::/10")
    asked = ("10.1.2.3", "::ffff:10.1.2.3", "fe80::1%eth0", "127.0.0.1", "11.1.2.3", "192.168.3.7")
    assert [listed.allows_address(each) for each in asked] == [True, True, True, True, False, False]
    assert load_settings(home=tmp_path).allows_address("203.0.113.9")
    with pytest.raises(ValueError, match="address_allow"):
        load_settings(home=tmp_path, address_allow="10.0.0.0/8,nonsense")


@pytest.mark.parametrize("setting", ["max_associations", "max_associations_per_peer"])
def test_one_association_too_many_is_rejected_for_now(start: Callable[..., Place], setting: str) -> None:
    gateway, listener = start(**{setting: 3}, network_timeout_seconds=120.0)
    held = [ask(port_of(listener)) for _ in range(3)]
    assert [answer[0] for _, answer in held] == [2, 2, 2]
    for _ in range(5):
        peer, answer = ask(port_of(listener))
        peer.close()
        assert answer[0] == 3 and tuple(answer[7:10]) == (2, 3, 2)  # transient, presentation, local limit exceeded
    held.pop()[0].close()
    assert until(lambda: listener._door.connections.associated == 2)
    again, answer = ask(port_of(listener))
    assert answer[0] == 2
    for peer in (again, *(each for each, _ in held)):
        peer.close()
    expected = "too-many-associations" + ("-from-address" if setting.endswith("peer") else "")
    assert until(lambda: [line["reason"] for line in lines(gateway)] == [expected])


def test_connections_without_an_association_take_nobodys_place(start: Callable[..., Place]) -> None:
    gateway, listener = start(max_associations=2, network_timeout_seconds=120.0)
    here = ("127.0.0.1", port_of(listener))
    idle = [socket.create_connection(here, timeout=120) for _ in range(WAITING_FROM_ONE - 1)]
    assert until(lambda: len(listener._door.connections._waiting) == WAITING_FROM_ONE - 1)
    assert send(port_of(listener), next(uids(4, 1))) == 1
    more = [socket.create_connection(here, timeout=120) for _ in range(2)]
    assert more[1].recv(1) == b""  # one above the bound: closed
    assert until(lambda: [line["reason"] for line in lines(gateway)] == ["too-many-connections-from-address"])
    for peer in (*idle, *more):
        peer.close()
    assert until(lambda: at_rest(gateway, listener))


def test_a_request_that_drips_is_cut_off_by_artim(start: Callable[..., Place]) -> None:
    gateway, listener = start(network_timeout_seconds=30.0)
    object.__setattr__(listener._door, "artim_seconds", 0.5)
    request = association_request("PALIMPSEST")
    peer = socket.create_connection(("127.0.0.1", port_of(listener)), timeout=120)
    with peer, pytest.raises(OSError):  # the listener hangs up in the middle
        for at in range(len(request) - 1):
            peer.sendall(request[at : at + 1])
            time.sleep(0.05)
    assert until(lambda: at_rest(gateway, listener))


def test_strangers_titles_are_rejected_and_counted(start: Callable[..., Place]) -> None:
    gateway, listener = start(calling_ae_allow="CT1")
    for _ in range(20):
        peer, answer = ask(port_of(listener), b"STRANGER")
        peer.close()
        assert tuple(answer[7:10]) == (1, 1, 3)
    peer, answer = ask(port_of(listener), b"CT1")
    assert answer[0] == 2
    peer.close()
    listener.stop(grace_seconds=0.2)
    assert [line["count"] for line in lines(gateway)] == [19, 1]


# --- several processes -------------------------------------------------------------------------------------------


def test_of_processes_on_one_port_the_busier_lets_the_others_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(listener_receive, "time", SimpleNamespace(sleep=waited.append))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = object.__new__(listener_receive.SpoolingServer)
        server.socket, server._listening, server.ssl_context = listening, listening, None
        for associated in (0, 1, 4, 50):
            server.door = SimpleNamespace(connections=SimpleNamespace(associated=associated))  # type: ignore[assignment]
            with socket.create_connection(listening.getsockname()):
                server.get_request()[0].close()
    assert waited == pytest.approx([0.0, 0.003, 0.012, 0.03])


def test_several_processes_share_a_port_and_outlive_one_another(tmp_path: Path) -> None:
    with Rig(tmp_path / "home", listener_processes=2, max_associations=8) as rig:
        rig.start("broker", "listener")
        rig.wait("listener", rig.listens)
        parent = psutil.Process(rig.pid("listener"))
        assert until(lambda: len(parent.children()) == 2)
        port = rig.settings.dicom_port
        held = [Sender(port, "PALIMPSEST") for _ in range(6)]
        served = [sum(is_ours(each, port) for each in child.net_connections()) for child in parent.children()]
        assert sum(served) == len(held) and all(served), "both processes take connections"
        source = uids(5, 1)
        acknowledged = [next(source) for _ in held]
        for sender, uid in zip(held, acknowledged, strict=True):
            sender.send(uid)
        os.kill(parent.children()[0].pid, signal.SIGKILL)
        more = [next(source) for _ in range(4)]
        for uid in more:
            assert send(port, uid) >= 1
        assert until(lambda: len(parent.children()) == 2), "what died is started again"
        assert whole(rig.gw, acknowledged + more)
        children = parent.children()
        rig.kill9("listener")
        assert until(lambda: not any(map(alive, children)))


def is_ours(connection: Any, port: int) -> bool:
    return bool(connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port)
