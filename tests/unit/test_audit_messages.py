"""Every event of the trail as a message: valid by the schema of PS3.15 A.5.1, the tables of A.5.3, and as FHIR R4."""

from __future__ import annotations

import ast
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B.auditevent import AuditEvent as FhirAuditEvent
from fhir.resources.R4B.bundle import Bundle
from lxml import etree

from gateway import audit
from gateway.audit import AuditEvent
from gateway.audit_dicom import to_xml
from gateway.audit_events import EVENTS, KINDS, Shape, message_of
from gateway.audit_fhir import bundle, to_fhir
from gateway.audit_message import AuditMessage, Source, describe, messages, source_of
from gateway.audit_subject import audit_subject
from gateway.bootstrap import Gateway
from gateway.index_audit import AuditSubject
from tests.fakes import part10, take_in
from tests.test_architecture import modules

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).parent.parent / "data" / "audit-message.rng"))
SOURCE = Source("PALIMPSEST", "RAD", "PALIMPSEST", "host-1", "0.1.0")
NAMED = AuditSubject("2.25.77", "P0123456789ABCDE", "1.2.840.10008.5.1.4.1.1.2")
CT = NAMED.sop_class

#: EventID -> (action codes that A.5.3 allows, event types that it asks for, roles that must be there)
TABLES: dict[str, tuple[str, set[str], set[str]]] = {
    "110100": ("E", {"110120", "110121"}, {"110150"}),
    "110101": ("RE", set(), set()),
    "110102": ("E", set(), {"110152", "110153"}),
    "110103": ("CRUD", set(), set()),
    "110104": ("CRU", set(), {"110152", "110153"}),
    "110105": ("D", set(), set()),
    "110106": ("R", set(), {"110153", "110154"}),
    "110107": ("C", set(), {"110152", "110155"}),
    "110110": ("CRUD", set(), set()),
    "110112": ("E", set(), {"110152", "110153"}),
    "110113": ("E", {"110126", "110128", "110129", "110131", "110132", "110135", "110136", "110137"}, set()),
    "110114": ("E", {"110122", "110123"}, set()),
}
STUDIES = {"110102", "110103", "110104", "110105", "110106", "110107"}
KINDS_OF_EVENT = [(name, {}) for name in EVENTS] + [(name, {field: value}) for name, field, value in KINDS]
KINDS_OF_EVENT += [("refused", {"address": "10.0.0.7"}), ("forwarded", {"destination": "pacs"})]
KINDS_OF_EVENT += [("retrieved", {"kind": "instances", "source": "c-move", "destination": "ws1", "count": 12})]


