"""A TCP proxy that breaks things on purpose: cut, reset, fall silent, delay, throttle, at a place in the stream.

It runs an event loop in a thread of its own, so that synchronous tests can put it between any two peers:

    with FaultProxy(("127.0.0.1", listener.port), Fault("reset", at=In.pdu(3))) as proxy:
        ...  # the peer connects to proxy.port

`faults` are used up one a connection, in order; connections after the last go through untouched, so a sender that tries
again succeeds. `every` makes the first one count for all connections. Nothing is decoded: a place is a number of bytes,
bytes after a mark, or the middle of the n-th PDU (PS3.8 9.3.1: type, reserved, length of four bytes; not under TLS).
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

__all__ = ["Fault", "FaultProxy", "In"]

CHUNK = 16 << 10
PDU_HEADER = 6  # bytes
START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class In:
    """A place in one direction of a stream. Use the constructors; exactly one field says what is counted."""

    count: int | None = None
    mark: bytes | None = None
    beyond: int = 0
    pdus: int | None = None

    @classmethod
    def offset(cls, count: int) -> In:
        """After so many bytes; 0: before the first."""
        return cls(count=count)

    @classmethod
    def after(cls, mark: bytes, beyond: int = 0) -> In:
        """`beyond` bytes after the first time that `mark` went through."""
        return cls(mark=mark, beyond=beyond)

    @classmethod
    def pdu(cls, number: int) -> In:
        """In the middle of the PDU of that number, counted from 1 (the association request, or its answer)."""
        return cls(pdus=number)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong on one connection.

    kind: cut (both sides see an orderly end), reset (RST), silent (half-open: both stay connected, nothing goes through
    any more, what ends on one side is not told to the other), delay (each chunk waits `seconds`), throttle (`rate`
    bytes a second), crumbs (everything in pieces of `size` bytes). at: from which place on. way: up (towards the
    server) or down.
    """

    kind: Literal["cut", "reset", "silent", "delay", "throttle", "crumbs"]
    at: In = field(default_factory=lambda: In.offset(0))
    way: Literal["up", "down"] = "up"
    seconds: float = 0.05
    rate: float = 1 << 20
    size: int = 1


class _Place:
    """Finds where in a stream a fault begins: `passed(data)` is how many of these next bytes come before it."""

    def __init__(self, at: In) -> None:
        self._left = at.count
        self._mark, self._beyond = at.mark, at.beyond
        self._tail = b""
        self._pdus = at.pdus
        self._header, self._body = b"", 0

    def passed(self, data: bytes) -> int | None:
        """None: all of `data` comes before the place."""
        if self._mark is not None and self._left is None:
            return self._find(data)
        if self._pdus is not None and self._left is None:
            return self._count(data)
        assert self._left is not None
        if len(data) <= self._left:
            self._left -= len(data)
            return None
        return self._left

    def _find(self, data: bytes) -> int | None:
        assert self._mark is not None
        found = (self._tail + data).find(self._mark)
        if found < 0:
            self._tail = (self._tail + data)[-len(self._mark) :]
            return None
        start = found + len(self._mark) - len(self._tail)
        self._left = self._beyond
        rest = self.passed(data[max(0, start) :])
        return None if rest is None else max(0, start) + rest

    def _count(self, data: bytes) -> int | None:
        assert self._pdus is not None
        at = 0
        while at < len(data):
            if self._body:
                step = min(self._body, len(data) - at)
                self._body, at = self._body - step, at + step
                continue
            need = PDU_HEADER - len(self._header)
            self._header, at = self._header + data[at : at + need], at + min(need, len(data) - at)
            if len(self._header) < PDU_HEADER:
                return None
            (self._body,) = struct.unpack(">2xL", self._header)
            self._header, self._pdus = b"", self._pdus - 1
            if self._pdus == 0:
                self._left = self._body // 2
                rest = self.passed(data[at:])
                return None if rest is None else at + rest
        return None


class _Broken(Exception):
    """The connection was ended by its fault."""


class _Silent(Exception):
    """Nothing goes through this connection any more."""


class FaultProxy:
    """Listens on a free port of the loopback interface and connects every peer to `target`.

    connections: how many were made so far; open: how many are open now; struck: how many faults began to act.
    """

    def __init__(self, target: tuple[str, int], *faults: Fault, every: bool = False) -> None:
        self._target = target
        self._every = faults[0] if every else None
        self._faults: Iterator[Fault] = iter(faults)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = self.open = self.struck = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_SECONDS), "the fault proxy did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)

    def add(self, *faults: Fault) -> None:
        """Faults for the next connections, after those given before."""
        earlier = self._faults
        self._faults = iter((*earlier, *faults))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=CHUNK))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in a callback of the loop

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        fault = self._every or next(self._faults, None)
        try:
            with suppress(OSError, ExceptionGroup, asyncio.CancelledError):  # cancelled by `_run` only
                await self._join(reader, writer, fault)
        finally:
            writer.close()
            self.open -= 1
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault | None) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target, limit=CHUNK)
        try:
            up, down = (fault if fault and fault.way == way else None for way in ("up", "down"))
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far_writer, up, (writer, far_writer)))
                both.create_task(self._pump(far_reader, writer, down, (writer, far_writer)))
        except* _Silent:
            await asyncio.Event().wait()  # until the proxy ends
        except* OSError:  # one side was reset: so is the other
            _reset(writer, far_writer)
        finally:
            far_writer.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fault: Fault | None,
        both: tuple[asyncio.StreamWriter, ...],
    ) -> None:
        place = _Place(fault.at) if fault else None
        acting = False
        while data := await reader.read(CHUNK):
            if fault is not None and place is not None and not acting:
                passed = place.passed(data)
                if passed is None:
                    await _send(writer, data)
                    continue
                await _send(writer, data[:passed])
                data, acting, self.struck = data[passed:], True, self.struck + 1
            if fault is None:
                await _send(writer, data)
            else:
                await _act(fault, data, writer, both)
        if writer.can_write_eof():
            writer.write_eof()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _act(fault: Fault, data: bytes, writer: asyncio.StreamWriter, both: tuple[asyncio.StreamWriter, ...]) -> None:
    """Do to `data`, and to the connection, what the fault says. Raises _Broken for what ends the connection."""
    match fault.kind:
        case "cut":
            raise _Broken
        case "reset":
            _reset(*both)
            raise _Broken
        case "silent":
            raise _Silent
        case "delay":
            await asyncio.sleep(fault.seconds)
            await _send(writer, data)
        case "throttle":
            await asyncio.sleep(len(data) / fault.rate)
            await _send(writer, data)
        case "crumbs":
            for at in range(0, len(data), fault.size):
                await _send(writer, data[at : at + fault.size])
                await asyncio.sleep(0)


def _reset(*writers: asyncio.StreamWriter) -> None:
    """Have the kernel answer RST instead of FIN (SO_LINGER with zero seconds)."""
    for writer in writers:
        found = writer.get_extra_info("socket")
        if found is not None and not writer.is_closing():
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
