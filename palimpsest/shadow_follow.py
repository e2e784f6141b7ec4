"""Following an association from outside: what both sides of a DICOM connection send, read on the way, nothing answered.

PDUs of PS3.8 9.3, as they come in pieces of any size. A C-STORE's data set goes to whoever asked for it, piece by
piece; memory holds a header or a command set, never more than `ITEM_CAP` bytes. What cannot be followed ends with a
machine word, and costs the connection nothing, for these are copies.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from service.listener_command import command_elements, command_number, file_meta, parse_store

__all__ = ["Association", "Lost", "Object", "Seen"]

ITEM_CAP: Final = 1 << 20  # bytes of an association request or answer, or of a command set
PDU_CAP: Final = 1 << 31
ASSOCIATE_RQ, ASSOCIATE_AC, P_DATA, HEADER = 0x01, 0x02, 0x04, 6
CONTEXT_RQ, CONTEXT_AC, ABSTRACT, SYNTAX = 0x20, 0x21, 0x30, 0x40
COMMAND_FIELD, STATUS, STORE_ANSWER = 0x0100, 0x0900, 0x8001
T = TypeVar("T")
Steps = Generator[None, bytes, T]  # a coroutine that is sent bytes, and gives back a T in the end


class Lost(Exception):
    """This direction cannot be followed further; the text is a machine word."""


class Object(Protocol):
    """Where one data set goes."""

    def write(self, piece: bytes) -> None:
        """The next bytes of the Part 10 file."""

    def close(self, whole: bool) -> None:
        """The file is over; whole: all of it came."""


@dataclass
class Seen:
    """What one association did: objects begun, answers by kind, what could not be followed by reason."""

    objects: int = 0
    answers: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    def count(self, kinds: dict[str, int], word: str) -> None:
        """One more of a kind."""
        kinds[word] = kinds.get(word, 0) + 1


class Association:
    """Both directions of one connection. begin: called for each C-STORE with its SOP class."""

    def __init__(self, begin: Callable[[], Object], seen: Seen) -> None:
        self._begin, self._seen = begin, seen
        self._syntaxes: dict[int, str] = {}
        self._object: Object | None = None
        self._sides = {True: self._follow(True), False: self._follow(False)}
        for side in self._sides.values():
            next(side)

    def feed(self, data: bytes, *, from_client: bool) -> None:
        """The next bytes of one side, of any number."""
        side = self._sides.get(from_client)
        if side is None:
            return
        try:
            side.send(data)
        except (Lost, ValueError, struct.error) as error:
            self._seen.count(self._seen.lost, str(error) if isinstance(error, Lost) else "unreadable")
            del self._sides[from_client]
            if from_client:
                self.close()

    def close(self) -> None:
        """The connection is over, or its copy is: what came half is dropped."""
        found, self._object = self._object, None
        if found is not None:
            found.close(whole=False)

    def _follow(self, client: bool) -> Steps[None]:
        reader = _Reader()
        command = bytearray()
        while True:
            head = yield from reader.take(HEADER)
            kind, left = struct.unpack(">BxL", head)
            if kind not in range(1, 8):
                raise Lost("tls" if kind == 0x16 else "no-dicom")
            if kind in (ASSOCIATE_RQ, ASSOCIATE_AC):
                if left > ITEM_CAP:
                    raise Lost("item-too-large")
                body = yield from reader.take(left)
                if kind == ASSOCIATE_AC:
                    self._syntaxes = dict(accepted(body))
            elif kind == P_DATA:
                if left > PDU_CAP:
                    raise Lost("pdu-too-large")
                yield from self._values(reader, left, client, command)
            else:
                yield from reader.skip(left)

    def _values(self, reader: _Reader, left: int, client: bool, command: bytearray) -> Steps[None]:
        """The presentation data values of one P-DATA-TF (PS3.8 9.3.5.1, E.2)."""
        while left:
            length, context, control = struct.unpack(">LBB", (yield from reader.take(6)))
            if not 2 <= length <= left - 4:
                raise Lost("bad-value")
            left -= 4 + length
            if control & 1:
                if len(command) + length - 2 > ITEM_CAP:
                    raise Lost("item-too-large")
                command += yield from reader.take(length - 2)
                if control & 2:
                    self._command(bytes(command), context, client)
                    command.clear()
            elif client and self._object is not None:
                yield from reader.pass_on(length - 2, self._object.write)
                if control & 2:
                    done, self._object = self._object, None
                    done.close(whole=True)
            else:
                yield from reader.skip(length - 2)

    def _command(self, command: bytes, context: int, client: bool) -> None:
        if not client:
            elements = command_elements(command)
            if command_number(elements, COMMAND_FIELD) == STORE_ANSWER:
                self._seen.count(self._seen.answers, answer_kind(command_number(elements, STATUS)))
            return
        request = parse_store(command)
        if request is None or not request.has_data_set:
            return
        self.close()
        self._seen.objects += 1
        syntax = self._syntaxes.get(context)
        if syntax is None:
            raise Lost("context-unknown")
        self._object = self._begin()
        self._object.write(file_meta(request.sop_class, request.sop_instance, syntax))


class _Reader:
    """Bytes in pieces; every method waits for more by `yield`."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def take(self, count: int) -> Steps[bytes]:
        """Exactly `count` bytes, few enough to hold."""
        while len(self._waiting) < count:
            self._waiting += yield
        found = bytes(self._waiting[:count])
        del self._waiting[:count]
        return found

    def pass_on(self, count: int, to: Callable[[bytes], None]) -> Steps[None]:
        """`count` bytes to somebody else, as they come."""
        while count:
            if not self._waiting:
                self._waiting += yield
            piece = bytes(self._waiting[:count])
            del self._waiting[: len(piece)]
            count -= len(piece)
            to(piece)

    def skip(self, count: int) -> Steps[None]:
        """`count` bytes that nobody wants."""
        yield from self.pass_on(count, lambda _: None)


def accepted(body: bytes) -> Iterator[tuple[int, str]]:
    """(presentation context id, transfer syntax) that an A-ASSOCIATE-AC accepts (PS3.8 9.3.3.2)."""
    for kind, item in _items(body, 68):
        if kind == CONTEXT_AC and len(item) > 4 and item[2] == 0:
            for inner, value in _items(item, 4):
                if inner == SYNTAX:
                    yield item[0], value.rstrip(b"\0 ").decode("latin-1")


def _items(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + 4 <= len(body):
        kind, length = struct.unpack_from(">BxH", body, at)
        yield kind, body[at + 4 : at + 4 + length]
        at += 4 + length


def answer_kind(status: int | None) -> str:
    """PS3.7 C: success, warning, failure or other."""
    if status is None:
        return "other"
    return "success" if status == 0 else "warning" if status >> 12 == 0xB or status in (1, 0x107, 0x116) else "failure"
