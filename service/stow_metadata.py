"""STOW-RS of metadata and bulk data (PS3.18 10.5.1, 8.6.1.2.2): bulk parts wait in the spool's incoming folder for
the end of the request, then each data set becomes a Part 10 file that is judged like any other.

Bulk data are parts of the request, named by Content-Location; nothing is ever fetched from another place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance, PalimpsestError
from gateway.transfer_syntaxes import DEFAULT_OF_MEDIA
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
METADATA: Final = (JSON, "application/json", XML)
NATIVE: Final = frozenset({"", "1.2.840.10008.1.2.1"})


@dataclass
class _BulkPart:
    """Bulk data under way: the URI it goes by, its transfer syntax ('' for native), its file."""

    location: str
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
    _bulk: list[_BulkPart] = field(default_factory=list)
    _datasets: list[Any] = field(default_factory=list)
    _text: bytearray | None = None
    _media: str = ""
    _read: int = 0

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
                    self._bulk[-1].part.write(run)
                case PartEnd():
                    self._end()

    def close(self) -> None:
        """The body ended: build and judge every data set. Raises MultipartError if the end came too early."""
        self.parser.close()
        for dataset in self._datasets:
            self.outcomes.append(self._store(dataset))

    def abandon(self) -> None:
        """Remove what is left of the bulk data. Safe to call at any time."""
        for bulk in self._bulk:
            bulk.part.discard()
        self._bulk.clear()

    def _begin(self, event: PartBegin) -> None:
        media = parse_media_type(event.headers.get("content-type", ""))
        if media.essence in METADATA:
            self._text, self._media = bytearray(), media.essence
            return
        location = event.headers.get("content-location", "")
        if not location:
            raise MultipartError("no-content-location", "a part of bulk data has no Content-Location")
        self._bulk.append(_BulkPart(_key(location), _syntax(media), SpooledPart(self.gateway)))

    def _end(self) -> None:
        if self._text is None:
            self._bulk[-1].part.close()
            return
        text, self._text = bytes(self._text), None
        try:
            found = from_native_model(text) if self._media == XML else json.loads(text)
        except (ValueError, RecursionError):
            raise HttpProblem(400, "bad-metadata", f"A part is no document of {self._media}.") from None
        self._datasets += found if isinstance(found, list) else [found]
        if len(self._datasets) > self.parser.limits.parts:
            raise HttpProblem(413, "too-many-instances", f"At most {self.parser.limits.parts} instances.")

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
        found = [bulk for bulk in self._bulk if bulk.location == _key(uri)]
        if not found:
            raise InvalidInstance("bulk-data-missing", "No part has the Content-Location that the metadata name.")
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
