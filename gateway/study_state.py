"""How far a study has come: pure rules over counts and evidence. Times: seconds since the epoch, UTC.

Complete is said on evidence only, and the evidence is named: what the sender itself says of the study (a C-FIND
answer, a storage commitment request, a STOW-RS request) or, in want of that, a quiet time. That an association was
closed says nothing: modalities close them within a study, and after errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

Completeness = Literal["open", "complete", "incomplete"]
EvidenceKind = Literal["c-find", "stow", "storage-commitment", "quiet"]
#: of the study as a whole; the first that holds, see `state_of`
STATES: Final = ("failed", "incomplete", "receiving", "complete", "archived", "forwarded", "committed")
EVENT_KINDS: Final = ("received", "complete", "incomplete", "archived", "forwarded", "committed", "failed")


@dataclass(frozen=True, slots=True)
class Evidence:
    """expected: instances of the study as its source has it, None if it gave no number; missing: of those not here
    when it was told. source: AE title, token subject or destination.
    """

    kind: str
    source: str
    expected: int | None
    missing: int
    at: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """A study's objects on their way to one destination: numbers, and when the last of them arrived there.

    sent: delivered, committed ones included; asked: those whose commitment is waited for.
    """

    destination: str
    waiting: int
    sent: int
    committed: int
    dead: int
    asked: int
    last_sent_at: float | None

    @property
    def total(self) -> int:
        """All forwards of the study to this destination."""
        return self.waiting + self.sent + self.dead


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """One study as its rows say. instances: different SOP Instance UIDs; objects: rows, versions included.

    hidden: instances that a rejection note hides; coerced: objects given back under a correction.
    """

    study_uid: str
    newest_id: int
    instances: int
    objects: int
    bytes: int
    verified: int
    archived: int
    released: int
    hidden: int
    coerced: int
    first_received_at: float
    last_received_at: float
    last_verified_at: float | None
    last_archived_at: float | None
    deliveries: tuple[Delivery, ...] = ()
    evidence: tuple[Evidence, ...] = ()

    def describe(self, quiet_seconds: float, now: float) -> dict[str, Any]:
        """JSON-able: the facts, the state and what completeness rests on."""
        word, proof = completeness(self, quiet_seconds, now)
        complete = {"completeness": word, "completeness_by": asdict(proof) if proof else None}
        return {"state": state_of(self, quiet_seconds, now), **complete, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is to be told of a study. destination: for forwarded, committed and failed."""

    kind: str
    destination: str | None
    count: int


@dataclass(frozen=True, slots=True)
class StudyEvent:
    """One change of state. id: rises by time; count: instances or objects that it is about."""

    id: int
    study_uid: str
    kind: str
    destination: str | None
    count: int
    at: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """state: of the study; open: it may still change by itself; announced: what will have been told by then."""

    state: str
    open: bool
    news: tuple[Announcement, ...] = ()
    announced: Mapping[str, int] = field(default_factory=dict)
    proof: Evidence | None = None


def completeness(facts: StudyFacts, quiet_seconds: float, now: float) -> tuple[Completeness, Evidence | None]:
    """Whether all of a study is here, and the evidence for it: the newest of the sender's, else the quiet timer.

    Evidence with another number than is here says incomplete while more is expected, and nothing once there is more. A
    storage commitment request names what its sender sent, which may be a part: it never says incomplete.
    """
    for told in sorted(facts.evidence, key=lambda each: each.at, reverse=True):
        if told.kind == "quiet" or told.expected is None:
            continue
        if told.expected == facts.instances:
            return "complete", told
        if told.expected > facts.instances and told.kind != "storage-commitment":
            return "incomplete", told
    quiet = now - facts.last_received_at
    if quiet < quiet_seconds:
        return "open", None
    return "complete", Evidence("quiet", "", None, 0, facts.last_received_at + quiet_seconds)


def state_of(facts: StudyFacts, quiet_seconds: float, now: float) -> str:
    """One of STATES: how far all of the study has come, or what keeps it from that."""
    word, _ = completeness(facts, quiet_seconds, now)
    sent = bool(facts.deliveries) and all(each.sent == each.total for each in facts.deliveries)
    holds = {
        "failed": any(each.dead for each in facts.deliveries),
        "incomplete": word == "incomplete",
        "receiving": word == "open",
        "complete": facts.archived < facts.objects,
        "archived": not sent,
        "forwarded": not all(each.committed == each.total for each in facts.deliveries),
        "committed": True,
    }
    return next(state for state in STATES if holds[state])


def judge(facts: StudyFacts, announced: Mapping[str, int], quiet_seconds: float, now: float) -> Judgement:
    """What is new since `announced` ('kind' or 'kind:destination' -> count)."""
    word, proof = completeness(facts, quiet_seconds, now)
    held = _held(facts, word)
    told = {key: count for key, count in announced.items() if not key.startswith("failed:") or key in held}
    news = []
    for key, count in held.items():
        if key == "received":
            fresh = key not in told or ("complete" in told and count > max(told[key], told["complete"]))
        else:
            fresh = told.get(key) != count
        if fresh:
            told[key] = count
            kind, _, destination = key.partition(":")
            news.append(Announcement(kind, destination or None, count))
    moving = word == "open" or facts.archived < facts.objects
    moving = moving or any(each.waiting or each.asked for each in facts.deliveries)
    proof = proof if any(each.kind == "complete" for each in news) else None
    return Judgement(state_of(facts, quiet_seconds, now), moving, tuple(news), told, proof)


def _held(facts: StudyFacts, word: Completeness) -> dict[str, int]:
    """What can be said of the study now, with the numbers, in the order in which it is told."""
    held = {"received": facts.instances}
    if word == "incomplete":
        held["incomplete"] = facts.instances
    if word == "complete":
        held["complete"] = facts.instances
        if facts.archived == facts.objects:
            held["archived"] = facts.objects
        held |= _all(facts.deliveries, "forwarded", lambda each: each.sent)
        held |= _all(facts.deliveries, "committed", lambda each: each.committed)
    return held | {f"failed:{each.destination}": each.dead for each in facts.deliveries if each.dead}


def _all(deliveries: Sequence[Delivery], kind: str, done: Any) -> dict[str, int]:
    return {f"{kind}:{each.destination}": each.total for each in deliveries if done(each) == each.total}
