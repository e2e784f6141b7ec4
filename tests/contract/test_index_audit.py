"""The audit trail is searched, and its exports are led, the same on both databases."""

from __future__ import annotations

from gateway.audit import AuditEvent
from gateway.index import Index
from gateway.index_audit import AuditQuery
from gateway.index_rows import NewInstance
from tests.fakes import CT, EXPLICIT_LE, FakeClock


def received(index: Index, number: int, patient: str) -> int:
    new = NewInstance(
        f"1.2.{number}", CT, f"1.9.{number}", "1.3", EXPLICIT_LE, f"{number:064d}", f"{number:064d}", 10, "dimse",
        f"CT{number}", 5,
    )  # fmt: skip
    row = index.add_received(new).row
    index.set_attributes(row.id, {"PatientID": patient}, "{}", subject=(f"S{number}", f"P{patient}"))
    return row.id


def test_events_are_found_by_patient_study_user_and_time(index: Index, clock: FakeClock) -> None:
    began = clock()
    first, second = received(index, 1, "a"), received(index, 2, "b")
    clock.advance(60)
    index.audit(AuditEvent("retrieved", "dr_x", study="S1"))
    index.audit(AuditEvent("shredded", "cli", patient="Pa"))

    def found(**asked: object) -> list[int]:
        return [line["seq"] for line in index.audit_search(AuditQuery(**asked))]  # type: ignore[arg-type]

    assert found(patients=("Pa",)) == [4, 3, 1] and found(patients=("Pb", "Pz")) == [2]
    assert found(studies=("S1",)) == [3, 1] and found(studies=("S1", "S2"), oldest_first=True) == [1, 2, 3]
    assert found(actor="dr*") == [3] and found(actor="dr%*") == found(actor="d__x") == []
    assert found(events=("received",), before=2) == [1] and found(after=3) == [4] and found(limit=1) == [4]
    assert found(since=began + 1) == [4, 3] and found(until=began + 1, instance_id=second) == [2]
    subject = index.audit_subjects([first])[first]
    assert (subject.study, subject.patient, subject.sop_class) == ("S1", "Pa", CT)
    assert index.audit_last() == (4, index.audit_hash(4)) and index.audit_hash(9) is None


def test_one_owner_at_a_time_until_the_lease_ends(index: Index, clock: FakeClock) -> None:
    assert index.audit_claim("syslog", "host-1", 60.0) is not None
    assert index.audit_claim("syslog", "host-2", 60.0) is None
    assert index.audit_claim("syslog", "host-1", 60.0) is not None
    index.audit_state_set("syslog", {"seq": 7})
    assert (index.audit_claim("syslog", "host-2", 60.0) or {})["seq"] == 7
    clock.advance(61)
    assert (index.audit_claim("syslog", "host-1", 60.0) or {})["owner"] == "host-1"
