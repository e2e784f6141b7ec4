"""Finding instances, and telling one's life, for the admin pages.

UIDs and accession numbers are searched for, never shown: what stands on a page are numbers, digests and pseudonyms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from pydicom.uid import UID

from gateway.bootstrap import Gateway
from gateway.index_audit import AuditQuery
from gateway.index_rows import ForwardRow, InstanceRow
from gateway.instance import State
from gateway.pseudonym import pseudonym_uid
from service.problems import HttpProblem
from service.status import row_number
from service.words import size

__all__ = ["Life", "Page", "Step", "found_by", "life", "listing", "trail"]

SHOWN: Final = 50
EVENTS_SHOWN: Final = 50
MOST_TEXT: Final = 64


@dataclass(frozen=True, slots=True)
class Page:
    """rows: newest first; more: the query of the next page, '' if there is none; title: what they have in common."""

    rows: tuple[InstanceRow, ...]
    more: str
    title: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a life. state: 'done', 'open' or 'failed'; at: when it was done; facts: (name, value, is it code)."""

    name: str
    state: str
    at: float | None
    took: float | None
    facts: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True, slots=True)
class Life:
    """An instance from receipt to release. study, accession: keyed pseudonyms; versions: all rows of its UID."""

    row: InstanceRow
    steps: tuple[Step, ...]
    forwards: tuple[ForwardRow, ...]
    versions: tuple[InstanceRow, ...]
    events: tuple[dict[str, Any], ...]
    study: str
    accession: str


def listing(gw: Gateway, query: Mapping[str, str]) -> Page:
    """Instances in a state, passed through for a reason, of the study of another, or all. Raises HttpProblem 400."""
    before = row_number(query["before"]) if "before" in query else None
    if "study_of" in query:
        number = row_number(query["study_of"])
        rows = gw.index.instances_of_study(number) if number is not None else []
        return Page(tuple(rows), "", "Instances of one study")
    state, reason = query.get("state"), query.get("passthrough")
    if reason is not None and not 0 < len(reason) <= MOST_TEXT:
        raise HttpProblem(400, "bad-reason", "A reason is a machine word.")
    wanted = State(state) if state else None
    rows = gw.index.instances_page(SHOWN + 1, before, state=wanted, passthrough=reason)
    more = ""
    if len(rows) > SHOWN:
        same = f"state={state}&" if state else f"passthrough={reason}&" if reason else ""
        more = f"{same}before={rows[SHOWN - 1].id}"
    title = f"Instances in state {state.lower()}" if state else "Newest instances"
    title = f"Instances passed through: {reason}" if reason else title
    return Page(tuple(rows[:SHOWN]), more, title)


def found_by(gw: Gateway, text: str) -> Page:
    """What a person asked for by number, digest, UID, accession number or its pseudonym."""
    rows = gw.index.instances_found(text[: MOST_TEXT + 1])
    return Page(tuple(rows), "", f"Found: {len(rows)}")


def life(gw: Gateway, number: int) -> Life:
    """Raises NotFound."""
    row = gw.index.get(number)
    facts = gw.index.facts(number)
    forwards = tuple(reversed(gw.index.forwards(instance_id=number)))
    events = gw.index.audit_search(AuditQuery(instance_id=number, limit=EVENTS_SHOWN, oldest_first=True))
    key = gw.keys.pseudonym_key()
    study = ""
    if row.study_uid:  # of a shredded one the pseudonym is all that is left
        study = row.study_uid if row.shredded_at else pseudonym_uid(row.study_uid, key)
    return Life(
        row=row,
        steps=(_received(row), _indexed(row), _coded(row, facts, events), _proven(row, facts), _archived(row),
               *(_forwarded(each) for each in forwards), _released(row)),
        forwards=forwards,
        versions=tuple(gw.index.versions(row.sop_uid)[:SHOWN]),
        events=tuple(events),
        study=study,
        accession=gw.index.accession_pseudonym(number) or "",
    )  # fmt: skip


def _facts(*given: tuple[str, object, bool]) -> tuple[tuple[str, str, bool], ...]:
    return tuple((name, str(value), code) for name, value, code in given if value not in (None, "", [], {}))


def _step(
    name: str, at: float | None, since: float | None, *facts: tuple[str, object, bool], bad: bool = False
) -> Step:
    took = max(0.0, at - since) if at is not None and since is not None else None
    return Step(name, "failed" if bad else "open" if at is None else "done", at, took, _facts(*facts))


