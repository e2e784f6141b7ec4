"""What the index does, on SQLite and, where TEST_DATABASE_URL names a server, on PostgreSQL: the same."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from hashlib import sha256

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from gateway import audit
from gateway.errors import IntegrityError, InvalidInstance, LeaseLost, NotFound
from gateway.index import ENCODE_TASK, FORWARD_TASK, INDEX_TASK, CandidateFacts, Index, InstanceRow, NewInstance
from gateway.index_schema import instance, metadata
from gateway.instance import Form, ForwardState, State
from tests.fakes import CT, EXPLICIT_LE, FakeClock


def digest(of: object) -> str:
    return sha256(str(of).encode()).hexdigest()


def new(number: int, **changes: object) -> NewInstance:
    made = NewInstance(
        sop_uid=f"1.2.3.{number}", sop_class=CT, study_uid="1.2", series_uid="1.2.1", transfer_syntax=EXPLICIT_LE,
        digest=digest(number), dataset_digest=digest(("data", number)), size=1000, source="dimse", calling_ae="CT1",
        priority=5,
    )  # fmt: skip
    return replace(made, **changes)


CODED = CandidateFacts(
    digest=digest("candidate"), size=400, form=Form.CODED, reason=None, envelope_uid="2.25.9", coder="dual",
    carrier="segmented", payload_bytes=512, codec_bytes=300, raw_pixel_bytes=900, facts={"a": 1},
    wraps=[{"kek": "kek-1"}],
)  # fmt: skip


def archived(index: Index, number: int = 1, destinations: tuple[str, ...] = ()) -> InstanceRow:
    row = index.add_received(new(number)).row
    index.claim(row.id, "w", 60)
    index.set_candidate(row.id, "w", CODED)
    index.set_verified(row.id, "w")
    return index.set_archived(row.id, "w", f"aa/2.25.{number}.dcm", CODED.digest, 400, destinations)


def test_the_migrations_make_the_tables_of_the_schema(index: Index) -> None:
    index.create()  # again: nothing to do
    with index.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []


def test_a_new_instance_has_row_audit_event_and_two_messages(index: Index, clock: FakeClock) -> None:
    accepted = index.add_received(new(1, priority=0))
    row = accepted.row
    assert accepted.outcome == "new"
    assert (row.state, row.attempts, row.current, row.conflict) == (State.RECEIVED, 0, True, False)
    assert row.received_at == clock.now
    assert {(m.task, m.args, m.queue, m.priority) for m in index.outbox_due()} == {
        (INDEX_TASK, (row.id,), "index", 0),
        (ENCODE_TASK, (row.id,), "encode", 0),
    }
    assert [(e["event"], e["instance_id"], e["actor"]) for e in audit.tail(index)] == [("received", row.id, "CT1")]
    assert index.get(row.id) == index.by_sop("1.2.3.1") == index.by_digest(row.digest) == row
    assert index.by_study("1.2") == index.by_study("1.2", "1.2.1") == [row]
    assert index.by_study("1.2", "9") == [] and index.by_sop("9") is None


def test_the_same_data_set_again_is_a_duplicate_even_with_another_file_meta(index: Index) -> None:
    first = index.add_received(new(1)).row
    again = index.add_received(new(1, digest=digest("other meta")))
    assert (again.outcome, again.row) == ("duplicate", first)
    assert len(index.outbox_due()) == 2
    assert [e["event"] for e in audit.tail(index)] == ["duplicate", "received"]


def test_same_pixels_under_a_changed_header_are_a_version_and_the_newest_is_served(index: Index) -> None:
    first = index.add_received(new(1, pixel_digest="p")).row
    second = index.add_received(new(2, sop_uid=first.sop_uid, pixel_digest="p"))
    assert second.outcome == "version"
    assert index.by_sop(first.sop_uid) == second.row
    assert [row.id for row in index.versions(first.sop_uid)] == [second.row.id, first.id]
    assert index.by_digest(first.digest) == replace(first, current=False)
    assert index.by_study("1.2") == [second.row]


@pytest.mark.parametrize("pixels", [("p", "q"), ("p", None), (None, "p"), (None, None)])
def test_other_or_unknown_pixels_are_a_conflict_and_the_first_stays_served(
    index: Index, pixels: tuple[str | None, str | None]
) -> None:
    first = index.add_received(new(1, pixel_digest=pixels[0])).row
    second = index.add_received(new(2, sop_uid=first.sop_uid, pixel_digest=pixels[1]))
    assert second.outcome == "conflict"
    assert index.by_sop(first.sop_uid) == replace(first, conflict=True)
    assert index.get(second.row.id).conflict and not second.row.current
    assert index.counts().conflicts == 2
    chosen = index.make_current(second.row.id, "admin")
    assert chosen.current and not chosen.conflict
    assert index.by_sop(first.sop_uid) == chosen and index.counts().conflicts == 0


def test_one_worker_claims_and_the_attempt_is_counted_first(index: Index, clock: FakeClock) -> None:
    row = index.add_received(new(1)).row
    claimed = index.claim(row.id, "a", 60)
    assert claimed is not None and claimed.attempts == 1 and claimed.lease_until == clock.now + 60
    assert index.claim(row.id, "b", 60) is None
    clock.advance(61)  # a died without a word
    again = index.claim(row.id, "b", 60)
    assert again is not None and again.attempts == 2
    for act in (
        lambda: index.heartbeat(row.id, "a", 60),
        lambda: index.set_candidate(row.id, "a", CODED),
        lambda: index.release_claim(row.id, "a", due_at=clock.now, reason="x"),
    ):
        with pytest.raises(LeaseLost):
            act()
    assert index.get(row.id).state is State.RECEIVED


@pytest.mark.parametrize("seconds", [3600, 3 * 24 * 3600])
def test_what_a_clock_that_was_ahead_put_off_comes_back(index: Index, clock: FakeClock, seconds: int) -> None:
    true = clock.now
    waiting, leased = (index.add_received(new(number)).row for number in (1, 2))
    [forward] = index.forwards(archived(index, 3, ("nas",)).id)
    assert index.times_pulled_back(60) == 0
    clock.advance(seconds)
    received = index.add_received(new(4)).row
    index.claim(waiting.id, "a", 60)
    index.release_claim(waiting.id, "a", due_at=clock.now + 30, reason="x")
    index.claim(leased.id, "dead", 60)
    index.touch_queued([waiting.id, leased.id])
    index.forward_claim(forward.id, "dead", 60)
    clock.now = true
    assert index.claim(waiting.id, "b", 60) is None and index.claim(leased.id, "b", 60) is None
    assert index.claim(received.id, "b", 60) is None
    assert index.times_pulled_back(60) == 4 and index.times_pulled_back(60) == 0
    assert index.claim(received.id, "b", 60) is not None
    assert index.claim(waiting.id, "b", 60) is not None
    clock.advance(61)  # as after any death
    assert {row.id for row in index.overdue(9, 30)} >= {leased.id}
    assert index.claim(leased.id, "b", 60) is not None
    assert index.forward_claim(forward.id, "b", 60) is not None


def test_a_heartbeat_keeps_the_lease(index: Index, clock: FakeClock) -> None:
    row = index.add_received(new(1)).row
    index.claim(row.id, "a", 60)
    for _ in range(5):
        clock.advance(40)
        index.heartbeat(row.id, "a", 60)
    assert index.claim(row.id, "b", 60) is None


def test_a_released_claim_waits_until_it_is_due(index: Index, clock: FakeClock) -> None:
    row = index.add_received(new(1)).row
    index.claim(row.id, "a", 60)
    index.release_claim(row.id, "a", due_at=clock.now + 30, reason="keys-missing", count_attempt=False)
    assert index.get(row.id).last_error == "keys-missing" and index.get(row.id).attempts == 0
    assert index.claim(row.id, "b", 60) is None
    clock.advance(30)
    assert index.claim(row.id, "b", 60) is not None


def test_the_walk_from_received_to_released(index: Index, clock: FakeClock) -> None:
    row = index.add_received(new(1)).row
    index.claim(row.id, "w", 60)
    candidate = index.set_candidate(row.id, "w", CODED)
    assert (candidate.state, candidate.coder, candidate.payload_bytes) == (State.CANDIDATE, "dual", 512)
    assert index.wraps(row.id) == [{"kek": "kek-1"}]
    index.set_verified(row.id, "w", {"sha256": "00"})
    assert index.facts(row.id) == {"a": 1, "sha256": "00", "verified_seq": 3}
    found = index.proven_instance(row.id)
    assert (found.row, found.facts) == (index.get(row.id), index.facts(row.id))
    assert found.entry is not None and found.entry.hash == audit.tail(index, 1)[0]["hash"]
    done = index.set_archived(row.id, "w", "aa/2.25.9.dcm", CODED.digest, 400, ["pacs", "vna"])
    assert (done.state, done.archived_size, done.lease_owner) == (State.ARCHIVED, 400, None)
    assert [f.destination for f in index.forwards(row.id)] == ["vna", "pacs"]
    assert len([m for m in index.outbox_due() if m.task == FORWARD_TASK]) == 2
    assert index.claim(row.id, "w", 60) is None
    released = index.set_released(row.id)
    assert released.state is State.RELEASED
    clock.advance(1)
    assert index.set_released(row.id, "shred") == released, "the sweep and a shredding may come to the same"
    assert [e["event"] for e in reversed(audit.tail(index))] == [
        "received", "candidate", "verified", "archived", "released",
    ]  # fmt: skip


def test_illegal_transitions_raise_and_change_nothing(index: Index) -> None:
    row = index.add_received(new(1)).row
    index.claim(row.id, "w", 60)
    for act in (
        lambda: index.set_verified(row.id, "w"),
        lambda: index.set_archived(row.id, "w", "aa/1.dcm", "0", 1),
        lambda: index.set_released(row.id),
        lambda: index.drop_candidate(row.id, "w", "x"),
    ):
        with pytest.raises(IntegrityError):
            act()
    assert index.get(row.id).state is State.RECEIVED
    assert [e["event"] for e in audit.tail(index)] == ["received"]


def test_a_failed_proof_goes_back_and_on_as_passthrough(index: Index) -> None:
    row = index.add_received(new(1)).row
    index.claim(row.id, "w", 60)
    index.set_candidate(row.id, "w", CODED)
    dropped = index.drop_candidate(row.id, "w", "digest-mismatch")
    assert (dropped.state, dropped.candidate_digest, dropped.lease_owner) == (State.RECEIVED, None, "w")
    whole = replace(CODED, form=Form.PASSTHROUGH, reason="unproven", digest=digest("whole"))
    assert index.set_candidate(row.id, "w", whole).form is Form.PASSTHROUGH
    assert index.counts().passthrough_by_reason == {"unproven": 1}
    assert {e["event"] for e in audit.tail(index)} >= {"quarantined", "passthrough"}


def test_overdue_rows_are_found_until_someone_holds_them(index: Index, clock: FakeClock) -> None:
    stat, normal = index.add_received(new(1, priority=9)).row, index.add_received(new(2, priority=0)).row
    assert index.overdue(10, 30) == [] and index.unindexed(10, 30) == []
    clock.advance(31)
    assert [row.id for row in index.overdue(10, 30)] == [normal.id, stat.id]
    assert [row.id for row in index.unindexed(10, 30)] == [normal.id, stat.id]
    index.claim(normal.id, "w", 60)
    assert [row.id for row in index.overdue(10, 30)] == [stat.id]
    index.touch_queued([stat.id])
    assert index.overdue(10, 30) == []
    clock.advance(61)
    assert {row.id for row in index.overdue(10, 30)} == {stat.id, normal.id}


def test_the_outbox_forgets_what_was_sent(index: Index) -> None:
    first, second = index.add_received(new(1)).row, index.add_received(new(2, priority=0)).row
    due = index.outbox_due()
    assert [m.args for m in due] == [(second.id,), (second.id,), (first.id,), (first.id,)]
    assert [m.args for m in index.outbox_due(instances=[first.id])] == [(first.id,)] * 2
    index.outbox_sent([m.id for m in due[:3]])
    assert [m.id for m in index.outbox_due()] == [due[3].id]


def test_one_dead_destination_blocks_no_other(index: Index, clock: FakeClock) -> None:
    row = archived(index, destinations=("good", "bad"))
    bad, good = index.forwards(row.id)
    for forward in (good, bad):
        assert index.forward_claim(forward.id, "w", 60) is not None
        assert index.forward_claim(forward.id, "x", 60) is None
    assert index.forward_done(good.id, "w", "accepted").state is ForwardState.SENT
    waiting = index.forward_failed(bad.id, "w", "connection-refused", due_at=clock.now + 10)
    assert (waiting.state, waiting.attempts) == (ForwardState.WAITING, 1)
    assert index.forward_claim(bad.id, "w", 60) is None
    clock.advance(10)
    assert index.forward_claim(bad.id, "w", 60) is not None
    dead = index.forward_failed(bad.id, "w", "no-presentation-context", due_at=None)
    assert dead.state is ForwardState.DEAD
    assert index.counts().forwards == {"good": {"SENT": 1}, "bad": {"DEAD": 1}}
    group = next(g for g in index.failures() if g.kind == "dead-letter")
    assert (group.reason, group.destination, group.ids) == ("no-presentation-context", "bad", (bad.id,))
    replayed = index.forward_replay(bad.id, "admin")
    assert (replayed.state, replayed.attempts) == (ForwardState.WAITING, 0)
    assert index.forward_claim(bad.id, "w", 60) is not None
    with pytest.raises(LeaseLost):
        index.forward_done(good.id, "w", "accepted")


def test_overdue_forwards_and_further_destinations(index: Index, clock: FakeClock) -> None:
    row = archived(index, destinations=("a",))
    assert [f.destination for f in index.forward_add(row.id, ["a", "b"])] == ["b"]
    clock.advance(61)
    assert [f.destination for f in index.forwards_overdue(10, 60)] == ["a", "b"]
    index.forwards_touch_queued([f.id for f in index.forwards(row.id)])
    assert index.forwards_overdue(10, 60) == []


def test_release_waits_for_index_and_forwards(index: Index) -> None:
    row = archived(index, destinations=("a",))
    assert index.releasable(10) == []
    index.set_attributes(row.id, {}, "{}")
    assert index.releasable(10) == []
    forward = index.forwards(row.id)[0]
    index.forward_claim(forward.id, "w", 60)
    index.forward_failed(forward.id, "w", "x", due_at=None)
    assert index.releasable(10) == [] and [r.id for r in index.releasable(10, need_sent=False)] == [row.id]
    index.forward_replay(forward.id, "admin")
    index.forward_claim(forward.id, "w", 60)
    index.forward_done(forward.id, "w", "accepted")
    assert [r.id for r in index.releasable(10)] == [row.id]


def test_failures_are_counted_whole_and_name_the_newest(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.index_report.MAX_IDS", 2)
    rows = [index.add_received(new(n)).row for n in range(4)]
    for row, reason in zip(rows, ("pdf", "pdf", "pdf", None), strict=True):
        index.claim(row.id, "w", 60)
        index.set_candidate(row.id, "w", replace(CODED, form=Form.PASSTHROUGH, reason=reason))
    groups = [(g.kind, g.reason, g.destination, g.count, g.ids) for g in index.failures()]
    assert groups == [
        ("passthrough", "pdf", None, 3, (rows[2].id, rows[1].id)),
        ("passthrough", "unknown", None, 1, (rows[3].id,)),
    ]


def test_the_door_looks_at_the_end_of_a_long_outbox_only(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.index_forward.NEWEST", 4)
    first = index.add_received(new(1)).row
    assert len(index.outbox_due(10, [first.id])) == 2
    for number in range(2, 5):
        last = index.add_received(new(number)).row
    assert index.outbox_due(10, [first.id]) == []
    assert {m.args for m in index.outbox_due(10, [last.id])} == {(last.id,)}
    assert len(index.outbox_due(10)) == 8


def test_a_correction_does_not_settle_a_conflict(index: Index) -> None:
    first = index.add_received(new(1, pixel_digest=digest("pixels"))).row
    other = index.add_received(new(2, sop_uid=first.sop_uid, pixel_digest=digest("other"))).row
    fixed = index.add_received(new(3, sop_uid=first.sop_uid, pixel_digest=digest("pixels")))
    assert (fixed.outcome, fixed.row.current, fixed.row.conflict) == ("version", True, True)
    assert not index.make_current(other.id, "admin").conflict
    assert index.counts().conflicts == 0


def test_retry_starts_the_attempts_again(index: Index, clock: FakeClock) -> None:
    row = index.add_received(new(1)).row
    index.claim(row.id, "w", 60)
    index.release_claim(row.id, "w", due_at=clock.now + 1000, reason="broken")
    assert [(g.kind, g.reason, g.count) for g in index.failures()] == [("instance", "broken", 1)]
    fresh = index.retry(row.id, "admin")
    assert (fresh.attempts, fresh.due_at, fresh.last_error) == (0, clock.now, None)
    assert index.claim(row.id, "w", 60) is not None


def test_counts_of_what_is_archived(index: Index) -> None:
    row = archived(index)
    index.set_attributes(row.id, {"Modality": "CT"}, "{}")
    index.add_received(new(2))
    counts = index.counts()
    assert counts.by_state == {"ARCHIVED": 1, "RECEIVED": 1} and counts.total == 2
    assert counts.by_modality == {"CT": {"instances": 1, "bytes_in": 1000, "bytes_archived": 400}}
    assert (counts.bytes_in, counts.bytes_archived, counts.codec_bytes, counts.payload_bytes) == (1000, 400, 300, 512)
    assert index.anything_archived()


def test_alerts_are_counted_until_acknowledged(index: Index, clock: FakeClock) -> None:
    first = index.alert_raise("unproven", "7", "a candidate failed its proof", "critical")
    clock.advance(5)
    again = index.alert_raise("unproven", "7", "a candidate failed its proof", "critical")
    assert (again.id, again.count, again.last_at - again.raised_at) == (first.id, 2, 5)
    index.alert_ack(first.id, "admin")
    assert index.alerts() == [] and index.alerts(open_only=False)[0].acked_by == "admin"
    with pytest.raises(NotFound):
        index.alert_ack(first.id, "admin")
    assert index.alert_raise("unproven", "7", "again").id != first.id


# --- search -----------------------------------------------------------------------------------------------------------


def indexed(index: Index, number: int, **attributes: str | int) -> int:
    uid = {"study_uid": str(attributes.pop("study", "1.2")), "series_uid": str(attributes.pop("series", "1.2.1"))}
    row = index.add_received(new(number, **uid)).row
    index.set_attributes(row.id, attributes, '{"00100010": {}}', pixel_digest="p")
    return row.id


@pytest.fixture
def patients(index: Index) -> Index:
    indexed(index, 1, study="1.1", series="1.1.1", PatientName="Müller^Jörg", PatientID="A_1", StudyDate="20200105",
            StudyTime="101530", Modality="CT", InstanceNumber=1, Rows=512)  # fmt: skip
    indexed(index, 2, study="1.1", series="1.1.2", PatientName="Müller^Jörg", PatientID="A_1", StudyDate="20200105",
            StudyTime="101530", Modality="MR", InstanceNumber=2, SeriesNumber="7")  # fmt: skip
    indexed(index, 3, study="1.2", series="1.2.1", PatientName="MULLER^ANNA", PatientID="AB1", StudyDate="20210505",
            StudyTime="23", Modality="US", AccessionNumber="50%")  # fmt: skip
    return index


@pytest.mark.parametrize(
    ("filters", "fuzzy", "studies"),
    [
        ({}, False, ["1.2", "1.1"]),
        ({"StudyInstanceUID": "1.1"}, False, ["1.1"]),
        ({"StudyInstanceUID": "1.1,1.2"}, False, ["1.2", "1.1"]),
        ({"PatientName": "muller*"}, False, ["1.2", "1.1"]),
        ({"PatientName": "müller^jörg"}, False, ["1.1"]),
        ({"PatientName": "Mull?r^Anna"}, False, ["1.2"]),
        ({"PatientName": "ann"}, False, []),
        ({"PatientName": "ann"}, True, ["1.2"]),
        ({"PatientName": "jor mul"}, True, ["1.1"]),
        ({"PatientID": "A_1"}, False, ["1.1"]),
        ({"PatientID": "A_*"}, False, ["1.1"]),
        ({"PatientID": "A?1"}, False, ["1.2", "1.1"]),
        ({"PatientID": "a*"}, False, []),
        ({"AccessionNumber": "50%"}, False, ["1.2"]),
        ({"AccessionNumber": "5*%"}, False, ["1.2"]),
        ({"StudyDate": "20200105"}, False, ["1.1"]),
        ({"StudyDate": "20200101-20201231"}, False, ["1.1"]),
        ({"StudyDate": "-20200105"}, False, ["1.1"]),
        ({"StudyDate": "20200106-"}, False, ["1.2"]),
        ({"StudyTime": "10-1015"}, False, ["1.1"]),
        ({"StudyTime": "10-1014"}, False, []),
        ({"StudyTime": "1015"}, False, ["1.1"]),
        ({"ModalitiesInStudy": "MR"}, False, ["1.1"]),
        ({"ModalitiesInStudy": "US,MR"}, False, ["1.2", "1.1"]),
        ({"Modality": "CT"}, False, ["1.1"]),
        ({"SeriesNumber": "7"}, False, ["1.1"]),
        ({"PatientName": "' OR 1=1 --"}, False, []),
    ],
)  # fmt: skip
def test_matching(patients: Index, filters: dict[str, str], fuzzy: bool, studies: list[str]) -> None:
    found = patients.search("study", filters, fuzzy=fuzzy)
    assert [row["StudyInstanceUID"] for row in found] == studies


def test_levels_and_counts(patients: Index) -> None:
    study = patients.search("study", {"Modality": "CT"})[0]  # a filter below the level narrows no count
    assert (study["NumberOfStudyRelatedSeries"], study["NumberOfStudyRelatedInstances"]) == (2, 2)
    assert study["ModalitiesInStudy"] == ["CT", "MR"] and study["PatientName"] == "Müller^Jörg"
    series = patients.search("series", {"StudyInstanceUID": "1.1"})
    assert [(s["SeriesInstanceUID"], s["NumberOfSeriesRelatedInstances"]) for s in series] == [
        ("1.1.1", 1),
        ("1.1.2", 1),
    ]
    first = patients.search("instance", {"StudyInstanceUID": "1.1"})[0]
    assert (first["SOPInstanceUID"], first["InstanceNumber"], first["Rows"], first["SOPClassUID"]) == (
        "1.2.3.1",
        1,
        512,
        CT,
    )
    assert patients.get(first["id"]).sop_uid == "1.2.3.1"


def test_paging_covers_everything_once(patients: Index) -> None:
    pages = [patients.search("instance", {}, limit=1, offset=n) for n in range(4)]
    assert sorted(row["SOPInstanceUID"] for page in pages for row in page) == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]


def test_only_served_versions_are_found(patients: Index) -> None:
    patients.add_received(new(9, sop_uid="1.2.3.3", study_uid="1.2", series_uid="1.2.1", pixel_digest="p"))
    assert patients.search("instance", {"SOPInstanceUID": "1.2.3.3"}) == []  # the new version is not indexed yet
    assert patients.search("study", {"StudyInstanceUID": "1.2"}) == []


@pytest.mark.parametrize("filters", [{"PixelData": "x"}, {"InstanceNumber": "x"}])
def test_what_cannot_be_matched_is_refused(patients: Index, filters: dict[str, str]) -> None:
    with pytest.raises(InvalidInstance):
        patients.search("instance", filters)


def test_attributes_of_any_shape_are_taken(index: Index) -> None:
    row = index.add_received(new(1, study_uid=None, series_uid=None)).row
    odd = {
        "PatientName": "a\0b" * 3000,
        "SeriesNumber": "1" * 40,
        "InstanceNumber": "x",
        "Modality": "M" * 99,
        "Rows": -1,
    }
    index.set_attributes(row.id, {**odd, "StudyInstanceUID": "1" * 70, "SeriesInstanceUID": "1.5"}, "{}", "d" * 64)
    index.set_attributes(row.id, {**odd, "SeriesInstanceUID": "1.5"}, '{"again": 1}')
    done = index.get(row.id)
    assert (done.study_uid, done.series_uid, done.pixel_digest) == (None, "1.5", "d" * 64)
    assert done.indexed_at is not None and index.metadata(row.id) == '{"again": 1}'


# --- audit trail ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'x' WHERE seq = 1", "DELETE FROM audit WHERE seq = 1"])
def test_the_trail_refuses_changes(index: Index, statement: str) -> None:
    index.add_received(new(1))
    with pytest.raises(IntegrityError) as caught, index.write() as conn:
        conn.execute(sa.text(statement))
    assert caught.value.reason == "audit-append-only"
    assert audit.verify(index).ok


def test_failing_audit_fails_the_action(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise IntegrityError("no-audit")

    monkeypatch.setattr(audit, "append", fail)
    with pytest.raises(IntegrityError):
        index.add_received(new(1))
    monkeypatch.undo()
    assert index.counts().total == 0 and index.outbox_due() == []


# --- several processes ------------------------------------------------------------------------------------------------


def _write_many(url: str, start: int) -> None:
    index = Index(url)
    index.create()
    for number in range(start, start + 10):
        row = index.add_received(new(number)).row
        index.claim(row.id, f"p{start}", 60)
    index.add_received(new(999_999))  # the same by all: one row
    index.close()


def test_a_server_whose_commits_do_not_wait_for_its_disk_is_made_to(database_url: str) -> None:
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        index, asked = Index(database_url), "PRAGMA synchronous"
    else:
        lazy = url.update_query_dict({"options": "-c synchronous_commit=off"})
        index, asked = Index(lazy.render_as_string(hide_password=False)), "SHOW synchronous_commit"
    index.create()
    with index.read() as conn:
        assert conn.execute(sa.text(asked)).scalar() in (2, "on")  # FULL
    with index.write() as conn:
        assert conn.execute(sa.text(asked)).scalar() in (2, "on")
    index.close()


def test_eight_processes_write_at_once(database_url: str) -> None:
    fork = multiprocessing.get_context("fork")  # nothing is connected yet in this process
    processes = [fork.Process(target=_write_many, args=(database_url, n * 1000)) for n in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * 8
    index = Index(database_url)
    assert index.counts().total == 81
    with index.read() as conn:
        assert conn.execute(sa.select(sa.func.sum(instance.c.attempts))).scalar() == 80
    report = audit.verify(index)
    assert (report.ok, report.count) == (True, 88)
    index.close()


def test_the_patient_key_of_the_newest_candidate_is_recorded(index: Index) -> None:
    row = index.add_received(new(1)).row
    assert (row.patient_key, row.shredded_at) == (None, None)
    index.claim(row.id, "w", 60)
    index.set_candidate(row.id, "w", replace(CODED, patient_key="pat-one"))
    assert index.set_candidate(row.id, "w", replace(CODED, patient_key="pat-two")).patient_key == "pat-two"


def test_a_database_of_the_first_release_is_brought_up_to_date_with_its_rows(database_url: str) -> None:
    index = Index(database_url)
    with index.write() as conn:
        config = Config()
        config.set_main_option("script_location", "gateway:migrations")
        config.attributes["connection"] = conn
        command.upgrade(config, "0001")
        values = {
            "sop_uid": "1.2", "sop_class": CT, "transfer_syntax": EXPLICIT_LE, "digest": digest(1),
            "dataset_digest": digest(2), "size": 1, "source": "stow", "calling_ae": "A", "priority": 5,
            "received_at": 1.0, "state": "RECEIVED", "attempts": 0, "current": True, "conflict": False,
        }  # fmt: skip
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        conn.execute(sa.text(f"INSERT INTO instance ({names}) VALUES ({marks})"), values)
    index.create()
    [row] = index.recent()
    assert (row.sop_uid, row.patient_key, row.shredded_at) == ("1.2", None, None)
    with index.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []
    index.close()


def test_a_forward_tells_in_which_form_it_went_and_why(index: Index) -> None:
    row = archived(index, destinations=("viewer",))
    [forward] = index.forwards(row.id)
    assert forward.representation is None
    index.forward_claim(forward.id, "w", 60)
    done = index.forward_done(forward.id, "w", "stored", representation="self-contained", reason="noise-low")
    assert (done.state, done.representation, done.reason) == (ForwardState.SENT, "self-contained", "noise-low")
    event = audit.tail(index, 1)[0]
    assert event["event"] == "forwarded"
    assert (event["detail"]["representation"], event["detail"]["reason"]) == ("self-contained", "noise-low")


MADE = {
    "stego_uid": "2.25.7", "digest": digest("stego"), "pixel_digest": digest("pixels"),
    "record_key": "aa/2.25.8.dcm", "record_digest": digest("record"), "record_size": 77,
}  # fmt: skip


def test_the_first_secrets_of_a_stego_object_win_over_those_of_a_retry(index: Index, clock: FakeClock) -> None:
    row = archived(index)
    first = index.export_begin(row.id, "viewer", "hidden", object_id="ab" * 16, wraps=["01", "02"])
    assert (first.wraps, first.digest, first.created_at) == (("01", "02"), None, clock.now)
    assert index.export_begin(row.id, "viewer", "hidden", object_id="cd" * 16, wraps=["03"]) == first
    other = index.export_begin(row.id, "viewer", "self-contained", object_id="ef" * 16, wraps=[])
    assert other.id != first.id
    assert index.exports(instance_id=row.id) == [other, first]
    assert index.exports(object_id="ab" * 16) == [first] and index.exports(object_id="cd" * 16) == []
    with pytest.raises(IntegrityError):  # one object id, one object
        index.export_begin(row.id, "elsewhere", "hidden", object_id="ab" * 16, wraps=[])


def test_what_was_recorded_of_a_stego_object_is_never_changed(index: Index) -> None:
    row = archived(index)
    export = index.export_begin(row.id, "viewer", "hidden", object_id="ab" * 16, wraps=["01"])
    made = index.export_made(export.id, "w", **MADE)
    assert (made.digest, made.record_key) == (MADE["digest"], MADE["record_key"])
    assert index.exports(stego_uid="2.25.7") == index.exports(pixel_digest=digest("pixels")) == [made]
    assert audit.tail(index, 1)[0]["event"] == "stego-made"
    assert index.export_made(export.id, "w", **MADE) == made
    assert index.counts().bytes_archived == 400 + 77
    with pytest.raises(IntegrityError, match="another object"):
        index.export_made(export.id, "w", **{**MADE, "digest": digest("other")})
    index.export_drop(export.id)  # made: stays
    assert index.exports(object_id="ab" * 16) == [made]
    with pytest.raises(NotFound):
        index.export_made(999, "w", **MADE)


def test_a_stego_object_that_was_never_made_is_forgotten(index: Index) -> None:
    row = archived(index)
    export = index.export_begin(row.id, "viewer", "hidden", object_id="ab" * 16, wraps=["01"])
    index.export_drop(export.id)
    assert index.exports(instance_id=row.id) == []
