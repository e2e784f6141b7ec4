"""Storage commitment in the index, on both databases: leases, decisions, and what a destination's word changes."""

from __future__ import annotations

import pytest

from gateway import audit
from gateway.errors import LeaseLost, NotFound, OutOfResources
from gateway.index import Index, InstanceRow
from gateway.index_rows import ForwardRow
from gateway.instance import CommitmentState, ForwardState
from tests.contract.test_index_store import archived, digest
from tests.fakes import CT, FakeClock

WANTED = ((CT, "1.2.3.1"), (CT, "1.2.3.2"))


def asked(index: Index, uid: str = "1.9", peer: str = "CT1") -> int:
    assert index.commitment_asked(peer, uid, WANTED, "a", 60, most_open=3) == "new"
    row = index.commitment_of(peer, uid)
    assert row is not None
    return row.id


def test_a_transaction_goes_from_asked_to_told_under_one_lease_at_a_time(index: Index, clock: FakeClock) -> None:
    number = asked(index)
    assert index.commitment_due("b") == [] and index.commitment_claim(number, "b", 60) is None
    assert [row.id for row in index.commitment_due("a")] == [number] and index.commitment_due(
        "a", without=["CT1"]
    ) == []
    clock.advance(61)  # its process died
    assert index.commitment_claim(number, "b", 60) is not None
    with pytest.raises(LeaseLost):
        index.commitment_decide(number, "a", {}, clock.now)
    first, second = index.commitment_items(number)
    assert [(item.sop_class, item.sop_uid) for item in (first, second)] == list(WANTED)
    index.commitment_decide(number, "b", {first.id: 0}, clock.now + 5)
    assert index.commitment_due("b") == []
    assert [item.id for item in index.commitment_items(number, undecided=True)] == [second.id]
    clock.advance(5)
    index.commitment_decide(number, "b", {second.id: 0x0112}, clock.now)
    [row] = index.commitments(CommitmentState.READY)
    assert (row.items, row.failed, row.due_at) == (2, 1, clock.now)
    index.commitment_untold(number, "b", "requester-unreachable", clock.now + 5)
    assert index.commitment_due("c") == []
    clock.advance(5)
    assert index.commitment_claim(number, "c", 60) is not None
    index.commitment_told(number, "c")
    [row] = index.commitments()
    assert (row.state, row.attempts, row.lease_owner, row.done_at) == (CommitmentState.REPORTED, 2, None, clock.now)
    assert index.counts().commitments == {"scp": {"REPORTED": 1}}
    assert [line["event"] for line in audit.tail(index)] == [
        "commitment-told",
        "commitment-decided",
        "commitment-asked",
    ]


def test_leases_are_prolonged_and_given_back_by_their_owner_only(index: Index, clock: FakeClock) -> None:
    number = asked(index)
    clock.advance(50)
    index.commitment_leases([number], "a", 60)
    clock.advance(50)
    assert index.commitment_due("b") == []
    index.commitment_leases([number], "b", None)
    assert index.commitment_due("b") == []
    index.commitment_leases([number], "a", None)
    assert len(index.commitment_due("b")) == 1


def test_the_same_uid_again_another_list_and_too_many(index: Index) -> None:
    number = asked(index)
    same = (*reversed(WANTED),)
    assert index.commitment_asked("CT1", "1.9", same, "z", 60, most_open=3) == "again"
    assert index.commitment_asked("CT1", "1.9", WANTED[:1], "z", 60, most_open=3) == "duplicate"
    assert asked(index, peer="CT2") != number  # a UID is a requester's own
    asked(index, "1.10"), asked(index, "1.11")
    with pytest.raises(OutOfResources, match="open transactions"):
        index.commitment_asked("CT1", "1.12", WANTED, "z", 60, most_open=3)
    index.commitment_decide(number, "a", {item.id: 0 for item in index.commitment_items(number)}, 0.0)
    index.commitment_told(number, "a")
    assert index.commitment_asked("CT1", "1.9", WANTED, "z", 60, most_open=3) == "again"
    row = index.commitment_of("CT1", "1.9")  # looked at anew: what was safe then need not be now
    assert row is not None and (row.state, row.done_at) == (CommitmentState.WAITING, None)
    assert len(index.commitment_items(number, undecided=True)) == 2


def test_shredding_takes_the_uids_of_references_too(index: Index) -> None:
    number = asked(index)
    index.forget([archived(index, 1)], lambda uid: f"2.25.{len(uid)}", digest)
    assert [item.sop_uid for item in index.commitment_items(number)] == ["2.25.7", "1.2.3.2"]


def test_shredding_takes_the_uid_under_which_an_identified_object_went_out(index: Index) -> None:
    row, own = sent(index, 1, "viewer", uid="1.2.3.1")
    other = sent(index, 2, "pacs")[1]
    index.forget([index.get(row.id)], lambda uid: f"2.25.9{len(uid)}", digest)
    assert index.forward_get(own.id).sent_uid == "2.25.97"
    assert index.forward_get(other.id).sent_uid == "2.25.2"
    assert "viewer" not in index.commitments_to_ask(0.0) and "pacs" in index.commitments_to_ask(0.0)


