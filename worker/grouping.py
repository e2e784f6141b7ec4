"""Waiting slices of one series on their way to one archive object, if the policy wants it; or each to its own.

Invariants
- A group is a shortcut and never a promise: whatever goes wrong with it, each instance goes on by itself, by the same
  steps as any other (`worker.pipeline`), and is marked as tried (an attempt or an error), so that it is never put into
  a group again.
- A candidate's rows are committed together. After that each row stands for itself: one that finds itself alone with a
  group's candidate, after a kill, proves and archives its own part, and puts the same bytes under the same key.
- Only what was proven is archived: all members, or the group is taken apart. After a kill each row waits for its own
  proof; the first one's puts the whole object, and a part that fails later stays in it unused: its row goes by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from codec.errors import CodecError
from gateway import steps
from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance, LeaseLost, PalimpsestError, Unsupported
from gateway.index import ENCODE_TASK
from gateway.index_rows import InstanceRow
from gateway.keyuse import used_keys
from gateway.policy import ArchiveRule
from stego.errors import CarrierError
from worker.backlog import in_a_hurry
from worker.candidate import Candidate
from worker.groupobject import MAX_GROUP_BYTES, MEMBER_ROOM, GroupFile, build_group
from worker.leases import heartbeat
from worker.pipeline import (
    UNGROUPED,
    GroupProver,
    Work,
    archive_stored,
    carry_claimed,
    disproof,
    provenance,
    quarantine,
    record_failure,
    set_candidates,
    verified,
)
from worker.rules import archive_rule, modality_of
from worker.slices import Slice, coding_order, slice_of
from worker.weightobject import archive_weights

__all__ = ["process_series", "released_on_failure"]

MOST_MATES = 255
MIN_GROUP = 2
#: samples a second that are coded and proven at the least: profile max, one core without AVX-512, others at work
SLOWEST = 100_000
#: why a group is not made, or not as one, so that its members go alone
REFUSALS = (Unsupported, InvalidInstance, CodecError, CarrierError, MemoryError)


@dataclass(frozen=True)
class _Member:
    row: InstanceRow
    rule: ArchiveRule
    modality: str
    slice: Slice


def process_series(gw: Gateway, verifier: GroupProver, instance_id: int, owner: str) -> dict[int, str]:
    """Carry one instance, and what waits of its series with it where the policy groups them, as far as ARCHIVED.

    Instance id -> its state; empty if the instance is another's, finished or not due. Raises what went wrong with the
    instance itself, for the caller to record; its mates' failures are recorded here.
    """
    row = gw.index.claim(instance_id, owner, gw.settings.lease_seconds)
    if row is None:
        return {}
    mates = _mates(gw, row, owner)
    done: dict[int, str] = {}
    if mates:
        with released_on_failure(gw, mates, owner):
            done = _together(gw, verifier, [row, *mates], owner)
        _let_go(gw, [each for each in mates if each.id not in done], owner)
    if row.id not in done:
        done[row.id] = carry_claimed(gw, verifier, gw.index.get(row.id), owner)
    return done


def _mates(gw: Gateway, row: InstanceRow, owner: str) -> list[InstanceRow]:
    """Waiting instances of the same series, leased. None for what was tried before, or for rules without groups."""
    if row.attempts > 1 or row.last_error or not row.series_uid or row.study_uid is None:
        return []
    if in_a_hurry(gw, row):
        return []
    if all(rule.group == "off" for rule in gw.policy.archive):
        return []
    room = MAX_GROUP_BYTES - (MOST_MATES + 1) * MEMBER_ROOM - row.size
    member = _member(gw, row) if room > 0 else None
    limit = 0 if member is None else _mates_in_time(gw, member)
    if limit < 1:
        return []
    return gw.index.claim_mates(row, owner, gw.settings.lease_seconds, limit=limit, size_limit=room)


def _mates_in_time(gw: Gateway, member: _Member) -> int:
    """How many of its like one task has time for beside it: the limit on a task is one for the whole group."""
    seconds = gw.settings.object_time_limit_seconds - (member.rule.fit_seconds or gw.settings.codec_fit_seconds)
    return min(MOST_MATES, int(seconds * SLOWEST / max(1, member.slice.samples)) - 1)


def _together(gw: Gateway, verifier: GroupProver, rows: Sequence[InstanceRow], owner: str) -> dict[int, str]:
    """Those of the rows that were archived as one object; none if there is no such object."""
    held = {row.id for row in rows}
    lease = gw.settings.lease_seconds

    def beat_all() -> None:
        for each in tuple(held):
            try:
                gw.index.heartbeat(each, owner, lease)
            except LeaseLost:
                if each in held:
                    raise

    with heartbeat(beat_all, lease) as beat:
        members = _members(gw, rows)
        if len(members) < MIN_GROUP:
            return {}
        archive_weights(gw.archive)
        began = steps.now()
        with used_keys():  # the members' audit events name them
            try:
                made = build_group(_files(gw, members), gw.keys, rule=members[0].rule)
            except REFUSALS:
                return {}
            beat.check()
            works = _stored(gw, verifier, members, made, owner)
        steps.done("encode", [work.row for work in works], began)
        beat.check()
        began = steps.now()
        if not _proven(gw, verifier, works, made[0].envelope):
            return {}
        steps.done("verify", [work.row for work in works], began)
        beat.check()
        began = steps.now()
        archive_stored(works, made[0].envelope, before=held.discard)
        steps.done("archive", [work.row for work in works], began)
    return {work.row.id: str(gw.index.get(work.row.id).state) for work in works}


def _members(gw: Gateway, rows: Sequence[InstanceRow]) -> list[_Member]:
    """The first row and those that may share an object with it, in coding order."""
    first = _member(gw, rows[0])
    if first is None:
        return []
    found = [first, *(each for row in rows[1:] if (each := _member(gw, row)) is not None)]
    alike = [each for each in found if _alike(each, first)]
    return [alike[at] for at in coding_order([each.slice for each in alike])]


def _alike(one: _Member, other: _Member) -> bool:
    """Also by all that a delivery rule goes by: a group is sent whole, so it must be allowed for every member."""
    return (one.slice.kind, one.rule, one.row.sop_class, one.modality) == (
        other.slice.kind, other.rule, other.row.sop_class, other.modality
    )  # fmt: skip


def _member(gw: Gateway, row: InstanceRow) -> _Member | None:
    """None for what the rules leave alone, and what cannot be read now: by itself it says why."""
    try:
        with gw.spool.map(row.digest) as data:
            rule, found = archive_rule(gw, row, data), slice_of(data)
            modality = modality_of(data)
    except PalimpsestError:
        return None
    return None if found is None or rule.group == "off" else _Member(row, rule, modality, found)


def _files(gw: Gateway, members: Sequence[_Member]) -> list[GroupFile]:
    return [GroupFile(partial(gw.spool.read, each.row.digest), provenance(gw, each.row)) for each in members]


def _stored(
    gw: Gateway, verifier: GroupProver, members: Sequence[_Member], made: Sequence[Candidate], owner: str
) -> list[Work]:
    """The candidate's bytes durably first, then all rows in one commit."""
    works = [Work(gw, verifier, each.row, owner) for each in members]
    told = [(each.rule, each.modality) for each in members]
    rows = set_candidates(works, made, told)
    return [replace(work, row=row) for work, row in zip(works, rows, strict=True)]


