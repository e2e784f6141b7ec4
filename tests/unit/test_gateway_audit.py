"""The audit trail finds edits, deletions, reordering, a cut tail and a rewrite; logs say nothing of patients."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import audit, metrics_read
from gateway.audit import AuditEvent
from gateway.bootstrap import Gateway
from gateway.errors import Unavailable
from gateway.log import JsonFormatter
from tests.fakes import part10, take_in


@pytest.fixture
def trail(gw: Gateway) -> Gateway:
    for number in range(6):
        gw.index.audit(
            AuditEvent("retrieved", f"user{number}", detail={"count": number, "exact": True, "seconds": 0.25})
        )
    return gw


def tamper(gw: Gateway, script: str) -> None:
    """What an intruder with the database file can do: drop the triggers first."""
    gw.index.close()
    conn = sqlite3.connect(gw.settings.database_path)
    conn.executescript("DROP TRIGGER audit_no_UPDATE; DROP TRIGGER audit_no_DELETE;" + script)
    conn.close()


def test_an_untouched_trail_is_whole(trail: Gateway) -> None:
    report = audit.verify(trail.index)
    assert (report.ok, report.count, report.problem) == (True, 6, "")


@pytest.mark.parametrize(
    "script",
    [
        "UPDATE audit SET actor = 'nobody' WHERE seq = 3",
        "UPDATE audit SET detail = '{}' WHERE seq = 6",
        "UPDATE audit SET at_us = at_us + 1 WHERE seq = 1",
        "DELETE FROM audit WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 1",
        "DELETE FROM audit WHERE seq = 3; UPDATE audit SET seq = seq - 1 WHERE seq > 3",
        "UPDATE audit SET seq = 99 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 4;"
        "UPDATE audit SET seq = 4 WHERE seq = 99",
    ],
)
def test_changes_are_found(trail: Gateway, script: str) -> None:
    tamper(trail, script)
    report = audit.verify(trail.index)
    assert not report.ok and report.problem and report.at_seq is not None


def test_export_is_json_lines_in_order(trail: Gateway) -> None:
    out = io.StringIO()
    assert audit.export(trail.index, out, since=2) == 4
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["seq"] for line in lines] == [3, 4, 5, 6] and lines[0]["detail"]["count"] == 2


def test_details_outside_the_allow_list_are_refused() -> None:
    with pytest.raises(ValueError, match="allow-list"):
        AuditEvent("retrieved", "user", detail={"patient_name": "Doe"})
    with pytest.raises(ValueError, match="allow-list"):
        AuditEvent("Retrieved by Doe", "user")


def record(name: str, text: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.WARNING, __file__, 1, text, args, None)
    vars(made).update(extra)
    return made


def test_log_lines_hold_allowed_fields_only() -> None:
    made = record(
        "gateway.accept", "an instance was refused", reason="not-part10", patient_name="Doe^Jane", instance_id=7
    )
    line = json.loads(JsonFormatter().format(made))
    assert (line["text"], line["reason"], line["instance_id"]) == ("an instance was refused", "not-part10", 7)
    assert "Doe" not in json.dumps(line)


@pytest.mark.parametrize(
    "name", ["pynetdicom.events", "pydicom", "sqlalchemy.engine", "celery.app.trace", "uvicorn.access"]
)
def test_texts_of_libraries_that_see_objects_are_withheld(name: str) -> None:
    assert "Doe" not in JsonFormatter().format(record(name, "Patient's name: %s", "Doe^Jane"))


def test_exceptions_are_logged_without_their_message() -> None:
    made = record("service.api", "unexpected error")
    try:
        raise ValueError("Doe^Jane")
    except ValueError as error:
        made.exc_info = (type(error), error, error.__traceback__)
    line = JsonFormatter().format(made)
    assert "Doe" not in line and json.loads(line)["exception"] == "ValueError"


def test_what_nobody_catches_is_logged_without_its_message() -> None:
    program = (
        "import threading; from gateway.log import configure_logging; from gateway.settings import load_settings\n"
        "configure_logging(load_settings())\n"
        "def fail(): raise ValueError('Doe^John')\n"
        "t = threading.Thread(target=fail); t.start(); t.join(); fail()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert ended.returncode == 1
    assert [line["exception"] for line in lines] == ["ValueError", "ValueError"]
    assert "Doe" not in ended.stderr


def test_database_errors_do_not_quote_parameters(gw: Gateway, tmp_path: Path) -> None:
    gw.index.close()
    gw.settings.database_path.write_bytes(b"this is no database" * 100)
    for suffix in ("-wal", "-shm"):
        gw.settings.database_path.with_name(gw.settings.database_path.name + suffix).unlink(missing_ok=True)
    with pytest.raises(Unavailable) as caught:
        gw.index.search("study", {"PatientName": "Doe^Jane"})
    assert "Doe" not in str(caught.value.problem())


def test_metrics_are_exposed(gw: Gateway) -> None:
    take_in(gw, part10())
    text = metrics_read.exposition(gw, gw.queue.depths, dict).decode()
    assert 'palimpsest_instances{state="RECEIVED"} 1.0' in text
    assert 'palimpsest_queue_depth{queue="encode"} 1.0' in text
    assert 'palimpsest_received_total{outcome="new",source="dimse"}' in text
