"""The database made anew from the archive and the key ring alone, and what the spool still holds taken up again.

Order: every object of the archive (each restored, compared, and recorded in one transaction; what the index knows
already is passed over, so a rebuild that was stopped is gone on with), then the restoration records of stego objects,
rejection notes, files of the spool that no row names, and the study ledger. One object is held at a time.

What only the database knew is gone: corrections and merges, revoked rejections, an administrator's choice between
conflicting versions, evidence and events of studies, commitments, probe results, alerts, and the audit trail, whose new
chain names the end of the old one (docs/operations.md).
"""

from __future__ import annotations

import fcntl
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from gateway.accept import adopt_orphan
from gateway.audit_restart import restart_trail
from gateway.bootstrap import Gateway
from gateway.errors import (
    IntegrityError,
    InvalidInstance,
    NotFound,
    ObjectUnavailable,
    PalimpsestError,
    PolicyRefused,
    Unavailable,
)
from gateway.index_rebuild import FoundExport, FoundInstance
from worker.indexing import KEY_OBJECT_SELECTION, rejected_by
from worker.reopen import UNKNOWN_PLACE, generation_of, reopen
from worker.reshred import shred_again

__all__ = ["Forwards", "Progress", "RebuildReport", "rebuild"]

Forwards = Literal["auto", "done", "again"]
ACTOR: Final = "rebuild"
JUDGED: Final = 500  # studies judged at once
MAX_IN_A_ROW: Final = 20  # objects that cannot be read now: then it is the archive
MAX_NAMED: Final = 1000  # unreadable objects in a report; all of them are counted, and listed by `scrub --list`
#: what was shown under another identity is shown under its own again: somebody must know
LOST: Final = (
    "the database was made anew from the archive: corrections, merges, revoked rejections and choices between versions "
    "are gone, enter them again; originals are shown as they were received"
)
#: errors of one object: the others go on
OF_AN_OBJECT: Final = (IntegrityError, InvalidInstance, NotFound)


