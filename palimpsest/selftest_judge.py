"""The reckoning of `palimpsest selftest`: every object that was promised, asked for and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePosixPath

import httpx

from codec.weights import in_use
from gateway.archive import archive_key
from gateway.audit_notary import check_trail
from gateway.errors import PalimpsestError
from gateway.index_care import ArchivedObject
from gateway.index_rows import InstanceRow
from gateway.instance import DELIVERED, State
from palimpsest.selftest_gateway import UnderTest
from palimpsest.selftest_objects import Generated
from palimpsest.selftest_traffic import client, whole
from worker.weightobject import weights_uid

__all__ = ["Verdict", "judge", "resting"]


@dataclass
class Verdict:
    """UIDs of what is lost, wrong, stuck, and of what has a second row. surplus: files at the destinations that stand
    for no instance. Then what is allowed: archive objects that no row names, instances that went on whole because work
    on them was cut off too often, alerts that were raised, by kind.
    """

    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    surplus: int = 0
    audit_trail: str = ""
    left_in_spool: int = 0
    unnamed_objects: int = 0
    went_whole: int = 0
    attempts: int = 0
    alerts: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Nothing lost, wrong, stuck or double, and the audit trail is whole."""
        return not (self.lost or self.wrong or self.stuck or self.doubled or self.surplus or self.audit_trail)


def resting(under: UnderTest) -> int:
    """How many instances have nothing before them any more; -1 while the index cannot be asked."""
    try:
        counts = under.gw.index.counts()
    except PalimpsestError:
        return -1
    return counts.by_state.get(State.RELEASED, 0) if counts.outbox == 0 else -1


def judge(under: UnderTest, promised: Sequence[Generated], wrong: set[str]) -> Verdict:
    """Ask for everything. wrong: UIDs that were given back otherwise before."""
    verdict = Verdict(wrong=sorted(wrong))
    known: set[str] = set()
    with client(under.url, under.token()) as http:
        for sent in promised:
            _one(under, http, sent, verdict, known)
    there = check_trail(under.gw)
    verdict.audit_trail = "" if there.ok else there.problem or "not whole"
    verdict.left_in_spool = len(list(under.gw.spool))
    there_too = {archive_key(weights_uid(each.sha256)) for each in in_use()}
    verdict.unnamed_objects = len(set(under.gw.archive.keys()) - known - there_too)
    at_nas = {path.relative_to(under.nas).as_posix() for path in under.nas.rglob("*.dcm")}
    verdict.surplus = len(at_nas - known - there_too)
    verdict.alerts = dict(Counter(each.kind for each in under.gw.index.alerts(open_only=False)))
    return verdict


def _one(under: UnderTest, http: httpx.Client, sent: Generated, verdict: Verdict, known: set[str]) -> None:
    rows = under.gw.index.versions(sent.uid)
    got = whole(http, sent) or whole(http, sent)  # once more: a worker may just have started
    if got is None or not rows:
        verdict.lost.append(sent.uid)
    elif got != sent.dataset and sent.uid not in verdict.wrong:
        verdict.wrong.append(sent.uid)
    if len(rows) > 1:
        verdict.doubled.append(sent.uid)
    for row in rows[:1]:
        verdict.attempts += max(0, row.attempts - 1)
        verdict.went_whole += row.form == "PASSTHROUGH" and (row.reason or "").startswith("worker-crashed")
        objects = [ArchivedObject(str(row.archive_key), str(row.archive_digest)), *under.gw.index.superseded_of(row.id)]
        known.update(each.key for each in objects)
        problem = _unfinished(under, row, objects)
        if problem:
            verdict.stuck.append(sent.uid)
            verdict.reasons[problem] = verdict.reasons.get(problem, 0) + 1


def _unfinished(under: UnderTest, row: InstanceRow, objects: Sequence[ArchivedObject]) -> str:
    """objects: all that stand for it in the archive; what was coded in a hurry and again later is at the destinations
    as it was sent.
    """
    if row.state != State.RELEASED:
        return f"{row.state} {row.last_error or ''}".strip()
    states = [each for each in under.gw.index.forwards(row.id) if each.state not in DELIVERED]
    if states:
        return f"forward to {states[0].destination}: {states[0].state}"
    there = [each for each in objects if (under.nas / each.key).is_file()]
    if not any(sha256((under.nas / each.key).read_bytes()).hexdigest() == each.digest for each in there):
        return "destination has other bytes" if there else "destination has no file"
    if not any((under.peer / PurePosixPath(each.key).name).is_file() for each in objects):
        return "the peer has no file"
    return ""
