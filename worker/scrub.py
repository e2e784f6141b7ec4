"""Reading and decoding archived objects again: a sample each day, the whole archive on a schedule.

An object is read with its digest checked, and every instance in it is restored, by the proving process, to what was
recorded; of a shredded patient the pixels are decoded. Where it stands is kept in the database after every few objects,
so a scrub that was stopped goes on. What is damaged is listed, audited, an alert, and mended where another copy is.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Literal

from gateway.archive import read_one
from gateway.audit import AuditEvent
from gateway.bootstrap import Gateway
from gateway.errors import IntegrityError, NotFound, ObjectUnavailable, PalimpsestError
from gateway.index_care import ArchivedObject
from gateway.index_rows import InstanceRow
from gateway.instance import Form
from worker.mending import mend
from worker.verify import Verifier, VerifyReport

__all__ = ["ScrubReport", "run_scrub", "scrub"]

log = logging.getLogger(__name__)

Kind = Literal["sample", "whole", "drawn"]  # drawn: a sample that somebody asked for, beside the daily one
DAY: Final = 24 * 3600.0
PAGE: Final = 50  # objects between two notes of where it stands
LOOK_SECONDS: Final = 60.0
LOWEST: Final = 19  # nice(2)
ACTOR: Final = "scrub"
MAX_IN_A_ROW: Final = 20  # objects that cannot be read now: then it is the archive
MAX_UNREAD: Final = 1000
UNREAD: Final = "archive-unread"
#: what is wrong where the bytes are not those that were recorded: the recorded ones, from elsewhere, mend it
OF_THE_BYTES: Final = frozenset({"missing", "digest-mismatch", "archive-read-back", "unreadable"})
#: what the proving process may fail of under a load that has it starve: no sign of damage
UNDECIDED: Final = frozenset({"verifier-timeout", "verifier-crashed", "memory"})


@dataclass(slots=True)
class ScrubReport:
    """checked: objects; damaged: (archive key, reason); mended: (archive key, where from); undecided: the proving
    process had no time or no memory for them: their digest is right. unread: (archive key, reason), twice not to be
    read while others could: nothing is known of them.
    """

    checked: int = 0
    undecided: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)
    mended: list[tuple[str, str]] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if everything was read, and nothing is damaged that was not mended."""
        return len(self.mended) == len(self.damaged) and not self.unread


def scrub(
    gw: Gateway, verifier: Verifier, kind: Kind, *, count: int = 0, paced: Callable[[float], bool] = lambda _: True
) -> ScrubReport:
    """Scrub a random sample of `count` objects, or everything; one that was stopped is gone on with.

    paced: called after each object with the seconds that it took; False stops. Raises Unavailable.
    """
    report, name = ScrubReport(), f"scrub-{kind}"
    state = gw.index.care_get(name) if kind != "drawn" else {}
    if not state or state.get("ended"):
        state = {"began": gw.index.now(), "checked": 0, "damaged": 0, "cursor": "", "keys": []}
        state["total"] = gw.index.archived_count() if kind == "whole" else 0
        if kind != "whole":
            rows = gw.index.archived_sample(count, gw.index.now())
            state["keys"] = sorted({str(row.archive_key) for row in rows})
    in_a_row = 0
    for found in _objects(gw, kind, state):
        began = time.monotonic()
        try:
            _check(gw, verifier, found, report)
            in_a_row = 0
        except ObjectUnavailable as error:
            in_a_row += 1
            state["unread"] = [*state.get("unread", ()), found.key]
            if in_a_row > MAX_IN_A_ROW or len(state["unread"]) > MAX_UNREAD:
                message = f"the archive does not give out object after object ({error.reason}): the scrub waits for it"
                gw.index.alert_raise(UNREAD, "archive", message, "warning")
                raise
        state |= {"checked": state["checked"] + 1, "cursor": found.key}
        if not paced(time.monotonic() - began):
            gw.index.care_set(name, {**state, "damaged": state["damaged"] + len(report.damaged)})
            return report
        if report.checked % PAGE == 0:
            gw.index.care_set(name, state)
    _once_more(gw, verifier, state.pop("unread", []), report)
    gw.index.care_set(name, {**state, "keys": [], "cursor": "", "ended": gw.index.now()})
    outcome: Any = "success" if report.ok else "failure"
    gw.index.audit(AuditEvent("scrubbed", ACTOR, outcome, detail={"kind": kind, "count": state["checked"]}))
    return report


def _once_more(gw: Gateway, verifier: Verifier, keys: list[str], report: ScrubReport) -> None:
    """What could not be read is tried again at the end; what cannot be read then, either, is named."""
    for key in keys:
        found = gw.index.archived_object(key)
        try:
            if found is not None:
                _check(gw, verifier, found, report)
        except ObjectUnavailable as error:
            report.unread.append((key, error.reason))
            message = f"the archive does not give out one object ({error.reason}), others it does: look at it there"
            gw.index.alert_raise(UNREAD, key[-64:], message, "warning")


def _objects(gw: Gateway, kind: Kind, state: dict[str, Any]) -> Iterator[ArchivedObject]:
    """Objects behind the cursor."""
    if kind != "whole":
        for key in (key for key in state["keys"] if key > state["cursor"]):
            if (found := gw.index.archived_object(key)) is not None:
                yield found
        return
    cursor = str(state["cursor"])
    while page := gw.index.archived_after(cursor, PAGE):
        yield from page
        cursor = page[-1].key


