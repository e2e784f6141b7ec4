"""The reconciler: what the queue lost, a crash left behind or a policy now allows, is found here from the row's truth.

Run as `python -m worker.sweep`: one loop, one holder of its lock at a time; a second process waits, and two at once
would still do no harm, because every duty is idempotent or commits before it acts.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from gateway import steps
from gateway.accept import adopt_orphan
from gateway.alive import Alive
from gateway.audit_notary import keep_head, recheck_trail
from gateway.audit_subject import audit_subject
from gateway.bootstrap import Gateway, build
from gateway.errors import PalimpsestError, Unavailable
from gateway.hotcache import cache_of
from gateway.index import ENCODE_TASK, FORWARD_TASK, INDEX_TASK, InstanceRow
from gateway.instance import State
from gateway.jobs import flush_outbox, new_owner
from gateway.keyfile import erase
from gateway.leader import leading
from gateway.lifecycle import announced
from gateway.log import configure_logging
from gateway.settings import load_settings
from worker.audit_export import run_audit_export
from worker.backlog import recode_when_idle
from worker.scrub import run_scrub
from worker.shred import finish_shreddings
from worker.webhooks import run_webhooks

__all__ = ["DUTIES", "main", "sweep_once"]

log = logging.getLogger(__name__)

BATCH = 500  # rows per duty and round: a round stays short, the rest comes with the next
ORPHAN_SECONDS = 60.0  # a younger spool file may be about to get its row
DRILL = "drill-*"  # a key ring that a killed `palimpsest keys drill` left in the run folder
DRILL_SECONDS = 24 * 3600.0
STALE_SECONDS = 3600.0  # temporary files untouched for so long have no living writer
SENDING = "sending-*.dcm"  # what worker/forward.py writes into the run folder while it is on its way to a peer
REBUILDING = "rebuilding-*.dcm"  # the same of worker/reopen.py
STOP_SECONDS = 3.0  # that a duty under way is given when the sweep is to end
SLOW_EVERY = 12  # rounds between two walks through folders


def send_outbox(gw: Gateway) -> int:
    """Hand waiting messages to the queue."""
    return flush_outbox(gw.index, gw.queue, encode_queue=gw.settings.encode_queue)


def requeue_instances(gw: Gateway) -> int:
    """Send rows that are due and unleased, or not indexed, and were not sent recently, to the queue (again).

    Encodes always go to `encode` here: what a GPU worker let lie, or died over, is taken by a CPU worker.
    """
    quiet = _quiet_seconds(gw)
    work = [(row, ENCODE_TASK, "encode") for row in gw.index.overdue(_room(gw, "encode"), quiet)]
    work += [(row, INDEX_TASK, "index") for row in gw.index.unindexed(_room(gw, "index"), quiet)]
    for row, task, queue in work:
        gw.queue.send(task, [row.id], queue, row.priority)
    if work:
        gw.index.touch_queued(sorted({row.id for row, _, _ in work}))
    return len(work)


def requeue_forwards(gw: Gateway) -> int:
    """The same for forwards."""
    rows = gw.index.forwards_overdue(_room(gw, "forward"), _quiet_seconds(gw))
    for row in rows:
        gw.queue.send(FORWARD_TASK, [row.id], "forward", row.priority)
    if rows:
        gw.index.forwards_touch_queued([row.id for row in rows])
    return len(rows)


def ask_commitments(gw: Gateway) -> int:
    """Have destinations asked for the commitment that is due there; close what they did not answer in time."""
    gw.index.commitments_expired()
    asked = 0
    for name, forward_id in gw.index.commitments_to_ask(_quiet_seconds(gw)).items():
        destination = gw.settings.destination(name)
        if destination is None:
            gw.index.commitment_abandon(name)
        elif not destination.commitment:
            gw.index.commitment_waive(name)
        else:
            gw.queue.send(FORWARD_TASK, [forward_id], "forward", 5)
            gw.index.forwards_touch_queued([forward_id])
            asked += 1
    return asked


def mind_the_clock(gw: Gateway) -> int:
    """Bring back what a clock that was ahead put off."""
    return gw.index.times_pulled_back(gw.settings.lease_seconds)


def keep_ledger(gw: Gateway) -> int:
    """Look at studies that may have changed and write what became of them as events; returns how many.

    Corrections that were cut off are gone on with here, too.
    """
    gw.index.corrections_run()
    for _ in range(10):  # of a database that is older than the ledger, a part each round
        if not gw.index.studies_find():
            break
    return gw.index.studies_judge(gw.settings.study_quiet_seconds)


def forget_events(gw: Gateway) -> int:
    """Forget study events that no subscriber can ask for any more."""
    return gw.index.study_events_prune(gw.index.now() - gw.settings.event_days * 24 * 3600)


def note_disks(gw: Gateway) -> int:
    """Keep how full the file systems of spool and archive are, for the forecast, and forget what is too old for one."""
    for place, folder in (("spool", gw.settings.spool_dir), ("archive", gw.settings.archive_dir)):
        usage = shutil.disk_usage(folder)
        gw.index.disk_note(place, usage.total, usage.free)
    return gw.index.flow_forget()


def release_spool(gw: Gateway) -> int:
    """Delete the spool's copy of instances whose proofs are all recorded (architecture.md, step 13).

    Proofs: read back from the archive, verified, indexed, every forward sent, and committed to by the destination where
    that is asked for; outside the demo profile also a key backup that was opened, because without its keys an archive
    object is no copy. A patient's key is made with the patient's first object, so what was archived after the last
    backup, or under a key that is not in it (clocks differ, and so may the key folders of two hosts), waits for the
    next one. What lies under a key that was destroyed in the meantime is never released: nobody could open it.
    """
    until = None
    if gw.settings.require_key_backup:
        until = gw.keys.backed_up_until()
        if until is None:
            return 0
    released = last = 0
    while released < BATCH and (rows := gw.index.releasable(BATCH, archived_before=until, after=last)):
        last = rows[-1].id  # however many stay, they do not keep the others back
        for row in _openable(gw, rows, backed_up=until is not None):
            gw.index.set_released(row.id)  # commit first: a kill here leaves a file, which `adopt_orphans` removes
            gw.index.let_go(row.digest, gw.spool.remove)
            released += 1
    return released


def _openable(gw: Gateway, rows: Sequence[InstanceRow], *, backed_up: bool) -> list[InstanceRow]:
    """Those whose archive object a key opens; with `backed_up`, one that is in the last backup, too."""
    if backed_up:
        saved = gw.keys.backed_up({row.patient_key for row in rows if row.patient_key is not None})
        rows = [row for row in rows if row.patient_key is None or row.patient_key in saved]
    shut = {row.patient_key for row in rows if row.patient_key and gw.keys.patients.destroyed(row.patient_key)}
    for key_id in shut:
        gw.index.shred_unfinished(key_id)
    return [row for row in rows if row.patient_key not in shut]


def adopt_orphans(gw: Gateway) -> int:
    """Give spool files without a row their row; remove those of released rows."""
    adopted = 0
    for digest in gw.spool.iter_files(ORPHAN_SECONDS):
        row = gw.index.by_digest(digest)
        if row is not None:
            if row.state == State.RELEASED:
                gw.index.let_go(digest, gw.spool.remove)
            continue
        try:
            adopted += adopt_orphan(gw, digest) is not None
        except Unavailable:
            raise
        except PalimpsestError as error:
            message = f"a spooled file without a row cannot be read ({error.reason}); it stays where it is"
            gw.index.alert_raise("orphan-unreadable", digest[:16], message, "warning")
    return adopted


def clean_incoming(gw: Gateway) -> int:
    """Delete what aborted receipts, killed forwarders and rebuilds left behind."""
    left = [path for path in _stale_files(gw.settings.run_dir) if path.match(SENDING) or path.match(REBUILDING)]
    for path in left:
        path.unlink(missing_ok=True)
    return gw.spool.sweep_incoming(STALE_SECONDS) + len(left) + _erase_drills(gw.settings.run_dir)


def _erase_drills(run_dir: Path) -> int:
    """Overwrite and remove what holds every key of a backup in clear."""
    left = [folder for folder in run_dir.glob(DRILL) if time.time() - folder.lstat().st_mtime > DRILL_SECONDS]
    for folder in left:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                erase(path)
        shutil.rmtree(folder)
    return len(left)


def clean_candidates(gw: Gateway) -> int:
    """Delete candidates that no unfinished row names any more, and torn temporary files."""
    removed = 0
    needed: set[str] | None = None
    for path in _stale_files(gw.settings.candidates_dir):
        if needed is None:
            needed = gw.index.candidate_digests()
        if path.name not in needed:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def prune_cache(gw: Gateway) -> int:
    """Keep the cache under its bound; returns bytes freed."""
    return cache_of(gw.settings).prune()


def name_audit_subjects(gw: Gateway) -> int:
    """Say whose the instances of an older release are, so that the audit trail is searched by patient."""
    return gw.index.audit_name_subjects(lambda patient_id, study_uid: audit_subject(gw, patient_id, study_uid))


Duty = Callable[[Gateway], int]

#: Every round, in this order; then what walks through folders, every SLOW_EVERY rounds.
DUTIES: tuple[Duty, ...] = (
    send_outbox,
    requeue_instances,
    requeue_forwards,
    ask_commitments,
    release_spool,
    keep_ledger,
    recode_when_idle,
    keep_head,
)
SLOW_DUTIES: tuple[Duty, ...] = (
    mind_the_clock,
    adopt_orphans,
    clean_incoming,
    clean_candidates,
    prune_cache,
    name_audit_subjects,
    recheck_trail,
    finish_shreddings,
    forget_events,
    note_disks,
)


def sweep_once(gw: Gateway, duties: Sequence[Duty] = (*DUTIES, *SLOW_DUTIES)) -> dict[str, int]:
    """Do each duty once; duty -> what it did.  One that fails (broker down, disk full) leaves the others alone."""
    done: dict[str, int] = {}
    for duty in duties:
        try:
            done[duty.__name__] = duty(gw)
        except PalimpsestError as error:
            log.warning("a sweep duty could not be done", extra={"kind": duty.__name__, "reason": error.reason})
        except OSError as error:
            log.warning("a sweep duty met an I/O error", extra={"kind": duty.__name__, "status": error.errno})
    return done


def _quiet_seconds(gw: Gateway) -> float:
    """A row sent to the queue so recently is probably still on its way."""
    return gw.settings.lease_seconds / 2


def _room(gw: Gateway, queue: str) -> int:
    """How many messages may be sent again: a backlog must not grow by repetitions of itself."""
    return max(0, BATCH - gw.queue.depths()[queue])


def _stale_files(folder: Path) -> Iterator[Path]:
    limit = time.time() - STALE_SECONDS
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.stat().st_mtime < limit:
                yield path
        except FileNotFoundError:
            continue


def run(gw: Gateway, stop: threading.Event, still: Callable[[], None] = lambda: None) -> None:
    """Sweep until `stop` is set; webhooks and syslog are told meanwhile, from threads of their own.

    still: raises Unavailable once another host may lead, which ends the process.
    """
    run_webhooks(gw, stop)
    run_scrub(gw, stop)
    run_audit_export(gw, stop)
    alive = Alive(gw.index, new_owner("sweep"), "sweep")
    alive.start()
    rounds = 0
    while not stop.is_set():
        try:
            still()
        except Unavailable as error:  # two at once do no harm, but one is enough: started again, this one waits
            log.error("the sweep ends", extra={"reason": error.reason})
            os._exit(1)
        slow = rounds % SLOW_EVERY == 0
        with alive.working("sweep", None):
            sweep_once(gw, (*DUTIES, *SLOW_DUTIES) if slow else DUTIES)
        rounds += 1
        stop.wait(gw.settings.sweep_seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Sweep until SIGTERM or SIGINT; with --once, one full round."""
    parser = argparse.ArgumentParser(prog="python -m worker.sweep", description="The reconciler of Palimpsest.")
    parser.add_argument("--once", action="store_true", help="one round, then end")
    arguments = parser.parse_args(argv)
    settings = load_settings()
    configure_logging(settings)
    stop, at_work = threading.Event(), threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        """At once while waiting for the lock, else after the duty under way, if that ends soon."""
        stop.set()
        leave = threading.Timer(STOP_SECONDS if at_work.is_set() else 0.0, os._exit, (0,))
        leave.daemon = True
        leave.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    gw = build(settings)
    steps.watch(settings, "sweep")
    with leading(gw.index, settings.run_dir, "sweep") as still, announced(settings, "sweep"):
        at_work.set()
        if arguments.once:
            sweep_once(gw)
        else:
            run(gw, stop, still)


if __name__ == "__main__":
    main()
