"""The audit trail over HTTP and on the command line: search, FHIR, export, and that using it is in it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from fhir.resources.R4B.auditevent import AuditEvent as FhirAuditEvent
from fhir.resources.R4B.bundle import Bundle
from typer.testing import CliRunner

from gateway import audit
from gateway.audit import AuditEvent
from gateway.audit_subject import audit_subject
from gateway.bootstrap import Gateway, build
from gateway.jobs import MemoryQueue
from gateway.settings import load_settings
from gateway.tokens import mint_token
from palimpsest.cli import app
from service.api import create_app
from service.auditing import AT_ONCE, WAITING
from tests.fakes import FakeClock, part10, take_in
from worker.sweep import name_audit_subjects

pytestmark = pytest.mark.integration


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gw = build(load_settings(home=tmp_path / "home", profile="demo", watermark_bytes=0), queue=MemoryQueue())
    gw.index.now = FakeClock()  # type: ignore[method-assign]
    yield gw
    gw.close()


@pytest.fixture
def web(gateway: Gateway) -> Iterator[TestClient]:
    with TestClient(create_app(gateway), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def two_patients(gateway: Gateway) -> dict[str, str]:
    """Two studies, of patients PID-4711-X and PID-0815-X; somebody looked at the first. Pseudonyms by name."""
    for study, patient in (("1.2.3.1", "PID-4711-X"), ("1.2.3.2", "PID-0815-X")):
        row = take_in(gateway, part10(study=study), calling_ae=f"CT-{patient}").row
        subject = audit_subject(gateway, patient, study)
        gateway.index.set_attributes(row.id, {"PatientID": patient}, "{}", subject=subject)
        gateway.index.now.advance(3600)  # type: ignore[attr-defined]
    study, patient = audit_subject(gateway, "PID-4711-X", "1.2.3.1")
    gateway.index.audit(AuditEvent("retrieved", "dr.who", study=study, detail={"kind": "frames"}))
    gateway.index.audit(AuditEvent("shredded", "cli:root", patient=patient, detail={"count": 1}))
    return {"study": study, "patient": patient}


def ask(web: TestClient, gateway: Gateway, path: str, role: str = "auditor") -> Any:
    answer = web.get(path, headers={"Authorization": f"Bearer {mint_token(gateway, role, 'a-' + role)}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(web: TestClient, gateway: Gateway, query: str) -> list[str]:
    found = ask(web, gateway, f"/api/audit/search?{query}")["events"]
    return [each["event"] for each in found if each["event"] != "audit-used"]


def test_search_by_patient_study_user_event_and_time(
    web: TestClient, gateway: Gateway, two_patients: dict[str, str]
) -> None:
    patient, study = two_patients["patient"], two_patients["study"]
    assert events(web, gateway, f"patient={patient}") == ["shredded", "retrieved", "received"]
    assert events(web, gateway, f"study={study}") == events(web, gateway, "study=1.2.3.1") == ["retrieved", "received"]
    assert events(web, gateway, "user=dr.who") == ["retrieved"]
    assert events(web, gateway, "user=CT-*") == ["received", "received"]
    assert events(web, gateway, f"patient={patient}&event=received&event=shredded") == ["shredded", "received"]
    assert events(web, gateway, "from=2023-11-14T22:30:00Z&to=2023-11-15T00:00:00Z") == ["received"]
    assert events(web, gateway, "outcome=failure") == events(web, gateway, "patient=nobody") == []
    assert events(web, gateway, "instance=2") == ["received"]
    first = ask(web, gateway, f"/api/audit/search?patient={patient}&event=received")["events"][0]
    assert (first["study"], first["patient"]) == (study, patient)
    used = [each for each in audit.tail(gateway.index) if each["event"] == "audit-used"]
    assert used[0]["actor"] == "a-auditor" and used[0]["patient"] == patient
    two = f"patient=P{'0' * 15}&patient={patient}&patient=Doe^Jane"
    assert len(ask(web, gateway, f"/api/audit/search?{two}")["events"]) > 1
    web.get("/admin/audit?patient=Doe", headers={"Authorization": f"Bearer {mint_token(gateway, 'admin', 'root')}"})
    used = [each for each in audit.tail(gateway.index, 4) if each["event"] == "audit-used"]
    assert [each.get("patient") for each in used] == [None, None, patient, f"P{'0' * 15}"]
    assert web.get("/admin/audit").status_code == 401
    still = [each for each in audit.tail(gateway.index, 6) if each["event"] == "audit-used"]
    assert still[: len(used)] == used  # the refusal, which may be in the trail already, read nothing
    many = "patient=P&" * 17
    for wrong in (many, "event=nothing", "from=yesterday", "limit=x", "x=Doe", "patient=%00", "outcome=0", "before=-1"):
        headers = {"Authorization": f"Bearer {mint_token(gateway, 'admin', 'root')}"}
        assert web.get(f"/api/audit/search?{wrong}", headers=headers).status_code == 400


def test_pages_follow_each_other_to_the_end(web: TestClient, gateway: Gateway, two_patients: dict[str, str]) -> None:
    path, seen = "/api/audit/search?event=received&event=shredded&limit=1", []
    while path:
        page = ask(web, gateway, path)
        seen += [each["event"] for each in page["events"]]
        path = page.get("next", "")
    assert seen == ["shredded", "received", "received"]
    path, seen = "/fhir/AuditEvent?_count=2", []
    while path:
        page = ask(web, gateway, path, "admin")
        Bundle.model_validate(page)
        seen += [each["resource"]["subtype"][-1]["code"] for each in page.get("entry", ())]
        path = next((each["url"] for each in page["link"] if each["relation"] == "next"), "")
    assert [each for each in seen if each != "audit-used"] == ["shredded", "retrieved", "received", "received"]


def test_fhir_search_and_read(web: TestClient, gateway: Gateway, two_patients: dict[str, str]) -> None:
    query = f"patient:identifier=urn:x|{two_patients['patient']}&subtype=retrieved&outcome=0&date=ge2023-11-14"
    found = ask(web, gateway, f"/fhir/AuditEvent?{query}&date=lt2024-01-01")
    (entry,) = found["entry"]
    resource = entry["resource"]
    FhirAuditEvent.model_validate(resource)
    assert resource["agent"][1]["who"]["display"] == "dr.who"
    assert resource["entity"][0]["what"]["identifier"]["value"] == two_patients["study"]
    assert ask(web, gateway, "/fhir/AuditEvent/3") == resource
    auditor = {"Authorization": f"Bearer {mint_token(gateway, 'auditor', 'a')}"}
    for path, status in (("/999", 404), ("/x", 400), ("?date=2023", 400), ("?subtype=x", 400), ("?_sort=date", 400)):
        assert web.get(f"/fhir/AuditEvent{path}", headers=auditor).status_code == status
    clinician = {"Authorization": f"Bearer {mint_token(gateway, 'clinician', 'c')}"}
    for path in ("/api/audit", "/api/audit/search", "/fhir/AuditEvent", "/fhir/AuditEvent/1"):
        assert web.get(path, headers=clinician).status_code == 403
        assert web.get(path).status_code == 401


def test_exports_are_whole_in_every_format(web: TestClient, gateway: Gateway, two_patients: dict[str, str]) -> None:
    token = {"Authorization": f"Bearer {mint_token(gateway, 'auditor', 'a')}"}
    lines = web.get("/api/audit?format=jsonl", headers=token).text.splitlines()
    assert audit.verify(audit.read_export(lines)).ok and len(lines) == 5
    for form, begins in (("dicom", "<?xml"), ("fhir", "{")):
        answer = web.get(f"/api/audit?since=2&format={form}", headers=token)
        assert all(line.startswith(begins) for line in answer.text.splitlines()) and answer.text.count("\n") >= 4
        assert "PID-4711-X" not in answer.text
    assert web.get("/api/audit?format=csv", headers=token).status_code == 400


def test_the_command_line_finds_by_patient_id(gateway: Gateway, two_patients: dict[str, str]) -> None:
    home = str(gateway.settings.home)
    gateway.keys.rotate("pseudo")  # the patient's old name is looked for, too
    run = CliRunner().invoke(app, ["audit", "search", "--patient-id", "PID-4711-X", "--json", "--home", home])
    assert [json.loads(line)["event"] for line in run.output.splitlines()] == ["shredded", "retrieved", "received"]
    shown = CliRunner().invoke(app, ["audit", "search", "--user", "dr.who", "--from", "2023-11-01", "--home", home])
    assert "dr.who" in shown.output and "kind=frames" in shown.output
    last = audit.tail(gateway.index, 2)
    assert [each["event"] for each in last] == ["audit-used", "audit-used"] and last[1]["patient"]
    assert CliRunner().invoke(app, ["audit", "export", "--format", "csv", "--home", home]).exit_code == 1


def test_instances_of_an_older_release_are_found_by_patient(gateway: Gateway) -> None:
    row = take_in(gateway, part10(study="1.2.3.1")).row
    gateway.index.set_attributes(row.id, {"PatientID": "PID-4711-X"}, "{}")  # without their names in the trail
    assert (name_audit_subjects(gateway), name_audit_subjects(gateway), name_audit_subjects(gateway)) == (1, 0, 0)
    study, patient = audit_subject(gateway, "PID-4711-X", "1.2.3.1")
    found = gateway.index.audit_subjects([row.id])[row.id]
    assert (found.study, found.patient) == (study, patient)


@pytest.mark.parametrize("path", ["/api/audit/search", "/api/audit/verify", "/fhir/AuditEvent", "/admin/audit"])
def test_questions_to_the_trail_take_turns(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    app, go, lock = create_app(gateway), threading.Event(), threading.Lock()
    running: list[int] = [0, 0]  # now, at most
    append = gateway.index.audit

    def slow(event: AuditEvent) -> None:
        with lock:
            running[0] += 1
            running[1] = max(running)
        go.wait(240)
        append(event)
        with lock:
            running[0] -= 1

    monkeypatch.setattr(gateway.index, "audit", slow)
    headers = {"Authorization": f"Bearer {mint_token(gateway, 'auditor', 'me')}"}

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here", timeout=60) as web:
            asking = [asyncio.create_task(web.get(path, headers=headers)) for _ in range(AT_ONCE + WAITING + 5)]
            while sum(each.done() for each in asking) < 5:
                await asyncio.sleep(0.01)
            assert (await web.get("/readyz")).status_code == 200, "nothing else waits for them"
            if path == "/api/audit/verify":  # which reads all of the trail: no page waits for it
                monkeypatch.setattr(gateway.index, "audit", append)
                assert (await web.get("/api/audit/search?limit=1", headers=headers)).status_code == 200
            go.set()
            return await asyncio.gather(*asking)

    answers = asyncio.run(ask())
    assert Counter(each.status_code for each in answers) == {200: AT_ONCE + WAITING, 503: 5}
    assert {each.headers["retry-after"] for each in answers if each.status_code == 503} == {"5"}
    assert running == [0, AT_ONCE]