def test_evidence_is_all_that_came_under_a_uid_and_the_copies_of_each(index: Index) -> None:
    row = sent(index, 1, "pacs")[0]
    found = index.commitment_evidence(["1.2.3.1", "1.2.3.404"])
    assert {uid: [each.id for each in rows] for uid, rows in found.items()} == {"1.2.3.1": [row.id]}
    assert index.copies_of([row.id]) == {}  # its destination has not given its word
    other = sent(index, 2, "folder", commitment=False)[0]
    assert index.copies_of([row.id, other.id]) == {other.id: 1}


def sent(
    index: Index, number: int, name: str, *, commitment: bool = True, uid: str = ""
) -> tuple[InstanceRow, ForwardRow]:
    row = archived(index, number, (name,))
    index.set_attributes(row.id, {}, "{}", None)
    [each] = index.forwards(row.id)
    index.forward_claim(each.id, "f", 60)
    what = (CT, uid or f"2.25.{number}", "1.2.840.10008.1.2.1")
    return row, index.forward_done(each.id, "f", "stored", sent=what, commitment=commitment)


def test_only_the_word_of_the_one_that_was_asked_commits(index: Index, clock: FakeClock) -> None:
    row, done = sent(index, 1, "pacs")
    assert done.state is ForwardState.SENT and index.releasable(9) == []
    assert index.commitments_to_ask(0.0) == {"pacs": done.id}
    asking = index.commitment_open("pacs", "1.9.1", limit=10, answer_seconds=100, most=5)
    assert asking is not None and asking.references == ((CT, "2.25.1"),)
    assert index.commitment_open("pacs", "1.9.2", limit=10, answer_seconds=100, most=5) is None
    kept = frozenset(asking.references)
    assert not index.commitment_answered(["other"], "1.9.1", kept, {}, most=5)
    assert not index.commitment_answered(["pacs"], "1.9.2", kept, {}, most=5)
    assert index.releasable(9) == []
    assert index.commitment_answered(["pacs", "other"], "1.9.1", kept, {}, most=5)
    assert index.commitment_answered(["pacs"], "1.9.1", (), dict.fromkeys(kept, 0x0112), most=5)  # too late to unsay it
    assert index.forward_get(done.id).state is ForwardState.COMMITTED
    assert [each.id for each in index.releasable(9)] == [row.id]
    assert index.forward_replay(done.id, "admin").state is ForwardState.COMMITTED
    assert index.counts().forwards == {"pacs": {"COMMITTED": 1}}
    assert index.sent_with_group(row, "pacs") is False and index.identities_at("1.2", "pacs") == {False}


@pytest.mark.parametrize(
    ("reason", "state", "word"),
    [
        (0x0112, ForwardState.WAITING, "uncommitted-peer-has-no-such-object"),
        (0x0119, ForwardState.DEAD, "uncommitted-peer-class-conflict"),
        (0x0131, ForwardState.SENT, "uncommitted-duplicate-transaction"),
        (0xC123, ForwardState.DEAD, "uncommitted-reason-c123"),
        (None, ForwardState.SENT, "uncommitted-peer-said-nothing"),
    ],
)
def test_what_a_failure_reason_means(index: Index, reason: int | None, state: ForwardState, word: str) -> None:
    _, done = sent(index, 1, "pacs")
    assert index.commitment_open("pacs", "1.9.1", limit=10, answer_seconds=100, most=5)
    failed = {} if reason is None else {(CT, "2.25.1"): reason}
    assert index.commitment_answered(["pacs"], "1.9.1", (), failed, most=5)
    row = index.forward_get(done.id)
    assert (row.state, row.reason) == (state, word)
    assert (row.commit_due_at is not None) == (state is ForwardState.SENT) and index.releasable(9) == []


def test_askings_are_counted_and_end(index: Index, clock: FakeClock) -> None:
    _, done = sent(index, 1, "pacs")
    first = index.commitment_open("pacs", "1.9.1", limit=10, answer_seconds=100, most=2)
    assert first is not None
    index.commitment_refused(first.id, "unreachable", clock.now + 10, asked=False)
    assert index.forward_get(done.id).commit_attempts == 0
    for number in (2, 3):
        clock.advance(100)
        assert index.commitment_open("pacs", f"1.9.{number}", limit=10, answer_seconds=100, most=2)
    clock.advance(100)
    assert index.commitments_expired() == ["pacs"] and index.commitments_expired() == []
    assert index.commitment_open("pacs", "1.9.4", limit=10, answer_seconds=100, most=2) is None
    row = index.forward_get(done.id)
    assert (row.state, row.reason) == (ForwardState.DEAD, "uncommitted-no-answer")
    assert {each.state for each in index.commitments()} == {CommitmentState.EXPIRED, CommitmentState.REFUSED}
    with pytest.raises(NotFound):
        index.commitment_replay(first.id, "admin")
