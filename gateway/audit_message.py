"""An audit event as a message: who, what, about which study and patient (PS3.15 A.5.3), in no format yet.

`gateway.audit_dicom` writes it as XML, `gateway.audit_fhir` as JSON. Studies and patients are named by the trail's
keyed pseudonyms, never by their own identifiers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from gateway.audit_events import Code, Message, Shape, message_of
from gateway.audit_subject import study_name
from gateway.bootstrap import Gateway
from gateway.index_audit import AuditSubject
from gateway.settings import Settings

__all__ = ["AuditMessage", "Participant", "Source", "Thing", "messages", "plain", "source_of"]

APPLICATION = Code("110150", "Application")
LAUNCHER = Code("110151", "Application Launcher")
DESTINATION = Code("110152", "Destination Role ID")
SOURCE = Code("110153", "Source Role ID")
DESTINATION_MEDIA = Code("110154", "Destination Media")
SOURCE_MEDIA = Code("110155", "Source Media")
STUDY = Code("110180", "Study Instance UID")
SOP_CLASS = Code("110181", "SOP Class UID")
NODE_ID = Code("110182", "Node ID")
PATIENT_NUMBER = Code("2", "Patient Number", "RFC-3881")
URI = Code("12", "URI", "RFC-3881")
URI_MEDIA = Code("110038", "URI")  # PS3.16 CID 405, media type code

PERSON, SYSTEM = "1", "2"  # Participant Object Type Code
ROLE_PATIENT, ROLE_REPORT, ROLE_MASTER_FILE, ROLE_SECURITY_RESOURCE, ROLE_QUERY = "1", "3", "5", "13", "24"
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
IMPLICIT_LE: Final = "1.2.840.10008.1.2"
LOG_URI: Final = "urn:palimpsest:audit"
#: Event Outcome Indicator (A.5.2): a refusal is a minor failure, anything else that went wrong a serious one
OUTCOMES: Final[Mapping[str, str]] = {"success": "0", "refused": "4", "failure": "8"}
_UNWRITABLE: Final = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PROCESSES: Final = frozenset({"sweep", "worker", "forwarder", "gateway"})


@dataclass(frozen=True, slots=True)
class Source:
    """Who writes the messages. node: host name."""

    source_id: str
    site_id: str
    ae_title: str
    node: str
    version: str


@dataclass(frozen=True, slots=True)
class Participant:
    """Active Participant. address: IP address or host name, '' if unknown; media: it is a medium, of this type."""

    user_id: str
    requestor: bool
    role: Code | None = None
    alternative_id: str = ""
    address: str = ""
    media: Code | None = None


@dataclass(frozen=True, slots=True)
class Thing:
    """Participant Object. details: (type, text); query: a DICOM data set; sop_class, instances: of a study's images."""

    object_id: str
    id_type: Code
    type_code: str
    role: str
    name: str = ""
    lifecycle: str = ""
    details: tuple[tuple[str, str], ...] = ()
    query: bytes | None = None
    sop_class: str = ""
    instances: int | None = None


@dataclass(frozen=True, slots=True)
class AuditMessage:
    """One event of the trail. seq, hash: its place there; outcome: Event Outcome Indicator; why: in words, or ''."""

    seq: int
    hash: str
    at: datetime
    name: str
    message: Message
    outcome: str
    why: str
    participants: tuple[Participant, ...]
    things: tuple[Thing, ...]
    source: Source


def plain(text: str) -> str:
    """Text that XML (1.0, 2.2) and FHIR can hold, on one line: of AE titles and addresses a peer chooses the bytes."""
    return _UNWRITABLE.sub("\ufffd", text)


def source_of(settings: Settings, node: str, version: str) -> Source:
    """node: this host's name; version: of the software."""
    title = settings.ae_title
    return Source(settings.audit_source_id or title, settings.audit_site_id, title, node, version)


def messages(gw: Gateway, lines: Iterable[Mapping[str, Any]], source: Source) -> Iterator[AuditMessage]:
    """The messages of events as `audit.line_of` gives them, in the same order. Raises Unavailable.

    Make a few hundred at a time: whose their instances are is asked for all of `lines` at once.
    """
    lines = list(lines)
    numbers = {line["instance_id"] for line in lines if line["instance_id"] is not None}
    subjects = gw.index.audit_subjects(numbers, lambda uid: study_name(gw, uid)) if numbers else {}
    for line in lines:
        yield describe(line, subjects.get(line["instance_id"] or 0, AuditSubject()), source)


