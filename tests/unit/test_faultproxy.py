"""The fault proxy breaks a connection where it is told to, and nowhere else."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from palimpsest.faultproxy import Fault, FaultProxy, In
from tests.running import until

PDUS = b"".join(struct.pack(">BxL", kind, size) + bytes([kind]) * size for kind, size in ((1, 100), (4, 1000), (4, 10)))


class Server:
    """Keeps what each connection sent, and says how each ended; answers what it got when the peer is done."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listening.getsockname()[1])
        self.got: list[bytearray] = []
        self.ends: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self.listening.accept()
            except OSError:
                return
            self.got.append(bytearray())
            threading.Thread(target=self._serve, args=(peer, self.got[-1]), daemon=True).start()

    def _serve(self, peer: socket.socket, got: bytearray) -> None:
        with peer:
            try:
                while data := peer.recv(1 << 16):
                    got += data
                peer.sendall(bytes(got))
                self.ends.append("end")
            except ConnectionError:
                self.ends.append("reset")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.listening.close()


def talk(port: int, data: bytes, timeout: float = 120.0) -> bytes | str:
    """What comes back, or how it failed."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as peer:
        try:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            answer = bytearray()
            while more := peer.recv(1 << 16):
                answer += more
        except TimeoutError:
            return "silent"
        except OSError:
            return "reset"
        return bytes(answer)


@pytest.mark.parametrize(
    ("at", "through"),
    [
        (In.offset(0), 0),
        (In.offset(37), 37),
        (In.pdu(1), 6 + 50),
        (In.pdu(2), 106 + 6 + 500),
        (In.after(b"\x04" * 4, 3), 106 + 6 + 4 + 3),
        (In.offset(10_000), len(PDUS)),
    ],
)
def test_a_cut_comes_at_its_place_and_for_one_connection(server: Server, at: In, through: int) -> None:
    with FaultProxy(("127.0.0.1", server.port), Fault("cut", at)) as proxy:
        answer = talk(proxy.port, PDUS)
        assert until(lambda: len(server.ends) == 1)
        assert bytes(server.got[0]) == PDUS[:through]
        assert answer == (PDUS if through == len(PDUS) else b"") or answer == "reset"
        assert talk(proxy.port, PDUS) == PDUS
        assert (proxy.connections, proxy.struck) == (2, through < len(PDUS))
        assert until(lambda: proxy.open == 0)


def test_a_place_is_found_when_its_bytes_come_one_by_one(server: Server) -> None:
    faults = (Fault("cut", In.pdu(2)), Fault("cut", In.after(b"\x04" * 4, 3)))
    with (
        FaultProxy(("127.0.0.1", server.port), *faults) as cutting,
        FaultProxy(("127.0.0.1", cutting.port), Fault("crumbs"), every=True) as proxy,
    ):
        for number in (1, 2, 3):
            talk(proxy.port, PDUS)
            assert until(lambda number=number: len(server.ends) == number)  # type: ignore[misc]
    assert list(map(len, server.got)) == [612, 119, len(PDUS)]


def test_a_reset_is_a_reset_on_both_sides(server: Server) -> None:
    with FaultProxy(("127.0.0.1", server.port), Fault("reset", In.offset(40), "up")) as proxy:
        assert talk(proxy.port, PDUS) == "reset"
        assert until(lambda: server.ends == ["reset"])


def test_silence_is_told_to_nobody_until_the_proxy_ends(server: Server) -> None:
    with FaultProxy(("127.0.0.1", server.port), Fault("silent", In.offset(40)), every=True) as proxy:
        assert talk(proxy.port, PDUS, timeout=0.2) == "silent"
        assert until(lambda: proxy.open == 1) and server.ends == []
    assert until(lambda: len(server.ends) == 1)


@pytest.mark.parametrize("fault", [Fault("delay", way="down", seconds=0.01), Fault("throttle", rate=1e6)])
def test_slowness_changes_no_byte(server: Server, fault: Fault) -> None:
    data = bytes(range(256)) * 400
    with FaultProxy(("127.0.0.1", server.port), fault) as proxy:
        assert talk(proxy.port, data) == data
        assert proxy.struck == 1


def test_the_way_down_has_its_own_faults(server: Server) -> None:
    with FaultProxy(("127.0.0.1", server.port), Fault("cut", In.offset(5), "down")) as proxy:
        assert talk(proxy.port, PDUS) in (PDUS[:5], "reset")
    assert bytes(server.got[0]) == PDUS