def line(event: str, detail: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """An event as the export shows it."""
    whole = {
        "seq": 7, "at_us": 1_700_000_000_123_456, "event": event, "actor": "CT1", "outcome": "success",
        "instance_id": 3, "study": None, "detail": detail or {}, "hash": "ab" * 32,
    }  # fmt: skip
    return {**whole, **changes}


def parsed(message: AuditMessage) -> etree._Element:
    """Its XML, valid by the schema."""
    root = etree.fromstring(to_xml(message))
    assert SCHEMA.validate(root), SCHEMA.error_log
    return root


@pytest.mark.parametrize(("event", "detail"), KINDS_OF_EVENT)
@pytest.mark.parametrize("outcome", ["success", "refused", "failure"])
def test_every_event_is_a_message_of_the_standard(event: str, detail: dict[str, Any], outcome: str) -> None:
    message = describe(line(event, detail, outcome=outcome), NAMED, SOURCE)
    root = parsed(message)
    identified = root.find("EventIdentification")
    number = identified.find("EventID").get("csd-code")
    actions, types, roles = TABLES[number]
    assert identified.get("EventActionCode") in actions
    assert identified.get("EventDateTime") == "2023-11-14T22:13:20.123456+00:00"
    assert identified.get("EventOutcomeIndicator") == {"success": "0", "refused": "4", "failure": "8"}[outcome]
    assert (identified.find("EventOutcomeDescription") is None) == (outcome == "success")
    assert {each.get("csd-code") for each in identified.findall("EventTypeCode")} <= types
    assert bool(types) == bool(identified.findall("EventTypeCode"))
    assert roles <= {each.get("csd-code") for each in root.iterfind("ActiveParticipant/RoleIDCode")}
    assert root.find("AuditSourceIdentification").get("AuditSourceID") == "PALIMPSEST"
    things = {
        each.find("ParticipantObjectIDTypeCode").get("csd-code"): each
        for each in root.iter("ParticipantObjectIdentification")
    }
    if number in STUDIES:
        assert (things["110180"].get("ParticipantObjectID"), things["2"].get("ParticipantObjectID")) == (
            "2.25.77", "P0123456789ABCDE")  # fmt: skip
        assert things["110180"].get("ParticipantObjectTypeCodeRole") == "3"
    if number == "110112":
        assert things["110181"].find("ParticipantObjectQuery").text
    if number == "110113":
        kinds = [each.get("type") for each in root.iter("ParticipantObjectDetail")]
        assert "Alert Description" in kinds
    if number == "110101":
        assert things["12"].get("ParticipantObjectTypeCodeRole") == "13"
    fhir = to_fhir(message)
    FhirAuditEvent.model_validate_json(json.dumps(fhir))
    assert (fhir["type"]["code"], fhir["action"]) == (number, identified.get("EventActionCode"))
    assert fhir["outcome"] == identified.get("EventOutcomeIndicator") and fhir["id"] == "7"


def test_a_receipt_says_from_whom_to_whom_and_what() -> None:
    root = parsed(describe(line("received", {"bytes": 512, "address": "10.0.0.7"}), NAMED, SOURCE))
    sender, receiver = root.findall("ActiveParticipant")
    assert (sender.get("UserID"), sender.get("UserIsRequestor"), sender.get("NetworkAccessPointTypeCode")) == (
        "CT1", "true", "2")  # fmt: skip
    assert receiver.get("AlternativeUserID") == "AETITLES=PALIMPSEST"
    described = root.find(".//SOPClass")
    assert (described.get("UID"), described.get("NumberOfInstances")) == (CT, "1")
    details = {each.get("type"): base64.b64decode(each.get("value")) for each in root.iter("ParticipantObjectDetail")}
    assert (details["bytes"], details["seq"], details["hash"]) == (b"512", b"7", b"ab" * 32)


def test_a_search_says_at_which_level_and_not_for_whom() -> None:
    message = describe(line("retrieved", {"kind": "search", "level": "series"}, instance_id=None), NAMED, SOURCE)
    query = base64.b64decode(parsed(message).find(".//ParticipantObjectQuery").text)
    assert query == b"\x08\x00\x52\x00\x06\x00\x00\x00SERIES"


@pytest.mark.parametrize("odd", ['<a>&"', "\x00\x1b[0m\u2028", "\ud800", "é漢" * 30])
def test_hostile_text_stays_text(odd: str) -> None:
    message = describe(line("received", {"reason": odd, "address": odd}, actor=odd[:64]), NAMED, SOURCE)
    parsed(message)
    assert b"\n" not in to_xml(message)
    FhirAuditEvent.model_validate(to_fhir(message))


def test_what_the_gateway_writes_becomes_messages(gw: Gateway) -> None:
    row = take_in(gw, part10(study="1.2.3.9", patient="Quastenflosser^Jane")).row
    gw.index.set_attributes(row.id, {"PatientID": "PID-4711"}, "{}", subject=audit_subject(gw, "PID-4711", "1.2.3.9"))
    again = take_in(gw, part10(study="1.2.3.10")).row  # not indexed yet: its patient is not known
    found = list(messages(gw, audit.tail(gw.index), source_of(gw.settings, "host", "1")))
    assert [each.name for each in found] == ["received", "received"]
    newer, older = ({thing.id_type.value: thing.object_id for thing in each.things} for each in found)
    assert older == dict(zip(("110180", "2"), audit_subject(gw, "PID-4711", "1.2.3.9"), strict=True))
    assert newer == {"110180": audit_subject(gw, "", "1.2.3.10")[0]} and again.id
    for message in found:
        xml = to_xml(message).decode()
        assert not any(secret in xml for secret in ("Quastenflosser", "PID-4711", "1.2.3.9", "1.2.3.10"))
        parsed(message)
    listed = bundle(found, {"self": "http://h/fhir/AuditEvent"}, "http://h/fhir")
    assert len(Bundle.model_validate(listed).entry) == 2


def test_unknown_events_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="audit_events"):
        AuditEvent("looked-at-the-sky", "user")
    with pytest.raises(KeyError):
        message_of("looked-at-the-sky", {})
    assert {each.shape for each in (*EVENTS.values(), *KINDS.values())} >= set(Shape) - {Shape.NODE}


#: functions that write an event -> which argument names it
WRITERS = {"AuditEvent": 0, "record": 1, "_note": 1, "record_use": 2, "_Kind": 0}
OTHERS = {"gateway/keys.py", "worker/restore.py"}  # their _note and record are about something else
READ_ELSEWHERE = {"kind.event"}  # service/refusals.py: of a _Kind


def names_written() -> Iterator[tuple[str, str]]:
    """(where, event name) for every call that writes an event; fails where a name cannot be read off."""
    for path, tree in modules("gateway", "service", "worker", "palimpsest"):
        for function in [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]:
            given = {each.arg for each in (*function.args.args, *function.args.kwonlyargs)}
            for call in [node for node in ast.walk(function) if isinstance(node, ast.Call)]:
                writer = getattr(call.func, "id", getattr(call.func, "attr", ""))
                if writer not in WRITERS or len(call.args) <= WRITERS[writer] or path in OTHERS:
                    continue
                named = call.args[WRITERS[writer]]
                if isinstance(named, ast.Name) and named.id in given:
                    continue  # a writer itself: its callers are looked at
                if isinstance(named, ast.Name):
                    assigned = [
                        node.value for node in ast.walk(function)
                        if isinstance(node, ast.Assign) and any(ast.unparse(t) == named.id for t in node.targets)
                    ]  # fmt: skip
                else:
                    assigned = [named]
                for value in assigned:
                    for text in _texts(value):
                        yield f"{path}:{call.lineno}", text


def _texts(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.IfExp):
        yield from _texts(value.body)
        yield from _texts(value.orelse)
    elif isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif ast.unparse(value) not in READ_ELSEWHERE:
        yield f"{ast.unparse(value)} (name the event in words)"


def test_every_event_that_the_code_writes_has_its_message() -> None:
    written = list(names_written())
    assert [each for each in written if each[1] not in EVENTS] == []
    assert len({name for _, name in written}) > 50
    assert {name for _, name in written} >= {"received", "duplicate", "retrieved", "login-failed", "dead-letter"}
