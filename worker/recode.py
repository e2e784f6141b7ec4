"""Coding anew, when nothing waits, what was coded in a hurry; and what is damaged while its source is still here.

Invariants
- The new object is proven by another process and read back from the archive before the index names it.
- It has a name of its own (`envelope_uid`, generation), for an archive is written once. The older object stays where it
  is and opens as ever: it is listed as superseded, and nothing here deletes it.
- It is sealed to the key of the row, or not at all: a shredding in between is not undone.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import IO, Any

from gateway.archive import archive_key
from gateway.bootstrap import Gateway
from gateway.errors import Gone, IntegrityError, LeaseLost, NotFound, PalimpsestError, Unsupported
from gateway.index_care import ArchivedObject
from gateway.index_rows import InstanceRow
from gateway.instance import Form
from gateway.policy import ArchiveRule
from worker.attributes import Data
from worker.candidate import Candidate, build_candidate
from worker.envelope import envelope_uid
from worker.leases import heartbeat, told_of_stop
from worker.pipeline import Prover, candidate_facts, failure_reason, proof_facts, provenance, software
from worker.reopen import MAX_GENERATION
from worker.restore import rebuild
from worker.rules import archive_rule, modality_of
from worker.weightobject import archive_weights, needed_weights, require_archived

__all__ = ["recode", "recode_failed"]

HOPELESS = (Gone, IntegrityError, NotFound, Unsupported)


def recode(
    gw: Gateway, prover: Prover, instance_id: int, owner: str, stopping: Callable[[], bool] = lambda: False
) -> str:
    """Code one instance anew; 'recoded', 'kept' (what there is stays), or 'not-claimed'.

    stopping: whether this worker is asked to stop; what a kill then cuts off is no try. Where the archive object that
    there is was found damaged, another one need not be smaller. Raises what went wrong, for `recode_failed`.
    """
    lease = gw.settings.lease_seconds
    row = gw.index.recode_claim(instance_id, owner, lease)
    if row is None:
        return "not-claimed"
    with (
        heartbeat(lambda: gw.index.heartbeat(row.id, owner, lease), lease) as beat,
        told_of_stop(stopping, lambda: gw.index.recode_spared(row.id, owner)),
    ):
        damaged = gw.index.is_damaged(str(row.archive_key))
        with _received(gw, row, damaged) as data:
            made, facts = _made(gw, row, data)
        problem = _unfit(row, made, damaged)
        if problem:
            gw.index.recode_given_up(row.id, owner, problem)
            return "kept"
        report = prover.check(made.envelope)
        restored = {row.digest, gw.index.facts(row.id).get("restored_sha256")}  # native, if it came compressed
        if not report.ok or report.recorded_sha256 != row.digest or report.sha256 not in restored:
            message = (
                f"an object that was coded anew did not restore ({report.reason or 'other-object'}); it is dropped"
            )
            gw.index.alert_raise("recode-unproven", f"instance {row.id}", message, "critical")
            gw.index.recode_given_up(row.id, owner, "unproven")
            return "kept"
        beat.check()
        digest, key = sha256(made.envelope).hexdigest(), archive_key(made.envelope_uid)
        require_archived(gw.archive, made.envelope)
        gw.archive.put(key, made.envelope, digest)
        if sha256(gw.archive.get(key, digest)).hexdigest() != digest:
            raise IntegrityError("archive-read-back", "the archive gave back other bytes than it was given")
        beat.check()
        weights = sorted(each.sha256 for each in needed_weights(made.envelope))
        told = candidate_facts(digest, made, weights, *facts)
        proven: dict[str, Any] = {**told.facts, **proof_facts(report, made.form), "software": software()}
        gw.index.recode_done(row.id, owner, replace(told, facts=proven), key, forwards=gw.settings.recode_forward)
    if damaged and not _needed(gw, str(row.archive_key)):
        gw.index.damage_mended(str(row.archive_key), "source", owner)
    return "recoded"


def recode_failed(gw: Gateway, instance_id: int, owner: str, error: BaseException) -> None:
    """Give the instance back: tried again after a while, a few times, or never where that would change nothing."""
    if isinstance(error, LeaseLost):
        return
    try:
        if isinstance(error, HOPELESS):
            gw.index.recode_given_up(instance_id, owner, failure_reason(error))
        else:
            gw.index.recode_failed(instance_id, owner, failure_reason(error))
    except LeaseLost:  # it had ended, or another has it
        return


@contextmanager
def _received(gw: Gateway, row: InstanceRow, damaged: bool) -> Iterator[Data]:
    """The file as it was received: from the spool, or restored, of a damaged object from an older one.

    Raises Unsupported ``received-compressed``, and as `retrieve`.
    """
    if gw.spool.exists(row.digest):
        with gw.spool.map(row.digest) as data:
            yield data
        return
    with tempfile.TemporaryFile(dir=gw.settings.run_dir) as file:
        objects = gw.index.superseded_of(row.id) if damaged else []
        if not damaged:
            objects = [ArchivedObject(str(row.archive_key), str(row.archive_digest))]
        if _restored(gw, objects, None if damaged else row.member, file) != row.digest:
            raise Unsupported("received-compressed", "what was received is not here any more, only its native form")
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _restored(gw: Gateway, objects: Sequence[ArchivedObject], member: int | None, file: IO[bytes]) -> str:
    """SHA-256 of what the first object that opens gave. Raises what the last one refused with."""
    problem: PalimpsestError = NotFound("no-source", "there is no other copy to code this instance from")
    for each in objects:
        file.seek(0)
        file.truncate()
        try:
            return rebuild(gw.archive.map(each.key, each.digest), gw.keys, file.write, member=member).sha256
        except (IntegrityError, NotFound) as error:
            problem = error
    raise problem


def _made(gw: Gateway, row: InstanceRow, data: Data) -> tuple[Candidate, tuple[ArchiveRule, str]]:
    archive_weights(gw.archive)
    rule = archive_rule(gw, row, data)
    facts = replace(provenance(gw, row), software=software())
    made = build_candidate(data, facts, gw.keys, rule=rule, generation=_generation(gw, row))
    return made, (rule, modality_of(data))


def _generation(gw: Gateway, row: InstanceRow) -> int:
    """The next one under which nothing lies: a try that was killed behind its put has left an object."""
    pseudonyms = gw.keys.pseudonym_key()
    for number in range(1, MAX_GENERATION):
        if not gw.archive.exists(archive_key(envelope_uid(row.digest, pseudonyms, row.patient_key or "", number))):
            return number
    raise Unsupported("recoded-too-often", "this instance was coded anew so often that something must be wrong")


def _needed(gw: Gateway, key: str) -> bool:
    """Whether instances still have that object: others of a group, whose sources are not coded anew yet."""
    found = gw.index.archived_object(key)
    return found is not None and bool(found.rows)


def _unfit(row: InstanceRow, made: Candidate, damaged: bool) -> str:
    """Why the new object does not take the older one's place, '' if it may."""
    if made.form is not Form.CODED and row.form is Form.CODED and not damaged:
        return made.reason or "not-coded"
    if made.patient_key != row.patient_key:
        return "other-key"
    return "not-smaller" if made.size >= (row.archived_size or 0) and not damaged else ""
