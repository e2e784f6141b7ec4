"""Audit messages as XML by the schema of PS3.15 A.5.1."""

from __future__ import annotations

import base64
from ipaddress import ip_address
from xml.etree.ElementTree import Element, SubElement, tostring

from gateway.audit_events import Code
from gateway.audit_message import AuditMessage, Participant, Source, Thing, plain

__all__ = ["to_xml"]

APPLICATION_SERVER = "4"  # Audit Source Type Code (A.5.1.2.1)


def to_xml(message: AuditMessage) -> bytes:
    """The message in UTF-8, with XML declaration, without line breaks."""
    root = Element("AuditMessage")
    event = _element(
        root, "EventIdentification", EventActionCode=message.message.action,
        EventDateTime=message.at.isoformat(timespec="microseconds"), EventOutcomeIndicator=message.outcome,
    )  # fmt: skip
    _coded(event, "EventID", message.message.event_id)
    if message.message.event_type is not None:
        _coded(event, "EventTypeCode", message.message.event_type)
    if message.why:
        SubElement(event, "EventOutcomeDescription").text = plain(message.why)
    for participant in message.participants:
        _participant(root, participant)
    _source(root, message.source)
    for thing in message.things:
        _thing(root, thing)
    written: bytes = tostring(root, encoding="UTF-8", xml_declaration=True)
    return written.replace(b"\n", b"")


def _participant(root: Element, participant: Participant) -> None:
    made = _element(
        root, "ActiveParticipant", UserID=participant.user_id, AlternativeUserID=participant.alternative_id,
        UserIsRequestor="true" if participant.requestor else "false",
    )  # fmt: skip
    if participant.address:
        made.set("NetworkAccessPointID", plain(participant.address))
        made.set("NetworkAccessPointTypeCode", "2" if _is_address(participant.address) else "1")
    if participant.role is not None:
        _coded(made, "RoleIDCode", participant.role)
    if participant.media is not None:
        _coded(SubElement(made, "MediaIdentifier"), "MediaType", participant.media)


def _source(root: Element, source: Source) -> None:
    made = _element(
        root, "AuditSourceIdentification", AuditEnterpriseSiteID=source.site_id, AuditSourceID=source.source_id
    )
    _element(made, "AuditSourceTypeCode", **{"csd-code": APPLICATION_SERVER})


def _thing(root: Element, thing: Thing) -> None:
    made = _element(
        root, "ParticipantObjectIdentification", ParticipantObjectID=thing.object_id,
        ParticipantObjectTypeCode=thing.type_code, ParticipantObjectTypeCodeRole=thing.role,
        ParticipantObjectDataLifeCycle=thing.lifecycle,
    )  # fmt: skip
    _coded(made, "ParticipantObjectIDTypeCode", thing.id_type)
    if thing.query is not None:
        SubElement(made, "ParticipantObjectQuery").text = _base64(thing.query)
    else:
        SubElement(made, "ParticipantObjectName").text = plain(thing.name or thing.object_id)
    for name, value in thing.details:
        _element(made, "ParticipantObjectDetail", type=name, value=_base64(value.encode("utf-8", "replace")))
    if thing.instances is not None:
        described = SubElement(made, "ParticipantObjectDescription")
        _element(described, "SOPClass", UID=thing.sop_class, NumberOfInstances=str(thing.instances))


def _coded(parent: Element, name: str, code: Code) -> None:
    values = {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning}
    _element(parent, name, **values)


def _element(parent: Element, name: str, **attributes: str) -> Element:
    """An element with those attributes that have a value."""
    return SubElement(parent, name, {key: plain(value) for key, value in attributes.items() if value})


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
