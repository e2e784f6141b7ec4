"""The audit trail over HTTP, for auditors and admins: export, verification, search, FHIR. Using it is in it.

Patients are looked for by their keyed pseudonym, so that no URL or log of a proxy holds an identifier of theirs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar
from urllib.parse import urlencode

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from gateway.audit import AuditReport
from gateway.audit_events import EVENTS
from gateway.audit_fhir import bundle, to_fhir
from gateway.audit_message import OUTCOMES
from gateway.audit_notary import check_trail
from gateway.audit_subject import study_names
from gateway.audit_writer import FORMATS, MEDIA, Format, event_messages, export_lines
from gateway.bootstrap import Gateway
from gateway.errors import NotFound
from gateway.index_audit import MAX_FOUND, AuditQuery
from service.access import RouteSpec, principal_of
from service.problems import HttpProblem
from service.trail import log_used
from service.wado_resource import base_url

__all__ = ["ROUTES", "Turns", "in_turn"]

FHIR_JSON: Final = "application/fhir+json"
DEFAULT_COUNT: Final = 100
MAX_PATIENTS: Final = 16  # each is an event of its own
#: Questions of a kind that are looked up at once, and that may wait for their turn.
AT_ONCE, WAITING = 2, 16
SEARCH: Final = frozenset({"patient", "study", "user", "event", "outcome", "instance", "from", "to", "before", "limit"})
#: FHIR search parameter -> ours
FHIR_SEARCH: Final[Mapping[str, str]] = {
    "patient:identifier": "patient", "entity:identifier": "study", "agent:identifier": "user", "subtype": "event",
    "outcome": "outcome", "_count": "limit", "_before": "before",
}  # fmt: skip
_OUTCOME_CODES: Final = {code: word for word, code in OUTCOMES.items()}
Parameters = Mapping[str, list[str]]
Given = ParamSpec("Given")
Found = TypeVar("Found")


@dataclass
class Turns:
    """Questions of a kind to the trail in one process: its threads for them, and how many run or wait (counted in its
    loop).
    """

    threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(AT_ONCE))
    asked: int = 0


async def in_turn(request: Request, work: Callable[Given, Found], *args: Given.args, **more: Given.kwargs) -> Found:
    """Run a question for a page of the trail in one of few threads of its own, so that nothing else waits for it.

    Raises HttpProblem (503) when too many wait already.
    """
    turns: Turns = request.app.state.auditing
    return await _run(turns, partial(work, *args, **more))


async def _in_long_turn(request: Request, work: Callable[[], Found]) -> Found:
    """The same for what reads all of the trail: no page waits for it."""
    turns: Turns = request.app.state.auditing_all
    return await _run(turns, work)


async def _run(turns: Turns, work: Callable[[], Found]) -> Found:
    if turns.asked >= AT_ONCE + WAITING:
        raise HttpProblem(503, "busy", "Other questions to the audit trail are in hand.", {"Retry-After": "5"})
    turns.asked += 1
    try:
        return await to_thread.run_sync(work, limiter=turns.threads)
    finally:
        turns.asked -= 1


async def export(request: Request) -> Response:
    """GET /api/audit?since=seq&format=jsonl|dicom|fhir: the trail, an event a line, oldest first."""
    since = _number(request.query_params.get("since", "0"), "since")
    asked = request.query_params.get("format", "jsonl")
    form = next((each for each in FORMATS if each == asked), None)
    if form is None:
        raise HttpProblem(400, "bad-format", f"format is one of {', '.join(FORMATS)}.")
    lines = await _in_long_turn(request, partial(_spooled, request, form, since))
    return StreamingResponse(lines, media_type=MEDIA[form])


def _spooled(request: Request, form: Format, since: int) -> Iterator[bytes]:
    """The export, written to a file that is already unlinked: a long trail costs disk, not memory."""
    gateway: Gateway = request.app.state.gateway
    _used(request, "export", form=form)
    file = tempfile.TemporaryFile("w+b", dir=gateway.settings.run_dir)  # noqa: SIM115  closed below
    file.writelines(export_lines(gateway, form, AuditQuery(after=since)))
    file.seek(0)

    def chunks() -> Iterator[bytes]:
        with file:
            while data := file.read(1 << 16):
                yield data

    return chunks()


async def verify(request: Request) -> Response:
    """GET /api/audit/verify: walk the chain, compare it with the signed heads; 200 with the report either way."""

    def work() -> AuditReport:
        _used(request, "verify")
        return check_trail(request.app.state.gateway)

    return JSONResponse(asdict(await _in_long_turn(request, work)))


async def search(request: Request) -> Response:
    """GET /api/audit/search: events that match, newest first; `next` is where the page after this one begins."""
    given = _parameters(request, SEARCH)
    query = _query(request.app.state.gateway, given)
    found = await in_turn(request, _found, request, query)
    shown: dict[str, Any] = {"events": found}
    if len(found) == query.limit:
        shown["next"] = f"/api/audit/search?{urlencode(_next(given, found), doseq=True)}"
    return JSONResponse(shown)


def _found(request: Request, query: AuditQuery) -> list[dict[str, Any]]:
    gateway: Gateway = request.app.state.gateway
    found = gateway.index.audit_search(query)
    _used(request, "search", query=query)
    subjects = gateway.index.audit_subjects(line["instance_id"] for line in found if line["instance_id"] is not None)
    for line in found:
        subject = subjects.get(line["instance_id"] or 0)
        line["study"] = line["study"] or (subject.study if subject else "") or None
        line["patient"] = line.get("patient") or (subject.patient if subject else "") or None
    return found


async def fhir_search(request: Request) -> Response:
    """GET /fhir/AuditEvent: the same as a searchset, a page at a time (FHIR R4 3.1.1)."""
    names = frozenset(FHIR_SEARCH) | {"date", "_format"}
    given = _parameters(request, names)
    gateway: Gateway = request.app.state.gateway
    ours = {  # a token may come as system|value; there is one system each
        FHIR_SEARCH[name]: [value.rpartition("|")[2] for value in values]
        for name, values in given.items() if name in FHIR_SEARCH
    }  # fmt: skip
    if "outcome" in ours:
        ours["outcome"] = [_OUTCOME_CODES.get(code, code) for code in ours["outcome"]]
    query = _dated(_query(gateway, ours), given.get("date", []))
    root = base_url(request).rstrip("/") + "/fhir"

    def work() -> dict[str, Any]:
        found = gateway.index.audit_search(query)
        _used(request, "fhir", query=query)
        links = {"self": f"{root}/AuditEvent?{urlencode(given, doseq=True)}"}
        if len(found) == query.limit:
            following = {**given, "_before": [str(found[-1]["seq"])]}
            links["next"] = f"{root}/AuditEvent?{urlencode(following, doseq=True)}"
        return bundle(event_messages(gateway, found), links, root)

    return JSONResponse(await in_turn(request, work), media_type=FHIR_JSON)


async def fhir_read(request: Request) -> Response:
    """GET /fhir/AuditEvent/{id}: one event by its number."""
    gateway: Gateway = request.app.state.gateway
    number = _number(request.path_params["id"], "id")

    def work() -> dict[str, Any]:
        _used(request, "fhir")
        found = gateway.index.audit_search(AuditQuery(after=number - 1, before=number + 1, limit=1))
        if not found:
            raise NotFound("unknown-event", "There is no such audit event.")
        return to_fhir(event_messages(gateway, found)[0])

    return JSONResponse(await in_turn(request, work), media_type=FHIR_JSON)


def _used(request: Request, kind: str, *, form: str | None = None, query: AuditQuery | None = None) -> None:
    """Before anything is shown; with the patients looked for."""
    asked = query.patients if query else ()
    log_used(request.app.state.gateway, principal_of(request).subject, kind, asked, form)


def _parameters(request: Request, known: frozenset[str]) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise HttpProblem(400, "unknown-parameter", f"What can be asked: {', '.join(sorted(known))}.")
        if any(char < " " for char in value):
            raise HttpProblem(400, "bad-parameter", f"{name} holds control characters.")
        given.setdefault(name, []).append(value)
    return given


def _query(gateway: Gateway, given: Parameters) -> AuditQuery:
    """Raises HttpProblem (400) for a value that cannot be."""

    def one(name: str, default: str = "") -> str:
        return given.get(name, [default])[-1]

    events, outcomes = tuple(given.get("event", ())), tuple(given.get("outcome", ()))
    if not (set(events) <= set(EVENTS) and set(outcomes) <= set(OUTCOMES)):
        raise HttpProblem(400, "bad-event", "There is no event or outcome of this name.")
    if len(given.get("patient", ())) > MAX_PATIENTS:
        raise HttpProblem(400, "too-many-patients", f"At most {MAX_PATIENTS} patients at once.")
    limit = _number(one("limit", str(DEFAULT_COUNT)), "limit")
    return AuditQuery(
        patients=tuple(given.get("patient", ())),
        studies=tuple(name for uid in given.get("study", ()) for name in study_names(gateway, uid)),
        actor=one("user"),
        events=events,
        outcomes=outcomes,
        instance_id=_number(one("instance"), "instance") if "instance" in given else None,
        since=_moment(one("from")) if "from" in given else None,
        until=_moment(one("to")) if "to" in given else None,
        before=_number(one("before"), "before") if "before" in given else None,
        limit=max(1, min(limit, MAX_FOUND)),
    )


def _dated(query: AuditQuery, dates: list[str]) -> AuditQuery:
    """With FHIR's `date` parameters: prefixes ge, gt, le, lt before a time."""
    for text in dates:
        prefix, moment = text[:2], _moment(text[2:])
        if prefix in ("ge", "gt"):
            query = replace(query, since=moment)
        elif prefix in ("le", "lt"):
            query = replace(query, until=moment)
        else:
            raise HttpProblem(400, "bad-date", "date begins with ge, gt, le or lt.")
    return query


def _next(given: Parameters, found: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {**given, "before": [str(found[-1]["seq"])]}


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise HttpProblem(400, "bad-date", "A time is written as 2026-01-31 or 2026-01-31T12:00:00Z.") from None


def _number(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        raise HttpProblem(400, f"bad-{name.lstrip('_')}", f"{name} is a whole number.")
    return int(text)


ROUTES: tuple[RouteSpec, ...] = (
    ("GET", "/api/audit", export),
    ("GET", "/api/audit/verify", verify),
    ("GET", "/api/audit/search", search),
    ("GET", "/fhir/AuditEvent", fhir_search),
    ("GET", "/fhir/AuditEvent/{id}", fhir_read),
)