@dataclass(slots=True)
class RebuildReport:
    """What a rebuild found. counts: 'objects' read, 'known' (not read again), and of instances 'added', 'attached',
    'superseded', 'duplicate', 'shredded', 'conflicts'; 'weights', 'restorations', 'adopted' (from the spool).

    unreadable: (archive key or spool digest, reason), at most MAX_NAMED of `failed`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    failed: int = 0

    @property
    def ok(self) -> bool:
        """True if everything there is was read."""
        return self.failed == 0

    def fail(self, name: str, reason: str) -> None:
        """Count something that could not be read."""
        self.failed += 1
        if len(self.unreadable) < MAX_NAMED:
            self.unreadable.append((name, reason))


Progress = Callable[[RebuildReport], None]


def rebuild(
    gw: Gateway, *, add: bool = False, forwards: Forwards = "auto", progress: Progress = lambda _: None
) -> RebuildReport:
    """Make the index anew, or go on with that.

    add: the index is not empty, and what the archive has beyond it is added (after the restore of an older backup).
    forwards: 'auto' takes an instance for sent where its source was released, and sends it again where the spool still
    has it; 'done' takes all for sent, 'again' sends all. Raises PolicyRefused ``index-not-empty``,
    ``rebuild-running``; Unavailable: run it again.
    """
    report = RebuildReport()
    with _alone(gw):
        unfinished = gw.index.care_get("rebuild").get("state") == "running"
        if not add and not unfinished:
            if not gw.index.is_empty():
                message = "the index is not empty: say --add to add what the archive has beyond it"
                raise PolicyRefused("index-not-empty", message)
            restart_trail(gw, ACTOR, "database-rebuilt")
        shred_again(gw, ACTOR)  # a restore that was killed may have left names of patients that are shredded
        gw.index.rebuild_begin(ACTOR)
        with tempfile.TemporaryFile("w+", dir=gw.settings.run_dir) as later:

            def read(key: str) -> None:
                if _object(gw, key, forwards, report):
                    later.write(f"{key}\n")
                progress(report)

            _each(gw.archive.keys(), read, report)
            later.seek(0)
            _each((line.strip() for line in later), lambda key: _stego(gw, key, report), report)
        shred_again(gw, ACTOR)  # what a restored database holds unfinished, and the archive shows to be shredded
        gw.index.restore_over()
        _rejections(gw)
        _adopt(gw, report)
        if not add:
            _ledger(gw)
            gw.index.alert_raise("index-rebuilt", "index", LOST, "warning")
        gw.index.rebuild_end(ACTOR, report.counts["added"] + report.counts["attached"], report.failed)
    progress(report)
    return report


def _each(keys: Iterable[str], work: Callable[[str], None], report: RebuildReport) -> None:
    """Do that for each key; an object that cannot be read now is passed over, and tried once more at the end.

    Raises ObjectUnavailable where so many fail that it is not theirs.
    """
    passed: list[str] = []
    in_a_row = 0
    for key in keys:
        try:
            work(key)
            in_a_row = 0
        except ObjectUnavailable:
            in_a_row += 1
            passed.append(key)
            if in_a_row > MAX_IN_A_ROW or len(passed) > MAX_NAMED:
                raise
    for key in passed:
        try:
            work(key)
        except ObjectUnavailable as error:
            report.fail(key, error.reason)


@contextmanager
def _alone(gw: Gateway) -> Iterator[None]:
    with (gw.settings.run_dir / "rebuild.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PolicyRefused("rebuild-running", "another rebuild is at work here") from None
        yield


def _object(gw: Gateway, key: str, forwards: Forwards, report: RebuildReport) -> bool:
    """Record one object; True for a restoration record, whose turn comes later."""
    if gw.index.rebuild_known(key):
        report.counts["known"] += 1
        return False
    try:
        found = reopen(gw, key)
    except OF_AN_OBJECT as error:
        _unreadable(gw, key, error.reason, report)
        return False
    report.counts["objects"] += 1
    gw.index.damage_over(key, ACTOR)
    if found.kind == "instances":
        routed = [_routed(each, forwards) for each in found.instances]
        report.counts.update(
            gw.index.rebuild_add(
                routed, ACTOR, lambda row: generation_of(gw, row.digest, row.patient_key, row.envelope_uid)
            )
        )
        report.counts["shredded"] += sum(each.shredded_at is not None for each in routed)
    elif found.kind == "weights":
        report.counts["weights"] += 1
    return found.export is not None


def _unreadable(gw: Gateway, key: str, reason: str, report: RebuildReport) -> None:
    report.fail(key, reason)
    gw.index.damage_found(key, reason, ACTOR)


def _routed(found: FoundInstance, forwards: Forwards) -> FoundInstance:
    return replace(found, sent=found.released if forwards == "auto" else forwards == "done")


def _stego(gw: Gateway, key: str, report: RebuildReport) -> None:
    """A stego object's record. Its place is the one destination to which policy sends this form of the instance."""
    try:
        export = reopen(gw, key).export
    except OF_AN_OBJECT as error:
        _unreadable(gw, key, error.reason, report)
        return
    if export is None:
        return
    if gw.index.rebuild_export(replace(export, destination=_place_of(gw, export))):
        report.counts["restorations"] += 1
    else:
        _unreadable(gw, key, "no-instance", report)


def _place_of(gw: Gateway, export: FoundExport) -> str:
    row = gw.index.by_digest(export.file_digest)
    if row is None:
        return UNKNOWN_PLACE
    modality = row.modality or ""
    rules = {
        each.name: gw.policy.delivery_rule(each.name, row.sop_class, modality) for each in gw.settings.destinations
    }
    names = [name for name, rule in rules.items() if export.mode in rule.attempts]
    return names[0] if len(names) == 1 else f"{UNKNOWN_PLACE}{export.object_id}"


def _rejections(gw: Gateway) -> None:
    """Rejection notes hide again what they name; which of them were revoked only the database knew."""
    for row in gw.index.rebuild_of_class(KEY_OBJECT_SELECTION):
        if note := rejected_by(gw.index.metadata(row.id) or "{}"):
            code, named = note
            allowed = gw.settings.allows_rejection_ae(row.calling_ae)
            gw.index.rejection_add(row.id, code, named, quality=gw.settings.rejected_quality, allowed=allowed)


def _adopt(gw: Gateway, report: RebuildReport) -> None:
    """Files of the spool that no row names: received, and not archived."""
    for digest in gw.spool.iter_files():
        try:
            report.counts["adopted"] += adopt_orphan(gw, digest) is not None
        except Unavailable:
            raise
        except PalimpsestError as error:
            report.fail(digest, error.reason)
            message = f"a spooled file without a row cannot be read ({error.reason}); it stays where it is"
            gw.index.alert_raise("orphan-unreadable", digest[:16], message, "warning")


def _ledger(gw: Gateway) -> None:
    """Judge every study now: a webhook that begins afterwards is not told of all of the past."""
    while gw.index.studies_find():
        pass
    for _ in range(gw.index.open_studies() // JUDGED + 1):
        gw.index.studies_judge(gw.settings.study_quiet_seconds, limit=JUDGED)