def _proven(gw: Gateway, verifier: GroupProver, works: Sequence[Work], envelope: bytes) -> bool:
    """Whether the proving process rebuilt every member; committed for all then, else the group is taken apart."""
    reports = verifier.check_group(envelope)
    problems = [disproof(work, report) for work, report in zip(works, reports, strict=False)]
    if len(problems) == len(works) and not any(problems):
        for work, report in zip(works, reports, strict=True):
            with used_keys():
                verified(work, report)
        return True
    problem = next(filter(None, problems), "verifier-refused")
    quarantine(works[0], envelope, problem)
    for work in works:
        gw.index.drop_candidate(work.row.id, work.owner, UNGROUPED + problem)
    gw.candidates.remove(str(works[0].row.candidate_digest))
    return False


@contextmanager
def released_on_failure(gw: Gateway, mates: Sequence[InstanceRow], owner: str) -> Iterator[None]:
    """Whatever ends the work on a group (or batch) gives its mates back, as the error's class says; then it goes on."""
    try:
        yield
    except BaseException as error:
        for mate in mates:
            with suppress(PalimpsestError):  # without a database the lease runs out by itself
                record_failure(gw, mate.id, owner, error)
        raise


def _let_go(gw: Gateway, mates: Sequence[InstanceRow], owner: str) -> None:
    """Give back what goes alone, and tell the queue: its own message may have come and gone."""
    for mate in mates:
        with suppress(LeaseLost):
            row = gw.index.get(mate.id)
            gw.index.release_claim(mate.id, owner, due_at=gw.index.now(), reason=row.last_error)
    if mates:
        with suppress(PalimpsestError):  # the sweep finds them
            for mate in mates:
                gw.queue.send(ENCODE_TASK, [mate.id], gw.settings.encode_queue, mate.priority)
