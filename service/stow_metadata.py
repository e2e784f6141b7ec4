"""STOW-RS of metadata and bulk data (PS3.18 10.5.1, 8.6.1.2.2): bulk parts wait in the spool's incoming folder for
the end of the request, then each data set becomes a Part 10 file that is judged like any other.

Bulk data are parts of the request, named by Content-Location; nothing is ever fetched from another place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance, PalimpsestError
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from gateway.transfer_syntaxes import DEFAULT_OF_MEDIA, DEFLATED_LE
from gateway.uids import UID
from service.dicomxml import from_native_model
from service.media import JSON, XML
from service.multipart import MediaType, MultipartError, PartBegin, PartData, PartEnd, RelatedParser, parse_media_type
from service.problems import HttpProblem
from service.stow_answer import Outcome
from service.stow_dataset import Bulk, write_part10
from service.stow_part import SpooledPart, judge

__all__ = ["MetadataRequest"]

METADATA_BYTES: Final = 64 << 20
#: Values and structures of a request's metadata, and of all requests at once: parsed, each takes up to 250 bytes.
MOST_VALUES: Final = 2_000_000
MOST_HELD: Final = 4_000_000
#: What data sets may make of bulk data by naming one part more than once, beside twice what was sent.
REPEATED_BYTES: Final = 64 << 20
METADATA: Final = (JSON, "application/json", XML)
#: Values other than pixels, and native pixels, have the same bytes in these.
NATIVE: Final = frozenset({"", EXPLICIT_LE, IMPLICIT_LE})
_NOT_BULK: Final = frozenset({EXPLICIT_BE, DEFLATED_LE})


class _Allowance:
    """What all requests together may hold, in any unit; safe between threads."""

    def __init__(self, most: int) -> None:
        self._left, self._lock = most, Lock()

    def take(self, amount: int) -> bool:
        """True if that much was left."""
        with self._lock:
            if amount > self._left:
                return False
            self._left -= amount
            return True

    def give_back(self, amount: int) -> None:
        """What was taken is free again."""
        with self._lock:
            self._left += amount


_HELD: Final = _Allowance(MOST_HELD)


@dataclass
class _BulkPart:
    """Bulk data under way: its transfer syntax ('' for native), its file."""

    syntax: str
    part: SpooledPart


@dataclass
class MetadataRequest:
    """One request, fed with body bytes; runs in worker threads, one call at a time. As `stow.StoreRequest`."""

    gateway: Gateway
    actor: str
    study: UID | None
    parser: RelatedParser
    outcomes: list[Outcome] = field(default_factory=list)
    _bulk: dict[str, list[_BulkPart]] = field(default_factory=dict)
    _current: _BulkPart | None = None
    _datasets: list[Any] = field(default_factory=list)
    _text: bytearray | None = None
    _media: str = ""
    _read: int = 0
    _values: int = 0
    _sent: int = 0
    _named: int = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body; raises MultipartError, HttpProblem 413."""
        for event in self.parser.feed(data):
            match event:
                case PartBegin():
                    self._begin(event)
                case PartData(run) if self._text is not None:
                    self._read += len(run)
                    if self._read > METADATA_BYTES:
                        raise HttpProblem(413, "metadata-too-large", f"At most {METADATA_BYTES} bytes of metadata.")
                    self._text += run
                case PartData(run):
                    assert self._current is not None
                    self._current.part.write(run)
                case PartEnd():
                    self._end()

    def close(self) -> None:
        """The body ended: build and judge every data set. Raises MultipartError if the end came too early."""
        self.parser.close()
        for dataset in self._datasets:
            self.outcomes.append(self._store(dataset))

    def abandon(self) -> None:
        """Remove what is left of the bulk data. Safe to call at any time."""
        for parts in self._bulk.values():
            for bulk in parts:
                bulk.part.discard()
        self._bulk.clear()
        self._datasets.clear()
        _HELD.give_back(self._values)
        self._values = 0

    def _begin(self, event: PartBegin) -> None:
        media = parse_media_type(event.headers.get("content-type", ""))
        if media.essence in METADATA:
            self._text, self._media = bytearray(), media.essence
            return
        location = event.headers.get("content-location", "")
        if not location:
            raise MultipartError("no-content-location", "a part of bulk data has no Content-Location")
        syntax = _syntax(media)
        self._current = _BulkPart(syntax, SpooledPart(self.gateway))
        self._bulk.setdefault(_key(location), []).append(self._current)
        if syntax in _NOT_BULK:
            text = "Bulk data are little endian and not deflated (PS3.18 8.7.3.3)."
            self._current.part.error = InvalidInstance("bulk-data-syntax", text)

    def _end(self) -> None:
        if self._text is None:
            assert self._current is not None
            self._current.part.close()
            self._sent += self._current.part.size
            return
        text, self._text = bytes(self._text), None
        self._weigh(text)
        try:
            found = from_native_model(text) if self._media == XML else json.loads(text)
        except (ValueError, RecursionError):
            raise HttpProblem(400, "bad-metadata", f"A part is no document of {self._media}.") from None
        self._datasets += found if isinstance(found, list) else [found]
        if len(self._datasets) > self.parser.limits.parts:
            raise HttpProblem(413, "too-many-instances", f"At most {self.parser.limits.parts} instances.")

    def _weigh(self, text: bytes) -> None:
        """Before anything is parsed: short texts can make many objects. Raises HttpProblem 413, 503."""
        marks = (b"<",) if self._media == XML else (b"{", b"[", b",")
        values = 1 + sum(text.count(mark) for mark in marks)
        if self._values + values > MOST_VALUES:
            raise HttpProblem(413, "metadata-too-large", f"At most {MOST_VALUES} values: send bulk data as parts.")
        if not _HELD.take(values):
            raise HttpProblem(503, "busy", "Other requests' metadata are in hand.", {"Retry-After": "5"})
        self._values += values

    def _store(self, dataset: Any) -> Outcome:
        part = SpooledPart(self.gateway)
        try:
            self._build(dataset, part)
            part.close()
            outcome = judge(self.gateway, part, actor=self.actor, study=self.study)
        finally:
            part.discard()
        return outcome if outcome.sop_instance else _named(outcome, dataset)

    def _build(self, dataset: Any, part: SpooledPart) -> None:
        if part.error is not None:
            return
        try:
            if not isinstance(dataset, Mapping):
                raise InvalidInstance("bad-metadata", "A data set of DICOM JSON is an object.")
            write_part10(dataset, self._parts_of, part.write)
        except PalimpsestError as error:
            part.error = error

    def _parts_of(self, uri: str) -> list[Bulk]:
        found = self._bulk.get(_key(uri))
        if not found:
            raise InvalidInstance("bulk-data-missing", "No part has the Content-Location that the metadata name.")
        self._named += sum(bulk.part.size for bulk in found)
        if self._named > 2 * self._sent + REPEATED_BYTES:
            raise InvalidInstance("bulk-data-repeated", "The same bulk data stand in too many places.")
        for bulk in found:
            if bulk.part.error is not None:
                raise bulk.part.error
        return [Bulk(b.part.path, b.part.size, b.syntax) for b in found if b.part.path is not None]


def _key(uri: str) -> str:
    """Relative and absolute forms of one reference are the same here: path and query decide."""
    try:
        parts = urlsplit(uri.strip())
    except ValueError:
        return uri
    return unquote(parts.path.lstrip("/") + ("?" + parts.query if parts.query else "")) or uri


def _syntax(media: MediaType) -> str:
    named = media.parameters.get("transfer-syntax", "")
    found = named or DEFAULT_OF_MEDIA.get(media.essence, "")
    return "" if found in NATIVE else found


def _named(outcome: Outcome, dataset: Any) -> Outcome:
    """A failure with the UIDs that the metadata give, so that it can be told whose it is."""
    uids = []
    for tag in ("00080016", "00080018"):
        element = dataset.get(tag) if isinstance(dataset, Mapping) else None
        values = element.get("Value") if isinstance(element, Mapping) else None
        uids.append(str(values[0])[:64] if isinstance(values, list) and values else "")
    if not all(uids):
        return outcome
    return Outcome(outcome.failure, outcome.http_status, outcome.reason, uids[0], uids[1])