def describe(line: Mapping[str, Any], subject: AuditSubject, source: Source) -> AuditMessage:
    """The message of one event. subject: whose its instance is."""
    detail = {name: plain(value) if isinstance(value, str) else value for name, value in line["detail"].items()}
    line = {**line, "actor": plain(line["actor"]), "detail": detail}
    message = message_of(line["event"], detail)
    named = AuditSubject(line["study"] or subject.study, line.get("patient") or subject.patient, subject.sop_class)
    return AuditMessage(
        seq=line["seq"],
        hash=line["hash"],
        at=datetime.fromtimestamp(line["at_us"] // 1_000_000, UTC).replace(microsecond=line["at_us"] % 1_000_000),
        name=line["event"],
        message=message,
        outcome=OUTCOMES[line["outcome"]],
        why=str(detail.get("reason") or line["event"]) if line["outcome"] != "success" else "",
        participants=tuple(_participants(message.shape, line, source)),
        things=tuple(_things(message, line, named)),
        source=source,
    )


def _participants(shape: Shape, line: Mapping[str, Any], source: Source) -> Iterator[Participant]:
    detail, actor = line["detail"], line["actor"]
    address = str(detail.get("address") or "")
    us = Participant(source.source_id, False, APPLICATION, f"AETITLES={source.ae_title}", source.node)
    peer = Participant(actor, True, None, "", address)
    far = str(detail.get("destination") or "")
    match shape:
        case Shape.APPLICATION:
            yield replace(us, user_id=f"{source.source_id}/{actor}")
            yield Participant(actor, True, LAUNCHER)
        case Shape.INCOMING:
            yield replace(peer, role=SOURCE)
            yield replace(us, role=DESTINATION)
        case Shape.OUTGOING:
            own = actor in _PROCESSES or bool(far and actor == far) or ":" in actor
            yield replace(us, role=SOURCE, requestor=own)
            yield Participant(far or actor, not own and not far, DESTINATION, "", "" if far else address)
            if far and not own:
                yield peer
        case Shape.QUERY:
            yield replace(peer, role=SOURCE)
            yield replace(us, role=DESTINATION)
        case Shape.MEDIA_OUT:
            yield replace(peer, role=SOURCE)
            yield Participant(far or "folder", False, DESTINATION_MEDIA, media=URI_MEDIA)
        case Shape.MEDIA_IN:
            yield replace(peer, role=DESTINATION)
            yield Participant(str(detail.get("source") or "folder"), False, SOURCE_MEDIA, media=URI_MEDIA)
        case Shape.PERSON:
            yield replace(peer, address=address or source.node)
            yield us
        case _:
            yield peer
            yield us


def _things(message: Message, line: Mapping[str, Any], subject: AuditSubject) -> Iterator[Thing]:
    details = tuple(_details(line))
    match message.shape:
        case Shape.LOG:
            name = "Security Audit Log"
            yield Thing(LOG_URI, URI, SYSTEM, ROLE_SECURITY_RESOURCE, name, details=details)
        case Shape.QUERY:
            level = str(line["detail"].get("level") or "study").upper()
            details = (("TransferSyntax", IMPLICIT_LE), *details)
            query = _level_query(level)
            yield Thing(STUDY_ROOT_FIND, SOP_CLASS, SYSTEM, ROLE_REPORT, details=details, query=query)
            if line["study"]:
                yield Thing(line["study"], STUDY, SYSTEM, ROLE_REPORT, "Study")
        case Shape.ALERT:
            text = ("Alert Description", f"{line['event']}: {line['outcome']}")
            place = str(line["detail"].get("address") or line["detail"].get("destination") or "")
            kind = (
                (place, NODE_ID, SYSTEM, ROLE_MASTER_FILE)
                if place
                else (f"urn:palimpsest:{line['event']}", URI, SYSTEM, ROLE_SECURITY_RESOURCE)
            )
            yield Thing(*kind, name=line["event"], details=(text, *details))
        case Shape.APPLICATION | Shape.PERSON | Shape.NODE:
            return
        case _:
            yield from _images(message, line, subject, details)
            return
    if message.shape is not Shape.LOG and subject.patient:
        yield _patient(subject)


def _images(
    message: Message, line: Mapping[str, Any], subject: AuditSubject, details: tuple[tuple[str, str], ...]
) -> Iterator[Thing]:
    about_images = message.event_id.value != "110110"
    if subject.study or (about_images and not subject.patient):
        count = line["detail"].get("count")
        instances = int(count) if isinstance(count, int) else 1 if line["instance_id"] is not None else None
        yield Thing(
            subject.study or "unknown", STUDY, SYSTEM, ROLE_REPORT, "Study", message.lifecycle, details,
            sop_class=subject.sop_class, instances=instances,
        )  # fmt: skip
        details = ()
    if subject.patient:
        yield _patient(subject, details)
    elif not about_images and not subject.study:
        yield _patient(AuditSubject(patient="unknown"), details)


def _patient(subject: AuditSubject, details: tuple[tuple[str, str], ...] = ()) -> Thing:
    return Thing(subject.patient, PATIENT_NUMBER, PERSON, ROLE_PATIENT, "Patient", details=details)


def _details(line: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the message has no other place for: the event's own name, its place in the trail, its details."""
    yield "event", line["event"]
    yield "seq", str(line["seq"])
    yield "hash", line["hash"]
    if line["instance_id"] is not None:
        yield "instance", str(line["instance_id"])
    for name, value in sorted(line["detail"].items()):
        if value is not None:
            yield name, str(value)


def _level_query(level: str) -> bytes:
    """(0008,0052) alone, in Implicit VR Little Endian: what was looked for names patients and stays out."""
    value = level.encode("ascii", "replace")
    value += b" " * (len(value) % 2)
    return struct.pack("<HHI", 0x0008, 0x0052, len(value)) + value
