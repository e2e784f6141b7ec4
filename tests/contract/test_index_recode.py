"""Coding anew is tried a bounded number of times: on SQLite and on PostgreSQL the same."""

from __future__ import annotations

from hashlib import sha256

import pytest

from gateway.audit import tail
from gateway.errors import LeaseLost
from gateway.index import CandidateFacts, Index, InstanceRow, NewInstance
from gateway.index_recode import RECODE_LONGEST, RECODE_RETRY, RECODE_TRIES
from gateway.instance import Form
from tests.fakes import CT, EXPLICIT_LE, FakeClock

HOUR = 3600.0


@pytest.fixture
def hurried(index: Index) -> InstanceRow:
    """An instance that was archived at the second try, coded in a hurry."""
    new = NewInstance(
        sop_uid="1.2.3", sop_class=CT, study_uid="1.2", series_uid="1.2.1", source="stow", transfer_syntax=EXPLICIT_LE,
        digest=sha256(b"file").hexdigest(), dataset_digest=sha256(b"data").hexdigest(), size=9, calling_ae="T",
        priority=5,
    )  # fmt: skip
    made = sha256(b"object").hexdigest()
    row = index.add_received(new).row
    index.claim(row.id, "w", 60)
    index.release_claim(row.id, "w", due_at=index.now(), reason="keys-missing")
    index.claim(row.id, "w", 60)
    facts = CandidateFacts(made, 4, Form.CODED, None, "2.25.1", quick=True, patient_key="pat-1", wraps=["00"])
    index.set_candidate(row.id, "w", facts)
    index.set_verified(row.id, "w")
    index.set_archived(row.id, "w", "aa/2.25.1.dcm", made, 4)
    return index.get(row.id)


@pytest.mark.parametrize("killed", [False, True])
def test_what_fails_every_time_is_left_in_the_end_and_shown_until_a_person_asks_again(
    index: Index, clock: FakeClock, hurried: InstanceRow, killed: bool
) -> None:
    assert hurried.recode_at is not None and hurried.attempts == 0
    tries: list[float] = []
    for _ in range(24 * 14):  # two weeks
        if index.recode_due(10) == [hurried.id] and index.recode_claim(hurried.id, "w", 60) is not None:
            tries.append(clock.now)
            if not killed:
                index.recode_failed(hurried.id, "w", "no-memory")
        clock.advance(HOUR)
    assert len(tries) == RECODE_TRIES
    pauses = [later - earlier for earlier, later in zip(tries, tries[1:], strict=False)]
    assert pauses == [min(RECODE_LONGEST, RECODE_RETRY * 2**n) for n in range(RECODE_TRIES - 1)]
    left = index.get(hurried.id)
    reason = "recode-crashed" if killed else "recode-no-memory"
    assert (left.recode_at, left.lease_owner, left.last_error) == (None, None, reason)
    assert left.archive_key == hurried.archive_key and index.care_report().to_recode == 0
    [group] = index.failures()
    assert (group.kind, group.reason, group.count, group.ids) == ("instance", reason, 1, (hurried.id,))
    assert [alert.kind for alert in index.alerts()] == ["recode-failed"]
    assert [(e["event"], e["outcome"]) for e in tail(index)][0] == ("recoded", "failure")
    with pytest.raises(LeaseLost):
        index.recode_failed(hurried.id, "w", "no-memory")

    assert index.failed_for(reason) == [hurried.id]
    index.retry(hurried.id, "admin")
    again = index.recode_claim(hurried.id, "w", 60)
    assert again is not None and (again.attempts, again.last_error) == (1, None) and index.failures() == []


def test_a_worker_that_is_asked_to_stop_and_killed_over_it_counts_no_try_but_one_that_crashes_does(
    index: Index, clock: FakeClock, hurried: InstanceRow
) -> None:
    for _ in range(2 * RECODE_TRIES):  # a service that is started again and again
        assert index.recode_claim(hurried.id, "w", 60) is not None
        index.recode_spared(hurried.id, "w")
        row = index.get(hurried.id)
        assert (row.attempts, row.lease_owner) == (0, "w") and index.recode_due(10) == []  # it may still end in time
        clock.advance(61)  # killed
        assert index.recode_due(10) == [hurried.id]  # at once
    assert index.recode_claim(hurried.id, "w", 60) is not None
    clock.advance(61)
    assert index.recode_due(10) == [] and index.get(hurried.id).attempts == 1
    clock.advance(RECODE_RETRY)
    assert index.recode_claim(hurried.id, "other", 60) is not None
    with pytest.raises(LeaseLost):
        index.recode_spared(hurried.id, "w")
    index.recode_spared(hurried.id, "other")
    index.recode_failed(hurried.id, "other", "no-memory")  # in its last seconds
    assert index.get(hurried.id).attempts == 1 and index.failures() == []


def test_what_a_clock_that_was_ahead_put_off_is_coded_anew_soon(
    index: Index, clock: FakeClock, hurried: InstanceRow
) -> None:
    true = clock.now
    index.recode_claim(hurried.id, "w", 60)
    assert index.times_pulled_back(60) == 0  # an hour is a pause of ours
    index.recode_failed(hurried.id, "w", "no-memory")
    clock.advance(30 * 24 * HOUR)
    assert index.recode_claim(hurried.id, "dead", 60) is not None
    clock.now = true
    assert index.times_pulled_back(60) == 1 and index.times_pulled_back(60) == 0
    clock.advance(61)
    assert index.recode_due(10) == [hurried.id]


def test_tries_go_on_where_what_waits_is_wanted_again_and_shredding_ends_them(
    index: Index, clock: FakeClock, hurried: InstanceRow
) -> None:
    index.recode_claim(hurried.id, "w", 60)
    index.recode_failed(hurried.id, "w", "no-memory")
    index.recode_want(hurried.id)
    row = index.recode_claim(hurried.id, "w", 60)
    assert row is not None and row.attempts == 2
    index.recode_given_up(hurried.id, "w", "not-smaller")
    index.recode_want(hurried.id)  # damaged, weeks later: from the beginning
    for _ in range(RECODE_TRIES):
        assert index.recode_claim(hurried.id, "w", 60) is not None
        index.recode_failed(hurried.id, "w", "no-memory")
        clock.advance(RECODE_LONGEST)
    assert index.failures() != []
    index.forget([index.get(hurried.id)], rename=lambda _: "2.25.9", rehash=lambda text: text[::-1][:64])
    assert index.failures() == [] and index.care_report().to_recode == 0
