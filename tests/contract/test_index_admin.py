"""What the admin pages ask of the index, on both databases: tallies, flow, backlog, heartbeats, disks, search."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from gateway.alive import Alive
from gateway.archive import archive_key
from gateway.index import Index
from gateway.index_rows import CandidateFacts, InstanceRow, NewInstance
from gateway.index_schema import instance
from gateway.index_search import ACCESSION_PSEUDONYM
from gateway.index_worker import FORGOTTEN_SECONDS
from gateway.instance import Form, ForwardState, State
from tests.fakes import FakeClock

CT = "1.2.840.10008.5.1.4.1.1.2"


def digest(thing: object) -> str:
    return sha256(repr(thing).encode()).hexdigest()


def add(index: Index, number: int, **changes: object) -> InstanceRow:
    new = NewInstance(
        sop_uid=f"1.2.3.{number}", sop_class=CT, study_uid=f"1.2.{number % 3}", series_uid="1.2.9",
        transfer_syntax="1.2.840.10008.1.2", digest=digest(number), dataset_digest=digest(("data", number)),
        size=100 + number, source="dimse", calling_ae="CT1", priority=5,
    )  # fmt: skip
    return index.add_received(replace(new, **changes)).row  # type: ignore[arg-type]


def archive(index: Index, row: InstanceRow, to: tuple[str, ...] = (), **changes: object) -> InstanceRow:
    index.claim(row.id, "w", 60)
    facts = CandidateFacts(
        digest=digest(("candidate", row.id)), size=40, form=Form.CODED, reason=None, envelope_uid=f"2.25.{row.id}",
        coder="learned", carrier="beside", payload_bytes=5, codec_bytes=6, raw_pixel_bytes=7, wraps=[],
    )  # fmt: skip
    facts = replace(facts, **changes)  # type: ignore[arg-type]
    index.set_candidate(row.id, "w", facts)
    index.set_verified(row.id, "w")
    return index.set_archived(row.id, "w", archive_key(facts.envelope_uid), facts.digest, facts.size, to)


def bury(index: Index, forward_id: int, reason: str) -> None:
    index.forward_claim(forward_id, "f", 60)
    index.forward_failed(forward_id, "f", reason, due_at=None)


def recount(index: Index) -> dict[str, object]:
    """What `counts` says, from the rows themselves."""
    with index.read() as conn:
        rows = conn.execute(sa.select(instance)).all()
        forwards = conn.execute(sa.text("SELECT destination, state FROM forward")).all()
    done = [row for row in rows if row.archived_at is not None]
    return {
        "by_state": Counter(row.state for row in rows),
        "by_form": Counter(row.form for row in rows if row.form),
        "passthrough": Counter(row.reason for row in rows if row.form == "PASSTHROUGH"),
        "bytes": (sum(row.size for row in done), sum(row.archived_size for row in done)),
        "codec": sum(row.codec_bytes for row in done),
        "conflicts": sum(row.conflict for row in rows),
        "modalities": Counter(row.modality or "?" for row in done),
        "forwards": Counter(map(tuple, forwards)),
        "failing": Counter(row.last_error for row in rows if row.last_error and row.due_at is not None),
        "oldest": min((row.received_at for row in rows if row.due_at is not None), default=None),
    }


def counted(index: Index) -> dict[str, object]:
    counts = index.counts()
    states = {(name, state): number for name, values in counts.forwards.items() for state, number in values.items()}
    failing = {group.reason: group.count for group in index.failures() if group.kind == "instance"}
    return {
        "by_state": counts.by_state,
        "by_form": counts.by_form,
        "passthrough": counts.passthrough_by_reason,
        "bytes": (counts.bytes_in, counts.bytes_archived),
        "codec": counts.codec_bytes,
        "conflicts": counts.conflicts,
        "modalities": {name: values["instances"] for name, values in counts.by_modality.items()},
        "forwards": states,
        "failing": failing,
        "oldest": counts.oldest_unfinished_at,
    }


def test_tallies_follow_whatever_happens_to_rows(index: Index, clock: FakeClock) -> None:
    chance = random.Random(3)
    for number in range(40):
        clock.advance(chance.randrange(200))
        row = add(index, number, sop_uid=f"1.2.3.{number % 36}", priority=chance.choice((0, 5, 8)))
        if chance.random() < 0.7:
            index.set_attributes(row.id, {"Modality": chance.choice(("CT", "MR", ""))}, "{}")
        match chance.randrange(5):
            case 0:
                index.claim(row.id, "w", 60)
                index.release_claim(row.id, "w", due_at=clock.now, reason=chance.choice(("busy", "full")))
            case 1 | 2:
                whole = {"form": Form.PASSTHROUGH, "reason": "pdf", "coder": None}
                archive(index, row, ("pacs", "nas"), **(whole if chance.random() < 0.3 else {}))
            case 3:
                archive(index, row)
                index.set_released(row.id)
    for forward in index.forwards()[:10]:
        bury(index, forward.id, "refused")
    for forward in index.forwards(state=ForwardState.DEAD)[:4]:
        index.forward_replay(forward.id, "root")
    assert counted(index) == recount(index)
    with index.write() as conn:  # what rebuilds, shreds or repairs may do to rows
        conn.execute(sa.update(instance).where(instance.c.id % 5 == 0).values(modality="US", size=instance.c.size + 7))
        conn.execute(sa.text("DELETE FROM outbox"))
        conn.execute(sa.text("DELETE FROM forward WHERE id % 3 = 0"))
        conn.execute(sa.update(instance).where(instance.c.id == 7).values(shredded_at=clock.now))
    assert counted(index) == recount(index)
    assert index.counts().shredded == 1
    with index.read() as conn:  # nothing is kept that counts nothing
        assert conn.execute(sa.text("SELECT count(*) FROM instance_tally WHERE instances <= 0")).scalar_one() == 0
        assert conn.execute(sa.text("SELECT count(*) FROM row_tally WHERE rows <= 0")).scalar_one() == 0


def test_rows_of_an_earlier_release_are_counted_when_it_is_brought_up_to_date(database_url: str) -> None:
    index = Index(database_url)
    with index.write() as conn:
        config = Config()
        config.set_main_option("script_location", "gateway:migrations")
        config.attributes["connection"] = conn
        command.upgrade(config, "0009")
        conn.execute(
            sa.text(
                "INSERT INTO instance (sop_uid, sop_class, transfer_syntax, digest, dataset_digest, size, source,"
                " calling_ae, priority, received_at, state, attempts, current, conflict, recode_at, archived_at) VALUES"
                " ('1.2', '1.2', '1.2', 'd', 'e', 11, 'stow', 'A', 5, 1.0, 'RECEIVED', 9, true, false, 1.0, NULL),"
                " ('1.3', '1.2', '1.2', 'f', 'g', 11, 'stow', 'A', 5, 1.0, 'RELEASED', 9, true, false, 1.0, 1.0)"
            )
        )
    index.create()
    assert dict(index.counts().by_state) == {"RECEIVED": 1, "RELEASED": 1}
    assert [row.attempts for row in index.every_instance()] == [9, 0]  # the first coding's are not those of another
    index.close()


def test_flow_counts_by_five_minutes_and_forgets(index: Index, clock: FakeClock) -> None:
    clock.now = 1_700_000_100.0
    row = add(index, 1)
    index.set_attributes(row.id, {"Modality": "MR"}, "{}")
    clock.advance(30)
    archive(index, row, ("pacs",))
    clock.advance(600)
    forward = index.forwards()[0]
    index.forward_claim(forward.id, "f", 60)
    index.forward_done(forward.id, "f", "accepted")
    found = [(each.bucket, each.modality, each.received, each.archived, each.sent) for each in index.flow(0)]
    bucket = 1_700_000_100
    assert found == [(bucket, "", 1, 0, 0), (bucket, "MR", 0, 1, 0), (bucket + 600, "", 0, 0, 1)]
    archived = index.flow(0)[1]
    assert (archived.bytes_in, archived.bytes_archived, archived.seconds) == (101, 40, 30.0)
    assert [(each.modality, each.size, each.seconds) for each in index.last_archived()] == [("MR", 101, 30.0)]
    assert index.last_archived_at() == 1_700_000_130.0 and index.flow(bucket + 300)[0].sent == 1
    clock.advance(15 * 24 * 3600)
    assert index.flow_forget() == 3 and index.flow(0) == []


def test_the_backlog_says_how_many_wait_how_long(index: Index, clock: FakeClock) -> None:
    for number, priority in enumerate((0, 5, 5)):
        add(index, number, priority=priority)
        clock.advance(400)
    archive(index, index.get(3), ("pacs",))
    urgent, routine = index.backlog()
    assert (urgent.name, urgent.waiting, urgent.oldest_at) == ("0", 1, clock.now - 1200)
    assert dict(urgent.older) == {60.0: 1, 600.0: 1, 3600.0: 0}
    assert (routine.name, routine.waiting, routine.older[600.0]) == ("5", 1, 1)
    [waits] = index.forward_backlog()
    assert (waits.name, waits.waiting, waits.oldest_at, waits.older[60.0]) == ("pacs", 1, clock.now, 0)


def test_workers_are_seen_and_forgotten(index: Index, clock: FakeClock) -> None:
    row = add(index, 1)
    alive = Alive(index, "encode-1-ab", "encode-1", "CUDA device 0")
    with alive.working("encode", row.id):
        index.claim(row.id, "encode-1-ab", 60)
        index.worker_beat(alive._row)
        [seen] = index.workers()
        assert (seen.task, seen.subject, seen.device, seen.seen_at) == ("encode", row.id, "CUDA device 0", clock.now)
    with pytest.raises(ValueError), alive.working("encode", 2):
        raise ValueError
    index.worker_beat(alive._row)
    assert [(each.task, each.done, each.failed) for each in index.workers()] == [("", 1, 1)]
    assert [(lease.kind, lease.id, lease.owner) for lease in index.leases()] == [("instance", row.id, "encode-1-ab")]
    clock.advance(FORGOTTEN_SECONDS + 1)
    index.worker_beat(replace(alive._row, owner="encode-1-cd"))
    assert [each.owner for each in index.workers()] == ["encode-1-cd"]
    index.worker_gone("encode-1-cd")
    assert index.workers() == []
    for number in range(4):  # processes that died before the one that lives was seen
        index.worker_beat(replace(alive._row, owner=f"api-{number}", name="api"))
        clock.advance(1)
    index.worker_beat(alive._row)
    assert [each.owner for each in index.workers(limit=3)] == ["api-2", "api-3", alive._row.owner]


def test_disk_samples_keep_the_newest_of_five_minutes(index: Index, clock: FakeClock) -> None:
    clock.now = 1_700_000_100.0
    index.disk_note("spool", 100, 60)
    clock.advance(10)
    index.disk_note("spool", 100, 50)
    clock.advance(300)
    index.disk_note("spool", 100, 40)
    index.disk_note("archive", 900, 1)
    assert [(each.place, each.free) for each in index.disk_samples(0)] == [("archive", 1), ("spool", 50), ("spool", 40)]


def test_lists_go_page_by_page_and_by_state(index: Index) -> None:
    rows = [add(index, number) for number in range(5)]
    archive(index, rows[1], form=Form.PASSTHROUGH, reason="pdf")
    archive(index, rows[3])
    ids = [row.id for row in rows]
    assert [row.id for row in index.instances_page(2)] == ids[:2:-1]
    assert [row.id for row in index.instances_page(9, ids[3])] == ids[2::-1]
    assert [row.id for row in index.instances_page(9, state=State.ARCHIVED)] == [ids[3], ids[1]]
    assert [row.id for row in index.instances_page(9, passthrough="pdf")] == [ids[1]]
    assert [row.id for row in index.instances_of_study(ids[0])] == [ids[3], ids[0]]
    add(index, 9, sop_uid=rows[0].sop_uid)
    assert {row.sop_uid for row in index.conflicts()} == {rows[0].sop_uid} and len(index.conflicts()) == 2


def test_an_instance_is_found_by_what_a_person_has_in_hand(index: Index) -> None:
    row, other = add(index, 1), add(index, 2)
    values = {"AccessionNumber": "A-77", "Modality": "CT", ACCESSION_PSEUDONYM: "DABCDEFGHIJKLMNO"}
    index.set_attributes(row.id, values, "{}")
    archive(index, row, ("pacs",))
    forward = index.forwards()[0]
    index.forward_claim(forward.id, "f", 60)
    index.forward_done(forward.id, "f", "accepted", sent=(CT, "2.25.999", "1.2"))
    for text in (str(row.id), f"#{row.id}", row.digest.upper(), row.sop_uid, row.study_uid or "", "2.25.999",
                 f"2.25.{row.id}", "A-77", " DABCDEFGHIJKLMNO "):  # fmt: skip
        assert [each.id for each in index.instances_found(text)] == [row.id], text
    assert [each.id for each in index.instances_found(other.sop_uid)] == [other.id]
    for text in ("", "A-78", "%", "1.2.3.", "x" * 65, "\0", "9" * 18, "' OR 1=1 --", "1.2.3.4.5"):
        assert index.instances_found(text) == [], text
    assert index.accession_pseudonym(row.id) == "DABCDEFGHIJKLMNO" and index.accession_pseudonym(other.id) is None


def test_the_oldest_work_is_found_by_an_index_however_much_waits(index: Index, clock: FakeClock) -> None:
    for number, priority in enumerate((5, 0, 5)):
        add(index, number, priority=priority)
        clock.advance(100)
    ids = [row.id for row in index.instances_page(9)][::-1]
    assert index.queue_ages() == {"index": 300.0, "encode": 300.0, "forward": 0.0}
    index.set_attributes(ids[0], {}, "{}")
    index.claim(ids[0], "w", 60)  # held by somebody; the urgent one is the oldest now
    assert index.queue_ages() == {"index": 200.0, "encode": 200.0, "forward": 0.0}
    index.claim(ids[1], "w", 60)
    index.release_claim(ids[1], "w", due_at=clock.now + 50, reason="busy")
    assert index.queue_ages()["encode"] == 100.0
    archive(index, index.get(ids[2]), ("pacs", "nas"))
    clock.advance(40)
    forward = index.forwards(ids[2])[0]
    index.forward_claim(forward.id, "f", 60)
    assert index.queue_ages()["forward"] == 40.0
    with index.read() as conn:
        sqlite = conn.dialect.name == "sqlite"
        if not sqlite:
            conn.execute(sa.text("SET enable_seqscan = off"))  # three rows are read faster without an index
        asked: list[tuple[str, object]] = []
        sa.event.listen(conn.engine, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
        index.unindexed(9, 60)
        for query, given in (("SELECT min(received_at) FROM instance WHERE indexed_at IS NULL", ()), asked[-1]):
            plan = conn.exec_driver_sql(("EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN ") + query, given).all()
            assert "ix_instance_unindexed" in str(plan), query
        if not sqlite:
            conn.execute(sa.text("RESET enable_seqscan"))
