"""Stand-ins and makers that tests share. Each stand-in passes the same contract test as what it stands for."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway
from gateway.errors import IntegrityError, NotFound
from gateway.index_rows import Accepted

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
LONG_VRS = ("OB", "OW", "SQ", "UN", "UT", "OF", "OD", "UC", "UR")
_NUMBERS = itertools.count(1)


class FakeClock:
    """A clock that moves only when told: `clock()` gives seconds since the epoch."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class MemoryArchive:
    """An ArchiveStore in a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, key: str, data: bytes, digest: str) -> None:
        """See gateway.archive.ArchiveStore."""
        if sha256(data).hexdigest() != digest:
            raise IntegrityError("digest-mismatch")
        if self.objects.setdefault(key, data) != data:
            raise IntegrityError("write-once")

    def read_unchecked(self, key: str) -> bytes:
        """See gateway.archive.ArchiveStore."""
        if key not in self.objects:
            raise NotFound("not-archived")
        return self.objects[key]

    def get(self, key: str, digest: str) -> bytes:
        """See gateway.archive.ArchiveStore."""
        data = self.read_unchecked(key)
        if sha256(data).hexdigest() != digest:
            raise IntegrityError("digest-mismatch")
        return data

    def map(self, key: str, digest: str) -> memoryview:
        """See gateway.archive.ArchiveStore."""
        return memoryview(self.get(key, digest))

    def mend(self, key: str, data: bytes, digest: str) -> None:
        """See gateway.archive.ArchiveStore."""
        if sha256(data).hexdigest() != digest:
            raise IntegrityError("digest-mismatch")
        if sha256(self.objects.get(key, b"")).hexdigest() != digest:
            self.objects[key] = data

    def exists(self, key: str) -> bool:
        """See gateway.archive.ArchiveStore."""
        return key in self.objects

    def keys(self) -> Iterator[str]:
        """See gateway.archive.ArchiveStore."""
        return iter(list(self.objects))

    def ping(self) -> None:
        """See gateway.archive.ArchiveStore."""


class NoStego:
    """A StegoProver for tests in which nothing but envelopes may be made."""

    def check_stego(self, part10: bytes, restoration: bytes | None) -> NoReturn:
        """See worker.represent.StegoProver."""
        raise AssertionError("a stego object was made")


def element(tag: int, vr: str, value: bytes, *, explicit: bool = True, order: str = "<") -> bytes:
    """One encoded data element (PS3.5 7.1), its value padded to even length."""
    if len(value) % 2:
        value += b"\0" if vr in ("UI", "OB", "UN") else b" "
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if not explicit:
        return head + struct.pack(order + "I", len(value)) + value
    if vr in LONG_VRS:
        return head + vr.encode() + b"\0\0" + struct.pack(order + "I", len(value)) + value
    return head + vr.encode() + struct.pack(order + "H", len(value)) + value


def file_meta(sop_uid: str, sop_class: str = CT, syntax: str = EXPLICIT_LE, extra: bytes = b"") -> bytes:
    """Preamble, DICM and file meta information (PS3.10 7.1)."""
    body = (
        element(0x00020001, "OB", b"\0\1")
        + element(0x00020002, "UI", sop_class.encode())
        + element(0x00020003, "UI", sop_uid.encode())
        + element(0x00020010, "UI", syntax.encode())
        + element(0x00020012, "UI", b"1.2.3.4")
        + extra
    )
    return bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(body))) + body


def new_uid() -> str:
    """A UID that this test run has not used yet."""
    return f"1.2.826.0.1.3680043.10.1.{next(_NUMBERS)}"


def part10(
    sop_uid: str | None = None,
    *,
    sop_class: str = CT,
    study: str = "1.2.3.100",
    series: str = "1.2.3.100.1",
    patient: str = "Doe^Jane",
    pixels: bytes = bytes(range(64)),
    syntax: str = EXPLICIT_LE,
    meta_extra: bytes = b"",
) -> bytes:
    """A small 8-bit image as Part 10 bytes: 8 x 8 unless `pixels` has another length."""
    uid = sop_uid or new_uid()
    rows = max(1, len(pixels) // 8)
    body = b"".join(
        (
            element(0x00080016, "UI", sop_class.encode()),
            element(0x00080018, "UI", uid.encode()),
            element(0x00080060, "CS", b"CT"),
            element(0x00100010, "PN", patient.encode()),
            element(0x0020000D, "UI", study.encode()),
            element(0x0020000E, "UI", series.encode()),
            element(0x00280002, "US", struct.pack("<H", 1)),
            element(0x00280004, "CS", b"MONOCHROME2"),
            element(0x00280010, "US", struct.pack("<H", rows)),
            element(0x00280011, "US", struct.pack("<H", 8)),
            element(0x00280100, "US", struct.pack("<H", 8)),
            element(0x00280101, "US", struct.pack("<H", 8)),
            element(0x00280102, "US", struct.pack("<H", 7)),
            element(0x00280103, "US", struct.pack("<H", 0)),
            element(0x7FE00010, "OB", pixels),
        )
    )
    return file_meta(uid, sop_class, syntax, meta_extra) + body


def incoming(gw: Gateway, data: bytes) -> Path:
    """Bytes as a door leaves them for `accept_instance`."""
    path = gw.spool.incoming()
    path.write_bytes(data)
    return path


def take_in(gw: Gateway, data: bytes, *, calling_ae: str = "MODALITY", priority: int = 5) -> Accepted:
    """What both doors do with received bytes."""
    return accept_instance(gw, incoming(gw, data), source="dimse", calling_ae=calling_ae, priority=priority)