def _received(row: InstanceRow) -> Step:
    name = {"dimse": "C-STORE", "stow": "STOW-RS"}.get(row.source, row.source)
    syntax = UID(row.transfer_syntax).name  # the UID itself where PS3.6 has none
    return _step(
        "received", row.received_at, None, ("from", f"{row.calling_ae} by {name}", False),
        ("bytes", size(row.size), False), ("transfer syntax", syntax, False), ("priority", row.priority, False),
        ("SHA-256 of the file", row.digest, True),
    )  # fmt: skip


def _indexed(row: InstanceRow) -> Step:
    return _step("indexed", row.indexed_at, row.received_at, ("modality", row.modality, False))


def _coded(row: InstanceRow, facts: Mapping[str, Any], events: list[dict[str, Any]]) -> Step:
    times = [each["at_us"] / 1e6 for each in events if each["event"] in ("candidate", "passthrough")]
    whole = row.form == "PASSTHROUGH"
    return _step(
        "sealed whole" if whole else "coded", times[-1] if times else None, row.received_at,
        ("reason", row.reason, True), ("coder", row.coder, False), ("carrier", row.carrier, False),
        ("codec", size(row.codec_bytes) if row.codec_bytes else None, False),
        ("sealed payload", size(row.payload_bytes) if row.payload_bytes else None, False),
        ("frames", facts.get("frames"), False), ("rule", facts.get("rule"), False),
        ("software", facts.get("software"), False), ("attempts", row.attempts, False),
        ("last failure", row.last_error, True), bad=bool(row.last_error),
    )  # fmt: skip


def _proven(row: InstanceRow, facts: Mapping[str, Any]) -> Step:
    restored = facts.get("restored_sha256")
    same = "the received file, byte for byte" if restored == row.digest else "pixels and every other byte as received"
    return _step(
        "proven", row.verified_at, None, ("rebuilt", same if restored else None, False),
        ("SHA-256, rebuilt", restored, True), ("by", facts.get("verifier"), False),
        ("decoders", ", ".join(facts.get("decoders") or ()), False), ("seconds", facts.get("verify_seconds"), False),
        ("entry of the audit trail", facts.get("verified_seq"), False),
    )  # fmt: skip


def _archived(row: InstanceRow) -> Step:
    ratio = f"{row.size / row.archived_size:.2f}" if row.archived_size else None
    return _step(
        "archived", row.archived_at, row.received_at, ("bytes", size(row.archived_size) if ratio else None, False),
        ("ratio", ratio, False), ("archive key", row.archive_key, True),
        ("SHA-256 of the object", row.archive_digest, True), ("member of a group's object", row.member, False),
    )  # fmt: skip


def _forwarded(row: ForwardRow) -> Step:
    return _step(
        f"forwarded to {row.destination}", row.sent_at, row.created_at, ("state", row.state.value.lower(), False),
        ("as", row.representation, False), ("proof", row.proof, False), ("reason", row.reason, True),
        ("attempts", row.attempts, False), bad=row.state.value == "DEAD",
    )  # fmt: skip


def _released(row: InstanceRow) -> Step:
    return _step("released from the spool", row.released_at, row.archived_at)


def trail(gw: Gateway, query: Mapping[str, str]) -> dict[str, Any]:
    """The audit trail by what a person filled in. Raises HttpProblem 400."""

    def number(name: str) -> int | None:
        text = query.get(name, "").strip().lstrip("#")
        found = row_number(text) if text else None
        if text and found is None:
            raise HttpProblem(400, f"bad-{name}", f"{name} is a number.")
        return found

    def day(name: str) -> float | None:
        text = query.get(name, "")
        try:
            return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() if text else None
        except ValueError:
            raise HttpProblem(400, f"bad-{name}", f"{name} is a date, as 2026-01-31.") from None

    until = day("until")
    asked = AuditQuery(
        actor=query.get("actor", "").strip()[:MOST_TEXT],
        events=(query["event"].strip(),) if query.get("event", "").strip() else (),
        outcomes=(query["outcome"],) if query.get("outcome") else (),
        studies=(query["study"].strip(),) if query.get("study", "").strip() else (),
        patients=(query["patient"].strip(),) if query.get("patient", "").strip() else (),
        instance_id=number("instance"),
        since=day("since"),
        until=until + 24 * 3600 if until is not None else None,
        before=number("before"),
        limit=EVENTS_SHOWN,
    )
    rows = gw.index.audit_search(asked)
    return {"rows": rows, "more": rows[-1]["seq"] if len(rows) == EVENTS_SHOWN else None}