def _check(gw: Gateway, verifier: Verifier, found: ArchivedObject, report: ScrubReport) -> None:
    problem = problem_of(gw, verifier, found)
    report.checked += 1
    for subject in ("archive", found.key[-64:]):  # it was read, whatever is in it
        gw.index.alert_over(UNREAD, subject)
    if problem is None:
        gw.index.damage_over(found.key, ACTOR)
        return
    if problem in UNDECIDED:
        report.undecided += 1
        message = f"an archive object could not be decoded for a scrub ({problem}); its bytes are those recorded"
        gw.index.alert_raise("scrub-undecided", found.key[-64:], message, "warning")
        return
    now = gw.index.archived_object(found.key)
    if now is None or now.digest != found.digest:  # coded anew while it was looked at
        return
    if problem not in OF_THE_BYTES and _forgotten(gw, found):  # shredded while it was looked at: it opens no more
        return
    report.damaged.append((found.key, problem))
    gw.index.damage_found(found.key, problem, ACTOR)
    source = mend(gw, now, bytes_too=problem in OF_THE_BYTES)
    if not source and not now.rows and gw.index.is_superseded(found.key):
        source = "newer-object"  # the instance has another one, which was proven
    if source:
        report.mended.append((found.key, source))
        gw.index.damage_mended(found.key, source, ACTOR)


def _forgotten(gw: Gateway, found: ArchivedObject) -> bool:
    """Whether a key of a living instance of that object was destroyed meanwhile."""
    key_ids = {row.patient_key for row in found.rows if row.shredded_at is None and row.patient_key is not None}
    return any(gw.keys.patients.destroyed(each) for each in key_ids)


def problem_of(gw: Gateway, verifier: Verifier, found: ArchivedObject) -> str | None:
    """Why an archived object is not what was recorded; None if it is. Raises ObjectUnavailable, Unavailable."""
    try:
        data = read_one(gw.archive, lambda: gw.archive.get(found.key, found.digest))
        if sha256(data).hexdigest() != found.digest:
            return "archive-read-back"
    except NotFound:
        return "missing"
    except IntegrityError as error:
        return error.reason
    living = [row for row in found.rows if row.shredded_at is None]
    reports = _reports(verifier, data, found.rows) if living else {}
    for row in living:
        report = reports[row.id]
        if not report.ok:
            return report.reason or "verifier-refused"
        restored = {row.digest, gw.index.facts(row.id).get("restored_sha256")}
        if report.recorded_sha256 != row.digest or report.sha256 not in restored:
            return "other-object"
    dead = next((row for row in found.rows if row.shredded_at is not None and row.form is Form.CODED), None)
    if dead is not None:
        report = verifier.check(data) if dead.member is None else verifier.check(data, dead.member)
        if report.reason != "seal-refused":  # all that needs no key is looked at first
            return "shredded-opens" if report.ok else report.reason
    return None


def _reports(verifier: Verifier, data: bytes, rows: tuple[InstanceRow, ...]) -> dict[int, VerifyReport]:
    if len(rows) == 1:
        row = rows[0]
        return {row.id: verifier.check(data) if row.member is None else verifier.check(data, row.member)}
    reports = verifier.check_group(data)
    refused = VerifyReport(False, "verifier-refused")
    return {
        row.id: reports[row.member] if row.member is not None and row.member < len(reports) else refused for row in rows
    }


# --- beside the sweep ---


def run_scrub(gw: Gateway, stop: threading.Event) -> threading.Thread:
    """Start the thread that scrubs as the settings say; it ends with `stop`, at the latest with the process."""
    thread = threading.Thread(target=_run, args=(gw, stop), name="scrub", daemon=True)
    thread.start()
    return thread


def _run(gw: Gateway, stop: threading.Event) -> None:
    # on Linux a thread has a priority of its own, and what it starts inherits it (setpriority(2))
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
    settings = gw.settings
    while not stop.wait(LOOK_SECONDS):
        try:
            kind = due(gw)
            if kind is None:
                continue
            verifier = Verifier(
                settings.keys_dir, timeout=settings.object_time_limit_seconds / 2,
                memory_bytes=settings.worker_memory_bytes, settings=settings,
            )  # fmt: skip
            with verifier:
                scrub(gw, verifier, kind, count=settings.scrub_sample, paced=lambda spent: _rest(gw, stop, spent))
        except PalimpsestError as error:
            log.warning("the archive cannot be scrubbed now", extra={"reason": error.reason})


def due(gw: Gateway) -> Kind | None:
    """What is to be scrubbed now: what was begun, the day's sample, or the whole."""
    days = gw.settings.scrub_whole_days
    if gw.settings.scrub_sample and _passed(gw, "scrub-sample", DAY):
        return "sample"
    if days and _passed(gw, "scrub-whole", days * DAY):
        return "whole"
    return None


def _passed(gw: Gateway, name: str, period: float) -> bool:
    state = gw.index.care_get(name)
    return not state.get("ended") or gw.index.now() - float(state["began"]) >= period


def _rest(gw: Gateway, stop: threading.Event, spent: float) -> bool:
    """Leave the machine to others for as long as the share says; False to stop."""
    return not stop.wait(spent * (1 / gw.settings.scrub_share - 1))
