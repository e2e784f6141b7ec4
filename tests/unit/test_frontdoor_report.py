"""Journeys and their sums: what counts as restored, what as failed, and in which words."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gateway.index_rows import ForwardRow, InstanceRow
from gateway.instance import Form, ForwardState, State
from gateway.part10 import Peek
from gateway.uids import SOPClassUID, SOPInstanceUID
from palimpsest.compare import Verdict
from palimpsest.dimse import Answer
from palimpsest.journey import Journey, _route
from palimpsest.report import as_json, print_summary, summarise, write_json
from palimpsest.scan import Found, Skipped
from palimpsest.table import journeys_table, print_line, print_skipped

FOUND = Found(Path("a/b.dcm"), 1000, Peek(SOPClassUID("1.2"), SOPInstanceUID("1.3"), None, None, "1.4", 0), "d" * 64)


def row(**changes: Any) -> InstanceRow:
    values: dict[str, Any] = dict.fromkeys(InstanceRow.__dataclass_fields__)
    values |= {
        "id": 1, "sop_uid": "1.3", "size": 1000, "state": State.RELEASED, "form": Form.CODED, "modality": "CT",
        "archived_size": 400, "codec_bytes": 300, "raw_pixel_bytes": 900, "payload_bytes": 50, "coder": "dual",
        "current": True, "conflict": False, "attempts": 1, "received_at": 0.0, "verified_at": 1.0, "digest": "e" * 64,
    }  # fmt: skip
    return InstanceRow(**(values | changes))


def forward(state: ForwardState, reason: str | None = None) -> ForwardRow:
    values: dict[str, Any] = dict.fromkeys(ForwardRow.__dataclass_fields__)
    return ForwardRow(**(values | {"id": 1, "instance_id": 1, "destination": "pacs", "state": state, "reason": reason}))


def good(**changes: Any) -> Journey:
    journey = Journey(
        FOUND, Answer(FOUND, True, 0, ""), row(), (forward(ForwardState.SENT),), Verdict(True, "bytes")
    )
    for name, value in changes.items():
        setattr(journey, name, value)
    return journey


BAD = {
    "refused: cannot-understand (bad-uid)": {"answer": Answer(FOUND, False, 0xC000, "cannot-understand", "bad-uid")},
    "accepted, but not found in the index": {"row": None},
    "not archived: still RECEIVED (no-keys)": {"row": row(state=State.RECEIVED, last_error="no-keys")},
    "not forwarded: pacs: DEAD refused": {"forwards": (forward(ForwardState.DEAD, "refused"),)},
    "not given back: http-500": {"verdict": None, "fetch_error": "http-500"},
    "given back differently: 1 of 4 samples differ": {"verdict": Verdict(False, "pixels", "1 of 4 samples differ")},
}


@pytest.mark.parametrize("words", BAD)
def test_every_failure_is_said_in_words(words: str) -> None:
    journey = good(**BAD[words])
    assert journey.problem() == words
    out = StringIO()
    print_line(Console(file=out, width=200), journey)
    label = "refused " if journey.refused else "failed  "
    assert out.getvalue() == f"{label}  a/b.dcm: {words.removeprefix('refused: ')}\n"


def test_a_good_journey_has_no_problem() -> None:
    journey = good()
    assert (journey.problem(), journey.restored, journey.settled, journey.refused) == ("", True, True, False)
    out = StringIO()
    print_line(Console(file=out, width=200), journey)
    assert out.getvalue() == "restored  a/b.dcm: 1,000 -> 400 bytes (2.50), dual\n"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"study_uid": "1.5", "series_uid": "1.6"}, "studies/1.5/series/1.6/instances/1.3"),
        ({"study_uid": "1.5", "series_uid": "1..6"}, "objects/" + "e" * 64),
        ({"study_uid": None, "series_uid": "1.6"}, "objects/" + "e" * 64),
        ({"study_uid": "1.5", "series_uid": "1.6", "current": False}, "objects/" + "e" * 64),
    ],
)
def test_an_original_is_fetched_by_uids_only_where_they_lead_to_it(changes: dict[str, Any], path: str) -> None:
    assert _route(row(**changes)).path == path


def test_sums_count_each_file_once_and_tell_clean_from_failed() -> None:
    whole = good(row=row(form=Form.PASSTHROUGH, reason="no-pixels", modality="SR", archived_size=600))
    journeys = [good(), good(), whole, *(good(**change) for change in BAD.values())]
    skipped = [Skipped(Path("notes.txt"), "not-part10", "no DICM at byte 128")]
    summary = summarise(journeys, skipped, fetched=True)
    assert summary.named == len(journeys) + 1
    assert summary.refused == {"bad-uid": 1, "not-part10": 1}
    assert summary.accepted == len(journeys) - 1
    assert (summary.restored, summary.passthrough, summary.clean) == (6, {"no-pixels": 1}, False)
    assert sum(summary.failed.values()) == len(BAD) - 1 and len(summary.problems) == len(BAD) + 1
    assert summary.by_modality["SR"].coded_files == 0
    assert summary.by_modality["CT"].as_dict()["codec_ratio"] == 3.0
    assert summarise([good(), whole], [], fetched=True).clean


def test_not_fetched_is_a_failure_only_where_it_was_asked_for() -> None:
    unfetched = [good(verdict=None)]
    assert summarise(unfetched, [], fetched=False).clean
    assert not summarise(unfetched, [], fetched=True).clean


def test_the_report_is_json_and_holds_every_file(tmp_path: Path) -> None:
    journeys, skipped = [good(), good(**BAD["not given back: http-500"])], [Skipped(Path("x"), "unreadable", "no")]
    write_json(tmp_path / "r.json", as_json(summarise(journeys, skipped, fetched=True), journeys, skipped))
    report = json.loads((tmp_path / "r.json").read_text())
    assert [f["restored"] for f in report["files"]] == [True, False]
    assert report["files"][1]["problem"] == "not given back: http-500"
    assert report["not_sent"] == [{"path": "x", "reason": "unreadable", "message": "no"}]
    assert report["total"]["whole_ratio"] == 2.5


def test_the_live_table_shows_one_row_per_file_in_every_state() -> None:
    journeys = [
        Journey(FOUND), good(), *(good(**change) for change in BAD.values()),
        good(row=replace(row(), form=Form.PASSTHROUGH, reason="lossy-source")),
    ]  # fmt: skip
    out = StringIO()
    console = Console(file=out, width=160)
    console.print(journeys_table(journeys, "title"))
    print_skipped(console, Skipped(Path("y"), "not-part10", "no DICM"))
    print_summary(console, summarise(journeys, [], fetched=True))
    text = out.getvalue()
    assert text.count("b.dcm") == len(journeys)
    for word in ("waiting", "REFUSED", "RELEASED", "whole (lossy-source)", "2.50", "refused   y: not-part10: no DICM"):
        assert word in text
