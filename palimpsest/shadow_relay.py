"""The pass-through between senders and their PACS: bytes on, both ways, and a copy to whoever watches.

The clinical path first: a byte is handed on before its copy, the copy goes into a bounded buffer that nobody waits
for, and where the buffer is full or the watcher is gone the copy is dropped and counted. Nothing of a connection is
read, parsed or changed here, so TLS passes, too; half-closed stays half-closed and a reset is passed on as a reset.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final, Protocol

__all__ = [
    "CLOSED", "FRAME", "FROM_CLIENT", "FROM_SERVER", "KINDS", "LOST", "OPENED", "STATE", "Copies", "Relay", "Relayed",
    "Tap",
]  # fmt: skip

CHUNK: Final = 1 << 16
CONNECT_SECONDS: Final = 10.0
#: one frame of a copy: kind, connection, bytes that follow
FRAME: Final = struct.Struct(">BLL")
OPENED, FROM_CLIENT, FROM_SERVER, CLOSED, LOST, STATE = range(6)
KINDS: Final = frozenset(range(6))
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


@dataclass
class Relayed:
    """What passed, and what of it was not copied. Connections, bytes, copies given up because nobody kept pace."""

    connections: int = 0
    refused: int = 0
    bytes_to_server: int = 0
    bytes_to_client: int = 0
    copies_dropped: int = 0
    watcher_restarts: int = 0


class Tap(Protocol):
    """Who is told of what passes. No call may wait or raise."""

    def frame(self, kind: int, connection: int, data: bytes = b"") -> None:
        """Something happened on a connection."""


class Copies:
    """A Tap into a transport, with a bound: a connection's copy is whole or it ends with LOST."""

    def __init__(self, relayed: Relayed, limit: int) -> None:
        self._relayed, self._limit = relayed, limit
        self._transport: asyncio.WriteTransport | None = None
        self._copied: set[int] = set()

    def watch(self, transport: asyncio.WriteTransport | None) -> None:
        """Copy into this transport from now on, connections that begin from now on; None: nobody watches."""
        self._transport = transport
        self._relayed.copies_dropped += len(self._copied)
        self._copied.clear()

    def frame(self, kind: int, connection: int, data: bytes = b"") -> None:
        """See Tap."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self._relayed.copies_dropped += kind == OPENED
            return
        if kind == OPENED:
            self._copied.add(connection)
        elif connection not in self._copied:
            return
        if transport.get_write_buffer_size() + len(data) > self._limit:
            self._copied.discard(connection)
            self._relayed.copies_dropped += 1
            kind, data = LOST, b""  # a few bytes over the bound, once a connection
        if kind == CLOSED:
            self._copied.discard(connection)
        transport.write(FRAME.pack(kind, connection, len(data)) + data)

    def tell(self) -> None:
        """Tell the watcher what passed."""
        if self._transport is not None and not self._transport.is_closing():
            state = json.dumps(asdict(self._relayed)).encode()
            self._transport.write(FRAME.pack(STATE, 0, len(state)) + state)


class Relay:
    """Accepts at one address, connects to another for each connection, and hands bytes on until both ends are done."""

    def __init__(self, to: tuple[str, int], tap: Tap, relayed: Relayed) -> None:
        self._to, self._tap, self._relayed = to, tap, relayed
        self._numbers = itertools.count(1)
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Accept; the port that is listened on. Raises OSError: it is taken."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=CHUNK)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, grace_seconds: float) -> None:
        """Accept no more; connections that are open may end by themselves for so long, then they are reset."""
        assert self._server is not None
        self._server.close()
        if self._open:
            await asyncio.wait(self._open, timeout=grace_seconds)
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._connected(reader, writer)
        finally:
            self._open.discard(task)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._relayed.connections += 1
        try:
            opening = asyncio.open_connection(*self._to, limit=CHUNK)
            back, forth = await asyncio.wait_for(opening, CONNECT_SECONDS)
        except (OSError, TimeoutError):
            self._relayed.refused += 1
            _reset(writer)
            return
        number = next(self._numbers)
        self._tap.frame(OPENED, number)
        ways = (
            asyncio.create_task(self._pass(reader, forth, FROM_CLIENT, number)),
            asyncio.create_task(self._pass(back, writer, FROM_SERVER, number)),
        )
        try:
            await asyncio.gather(*ways)
        except OSError:  # one end is gone: so is the connection, for both
            _reset(writer)
            _reset(forth)
        finally:
            for way in ways:
                way.cancel()
            for each in (writer, forth):
                each.close()
            self._tap.frame(CLOSED, number)

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, kind: int, number: int) -> None:
        while data := await source.read(CHUNK):
            to.write(data)
            self._tap.frame(kind, number, data)
            if kind == FROM_CLIENT:
                self._relayed.bytes_to_server += len(data)
            else:
                self._relayed.bytes_to_client += len(data)
            await to.drain()  # the far side's own pace, as without us
        if to.can_write_eof():
            to.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    end = writer.get_extra_info("socket")
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport = writer.transport
    transport.abort()
