"""Audit messages as FHIR R4 AuditEvent resources (HL7 FHIR 4.0.1), in JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final

from gateway.audit_events import Code
from gateway.audit_message import AuditMessage, Participant, Thing

__all__ = ["bundle", "to_fhir"]

DCM: Final = "http://dicom.nema.org/resources/ontology/DCM"
_HL7: Final = "http://terminology.hl7.org/CodeSystem/"
SYSTEMS: Final[Mapping[str, str]] = {"DCM": DCM, "RFC-3881": "urn:ietf:rfc:3881"}
EVENT_SYSTEM: Final = "urn:palimpsest:audit:event"
OBJECT_TYPES: Final[Mapping[str, str]] = {"1": "Person", "2": "System Object", "3": "Organization", "4": "Other"}
OBJECT_ROLES: Final[Mapping[str, str]] = {
    "1": "Patient", "3": "Report", "5": "Master file", "13": "Security Resource", "24": "Query",
}  # fmt: skip
LIFECYCLES: Final[Mapping[str, str]] = {
    "1": "Origination / Creation", "2": "Import / Copy", "3": "Amendment", "4": "Verification", "5": "Translation",
    "6": "Access / Use", "7": "De-identification", "8": "Aggregation / Summarization / Derivation", "9": "Report",
    "10": "Export", "11": "Disclosure", "12": "Receipt of Disclosure", "13": "Archiving", "14": "Logical deletion",
    "15": "Permanent erasure / Physical destruction",
}  # fmt: skip
Json = dict[str, Any]


def to_fhir(message: AuditMessage) -> Json:
    """One AuditEvent; its id is the event's number in the trail."""
    kind = message.message
    subtypes = [_coding(kind.event_type)] if kind.event_type is not None else []
    return _present(
        resourceType="AuditEvent",
        id=str(message.seq),
        type=_coding(kind.event_id),
        subtype=[*subtypes, {"system": EVENT_SYSTEM, "code": message.name}],
        action=kind.action,
        recorded=message.at.isoformat(timespec="microseconds"),
        outcome=message.outcome,
        outcomeDesc=message.why,
        agent=[_agent(each) for each in message.participants],
        source=_present(
            site=message.source.site_id,
            observer={"display": message.source.source_id},
            type=[{"system": _HL7 + "security-source-type", "code": "4", "display": "Application Server"}],
        ),
        entity=[_entity(each) for each in message.things],
    )


def bundle(messages: Sequence[AuditMessage], links: Mapping[str, str], base: str) -> Json:
    """A searchset of these events. links: relation -> URL; base: URL of the FHIR service."""
    entries = [
        {"fullUrl": f"{base}/AuditEvent/{each.seq}", "resource": to_fhir(each), "search": {"mode": "match"}}
        for each in messages
    ]
    shown = [{"relation": relation, "url": url} for relation, url in links.items()]
    return _present(resourceType="Bundle", type="searchset", link=shown, entry=entries)


def _agent(participant: Participant) -> Json:
    role = [{"coding": [_coding(participant.role)]}] if participant.role else []
    network = {}
    if participant.address:
        network = {"address": participant.address, "type": "2" if _is_address(participant.address) else "1"}
    return _present(
        type=role[0] if role else None,
        who={"identifier": {"value": participant.user_id}, "display": participant.user_id},
        altId=participant.alternative_id,
        requestor=participant.requestor,
        network=network,
        media=_coding(participant.media) if participant.media else None,
    )


def _entity(thing: Thing) -> Json:
    details = [{"type": name, "valueString": value} for name, value in thing.details if value]
    if thing.instances is not None:
        details.append({"type": "NumberOfInstances", "valueString": str(thing.instances)})
    if thing.sop_class:
        details.append({"type": "SOPClass", "valueString": thing.sop_class})
    return _present(
        what={"identifier": {"type": {"coding": [_coding(thing.id_type)]}, "value": thing.object_id}},
        type={"system": _HL7 + "audit-entity-type", "code": thing.type_code, "display": OBJECT_TYPES[thing.type_code]},
        role={"system": _HL7 + "object-role", "code": thing.role, "display": OBJECT_ROLES[thing.role]},
        lifecycle=_lifecycle(thing.lifecycle),
        name=thing.name if thing.query is None else None,
        query=base64.b64encode(thing.query).decode("ascii") if thing.query is not None else None,
        detail=details,
    )


def _lifecycle(value: str) -> Json | None:
    if not value:
        return None
    return {"system": _HL7 + "dicom-audit-lifecycle", "code": value, "display": LIFECYCLES[value]}


def _coding(code: Code) -> Json:
    return {"system": SYSTEMS[code.scheme], "code": code.value, "display": code.meaning}


def _present(**fields: Any) -> Json:
    """Those fields that hold something: FHIR knows no empty values."""
    return {name: value for name, value in fields.items() if value not in (None, "", [], {})}


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
