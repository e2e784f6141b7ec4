"""C-STORE command sets (PS3.7 9.3.1, E.1) and file meta information (PS3.10 7.1) as bytes, without a general parser.

A command set is Implicit VR Little Endian, its elements are all of group 0000; a C-STORE needs six of them. Done here
because it is done for every object: pynetdicom's way through pydicom data sets takes milliseconds, this microseconds.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

__all__ = ["StoreCommand", "command_elements", "command_number", "file_meta", "parse_store", "store_response"]

C_STORE_RQ = 0x0001
C_STORE_RSP = 0x8001
NO_DATA_SET = 0x0101
MAX_COMMENT = 64  # (0000,0902) is LO

#: element numbers of group 0000 (PS3.7 E.1)
AFFECTED_CLASS, COMMAND_FIELD, MESSAGE_ID, RESPONDED_TO = 0x0002, 0x0100, 0x0110, 0x0120
PRIORITY, DATA_SET_TYPE, STATUS, ERROR_COMMENT, AFFECTED_INSTANCE = 0x0700, 0x0800, 0x0900, 0x0902, 0x1000


@dataclass(frozen=True, slots=True)
class StoreCommand:
    """A C-STORE-RQ. UIDs as sent, padding removed, '' if absent; priority: 0 medium, 1 high, 2 low."""

    message_id: int
    sop_class: str
    sop_instance: str
    priority: int
    has_data_set: bool


def parse_store(command: bytes) -> StoreCommand | None:
    """The request, or None if this is another command. Raises ValueError for a command set that cannot be read."""
    elements = command_elements(command)
    if command_number(elements, COMMAND_FIELD) != C_STORE_RQ:
        return None
    message_id = command_number(elements, MESSAGE_ID)
    if message_id is None:
        raise ValueError("a request without a message ID cannot be answered")
    return StoreCommand(
        message_id,
        command_uid(elements, AFFECTED_CLASS),
        command_uid(elements, AFFECTED_INSTANCE),
        command_number(elements, PRIORITY) or 0,
        command_number(elements, DATA_SET_TYPE) != NO_DATA_SET,
    )


def command_elements(command: bytes) -> dict[int, bytes]:
    """Element number of group 0000 -> value. Raises ValueError for a command set that cannot be read."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(command):
        if len(command) - at < 8:
            raise ValueError("a command element is cut off")
        group, element, length = struct.unpack_from("<HHL", command, at)
        at += 8
        if group != 0 or length > len(command) - at:
            raise ValueError("not a command element")
        found[element] = command[at : at + length]
        at += length
    return found


def command_number(elements: dict[int, bytes], element: int) -> int | None:
    """A US element's value; None if it is absent or no US."""
    value = elements.get(element, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else None


def command_uid(elements: dict[int, bytes], element: int) -> str:
    """A UI element's value without its padding, '' if it is absent."""
    return elements.get(element, b"").rstrip(b"\0 ").decode("latin-1")


def store_response(command: StoreCommand, status: int, reason: str = "") -> bytes:
    """The C-STORE-RSP's command set; `reason` becomes its Error Comment (PS3.7 C)."""
    parts = [(AFFECTED_CLASS, _padded(command.sop_class)), (COMMAND_FIELD, struct.pack("<H", C_STORE_RSP))]
    parts += [(RESPONDED_TO, struct.pack("<H", command.message_id)), (DATA_SET_TYPE, struct.pack("<H", NO_DATA_SET))]
    parts.append((STATUS, struct.pack("<H", status)))
    if reason:
        parts.append((ERROR_COMMENT, _padded(reason[:MAX_COMMENT], b" ")))
    parts.append((AFFECTED_INSTANCE, _padded(command.sop_instance)))
    body = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in parts if value)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _padded(text: str, pad: bytes = b"\0") -> bytes:
    value = text.encode("latin-1", "replace")
    return value + pad if len(value) % 2 else value


@lru_cache(maxsize=256)
def _meta_ends(sop_class: str, syntax: str) -> tuple[bytes, bytes]:
    """The elements before and behind the instance UID."""
    before = _element(1, b"OB", b"\0\1") + _element(2, b"UI", _padded(sop_class))
    after = _element(0x10, b"UI", _padded(syntax))
    after += _element(0x12, b"UI", _padded(str(PYNETDICOM_IMPLEMENTATION_UID)))
    return before, after + _element(0x13, b"SH", _padded(PYNETDICOM_IMPLEMENTATION_VERSION, b" "))


def file_meta(sop_class: str, sop_instance: str, syntax: str) -> bytes:
    """Preamble, DICM and file meta information of a received data set, Explicit VR Little Endian."""
    before, after = _meta_ends(sop_class, syntax)
    body = before + _element(3, b"UI", _padded(sop_instance)) + after
    return bytes(128) + b"DICM" + _element(0, b"UL", struct.pack("<L", len(body))) + body


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if vr == b"OB":
        return struct.pack("<HH", 2, number) + vr + struct.pack("<HL", 0, len(value)) + value
    return struct.pack("<HH", 2, number) + vr + struct.pack("<H", len(value)) + value
