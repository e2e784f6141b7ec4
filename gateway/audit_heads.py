"""Signed heads of the audit trail, outside the database (docs/audit.md).

A head says: at this moment the trail had so many events and ended with this hash. Heads lie as lines of canonical JSON
in files of one folder, each naming the digest of the one before, each signed with the key ring's `certify` key. So they
are checked with a public key alone, on any machine, also as lines of a syslog server's file.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from gateway.blobs import sync_folder
from gateway.certificate_format import BadCertificate, canonical, sign_document, signed_statement
from gateway.keystate import Key

__all__ = [
    "Finding",
    "Head",
    "HeadsRead",
    "append_head",
    "head_files",
    "last_head",
    "lines_of",
    "read_heads",
    "sign_head",
]

FORMAT: Final = "palimpsest-audit-head"
VERSION: Final = 1
FIRST: Final = "0" * 64
MAX_LINE: Final = 64 << 10  # bytes; a head has one link of some 300 bytes for each key there ever was
_PATTERN: Final = "heads-*.jsonl"


@dataclass(frozen=True, slots=True)
class Finding:
    """A contradiction. by: what saw it: 'chain', 'heads', 'signature' or 'key ring'; at_seq: event, if known."""

    by: str
    problem: str
    at_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """One signed head. series: of heads without a gap; number: in it, from 1; seq, hash: of the trail's last event
    then; at: time (RFC 3339); previous, digest: SHA-256 (hex) of the head before it, and of this one.
    """

    series: str
    number: int
    seq: int
    hash: str
    at: str
    previous: str
    digest: str


@dataclass(frozen=True, slots=True)
class HeadsRead:
    """Heads whose signature holds, in order, and what is wrong with the others. remembered: event -> its hash, as the
    key ring's folder knows it of series of which no head is here.
    """

    heads: tuple[Head, ...] = ()
    findings: tuple[Finding, ...] = ()
    remembered: Mapping[int, str] = field(default_factory=dict)


def sign_head(before: Head | None, seq: int, digest: str, *, now: float, issuer: str, keys: Sequence[Key]) -> bytes:
    """The line of a new head, without its end. before: None begins a new series. keys: `KeyRing.certify_keys`."""
    statement = {
        "format": FORMAT,
        "version": VERSION,
        "series": before.series if before else secrets.token_hex(8),
        "number": before.number + 1 if before else 1,
        "seq": seq,
        "hash": digest,
        "at": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        "issuer": issuer,
        "previous": before.digest if before else FIRST,
    }
    return canonical(sign_document(statement, keys))


def append_head(folder: Path, line: bytes) -> Head:
    """Write a head durably behind the others. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    head = _head(json.loads(line))
    newest = max((path.name for path in folder.glob(_PATTERN)), default="")
    name = max(f"heads-{head.at[:10].replace('-', '')}.jsonl", newest)  # a clock that steps back begins no older file
    fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        # The line before may be torn by a power loss: then this one begins behind it on a line of its own.
        data = (b"\n" if _torn(folder / name) else b"") + line + b"\n"
        if os.write(fd, data) != len(data):
            raise OSError("a head was written in part only")
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(folder)
    return head


def last_head(folder: Path) -> Head | None:
    """The newest head of a folder, its signature unchecked; None without one. Raises OSError."""
    for path in reversed(head_files(folder)):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4 * MAX_LINE))
            for line in reversed(file.read().splitlines()):
                if (document := _document(line)) is not None:
                    return _head(document)
    return None


def head_files(folder: Path) -> list[Path]:
    """Files of heads, oldest first; none where there is no such folder."""
    return sorted(folder.glob(_PATTERN))


def lines_of(place: Path) -> Iterator[bytes]:
    """Lines of a file, or of all files of heads in a folder. Raises OSError."""
    for path in head_files(place) if place.is_dir() else [place]:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                yield line


def read_heads(
    lines: Iterable[bytes],
    trusted: Mapping[str, str],
    *,
    anchors: Mapping[str, tuple[int, str]] | None = None,
    whole: bool = True,
) -> HeadsRead:
    """The heads in `lines`; anything before or around a head in its line is passed over, and lines without one.

    trusted: public keys as `certificate_format.read_trusted` gives them. anchors: series -> (number, digest) of its
    last head as the key ring's folder remembers it. whole: every series must begin with its first head; False for a
    syslog server's file, which may begin anywhere.
    """
    found: dict[tuple[str, int], Head] = {}
    problems: list[Finding] = []
    for line in lines:
        document = _document(line)
        if document is None:
            continue
        try:
            signed_statement(document, trusted)
            head = _head(document)
        except BadCertificate as error:
            who = "not signed by a trusted key" if error.reason == "certificate-untrusted" else "changed"
            problems.append(Finding("signature", f"a head was {who}", _seq(document)))
            continue
        if found.setdefault((head.series, head.number), head).digest != head.digest:
            problems.append(Finding("heads", "two heads have one number", head.seq))
    heads = tuple(found[key] for key in sorted(found))
    problems += _gaps(heads, whole=whole)
    if anchors:
        problems += _lost(found, anchors)
    return HeadsRead(heads, tuple(_first_of_each(problems)))


def _gaps(heads: Sequence[Head], *, whole: bool) -> Iterator[Finding]:
    before: Head | None = None
    for head in heads:
        follows = before is not None and before.series == head.series
        if follows and before is not None:
            if (head.number, head.previous) != (before.number + 1, before.digest) or head.seq < before.seq:
                yield Finding("heads", "heads are missing", before.seq + 1)
        elif whole and head.number != 1:
            yield Finding("heads", "heads are missing", 1)
        before = head


def _lost(found: Mapping[tuple[str, int], Head], anchors: Mapping[str, tuple[int, str]]) -> Iterator[Finding]:
    """The newest head that the key ring remembers must be there, unless another host keeps that series."""
    known = {series for series, _ in found}
    for series, (number, digest) in anchors.items():
        head = found.get((series, number))
        if (series in known or not known) and (head is None or head.digest != digest):
            yield Finding("key ring", "the newest heads were removed")


def _first_of_each(problems: Iterable[Finding]) -> Iterator[Finding]:
    seen: set[tuple[str, str]] = set()
    for each in problems:
        if (each.by, each.problem) not in seen:
            seen.add((each.by, each.problem))
            yield each


def _document(line: bytes) -> dict[str, Any] | None:
    """The head in a line, or None."""
    begin, end = line.find(b'{"keys":'), line.rfind(b"}")
    if begin < 0 or end < begin:
        return None
    try:
        document = json.loads(line[begin : end + 1])
        _head(document)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return document if document["statement"]["format"] == FORMAT else None


def _head(document: Mapping[str, Any]) -> Head:
    said = document["statement"]
    if datetime.fromisoformat(said["at"]).tzinfo is None:  # who looks for the newest head asks how old it is
        raise ValueError("a time without its zone")
    return Head(
        series=str(said["series"]),
        number=int(said["number"]),
        seq=int(said["seq"]),
        hash=str(said["hash"]),
        at=str(said["at"]),
        previous=str(said["previous"]),
        digest=sha256(canonical(document)).hexdigest(),
    )


def _seq(document: Mapping[str, Any]) -> int:
    return int(document["statement"]["seq"])


def _torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
