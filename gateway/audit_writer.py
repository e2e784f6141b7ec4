"""The trail as a stream of lines: its own events (JSON), audit messages (XML), FHIR AuditEvents (JSON)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, Literal

from gateway.audit_dicom import to_xml
from gateway.audit_fhir import to_fhir
from gateway.audit_message import AuditMessage, messages, source_of
from gateway.bootstrap import Gateway
from gateway.certificate import software
from gateway.index_audit import AuditQuery

__all__ = ["FORMATS", "MEDIA", "Format", "event_messages", "export_lines"]

Format = Literal["jsonl", "dicom", "fhir"]
FORMATS: Final[tuple[Format, ...]] = ("jsonl", "dicom", "fhir")
#: of the streams: JSON lines, one XML document a line, FHIR's own JSON lines
MEDIA: Final[dict[Format, str]] = {
    "jsonl": "application/x-ndjson",
    "dicom": "text/plain",
    "fhir": "application/fhir+ndjson",
}
_PAGE: Final = 500


def export_lines(gw: Gateway, form: Format, query: AuditQuery) -> Iterator[bytes]:
    """Every event that matches, oldest first, each a line in UTF-8 with its end. Raises Unavailable.

    jsonl alone can be verified (`audit.read_export`). A long trail is read a page at a time.
    """
    query = replace(query, oldest_first=True, limit=_PAGE)
    while found := gw.index.audit_search(query):
        match form:
            case "jsonl":
                yield from (json.dumps(line, sort_keys=True).encode() + b"\n" for line in found)
            case "dicom":
                yield from (to_xml(message) + b"\n" for message in event_messages(gw, found))
            case "fhir":
                yield from (json.dumps(to_fhir(message)).encode() + b"\n" for message in event_messages(gw, found))
        query = replace(query, after=found[-1]["seq"])


def event_messages(gw: Gateway, found: list[dict[str, Any]]) -> list[AuditMessage]:
    """The messages of a page of events, with this host as their source."""
    return list(messages(gw, found, source_of(gw.settings, socket.gethostname(), software())))
