"""The study ledger over HTTP: how far studies have come, and their events as a list or as a stream.

The stream is Server-Sent Events (WHATWG HTML 9.2). A client that reconnects sends Last-Event-ID and misses nothing that
is kept; each stream ends after some minutes, so that its token is looked at again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import NotFound, PalimpsestError, Unavailable
from gateway.study_state import EVENT_KINDS, STATES, StudyEvent
from gateway.uids import parse_uid
from service.access import RouteSpec, may_go_on, principal_of
from service.problems import HttpProblem
from service.status import row_number
from service.stow_answer import Outcome
from service.trail import record

__all__ = ["ROUTES", "stow_evidence"]

log = logging.getLogger(__name__)

PAGE: Final = 100
MOST: Final = 500
SSE: Final = "text/event-stream"
MAX_STREAMS: Final = 64
MAX_OF_ONE: Final = 16  # of one subject: nobody keeps all others out
STREAM_SECONDS: Final = 900.0
HEARTBEAT_SECONDS: Final = 15.0
RETRY_MS: Final = 2000
ASK_SECONDS: Final = 3.0  # whether who asked still may: a read of the database each time, and ticks are short


async def studies(request: Request) -> Response:
    """GET /api/studies?state=&limit=&before=: newest first; `next` is the `before` of the next page."""
    gateway: Gateway = request.app.state.gateway
    query = request.query_params
    state = query.get("state")
    if state is not None and state not in STATES:
        raise HttpProblem(400, "bad-state", f"A state is one of {', '.join(STATES)}.")
    limit = min(MOST, max(1, _number(query.get("limit"), PAGE)))
    before = _number(query.get("before"), 0) or None
    return JSONResponse(await run_in_threadpool(_page, gateway, limit, before, state))


def _page(gateway: Gateway, limit: int, before: int | None, state: str | None) -> dict[str, Any]:
    uids = [uid for uid, _ in gateway.index.study_list(limit, before, state)]
    facts = gateway.index.study_facts(uids)
    shown = [_described(gateway, facts[uid]) for uid in uids if uid in facts]
    more = len(uids) == limit and bool(shown)
    return {"studies": shown, "next": shown[-1]["newest_id"] if more else None}


async def study(request: Request) -> Response:
    """GET /api/studies/{study}: one study with its events."""
    gateway: Gateway = request.app.state.gateway
    uid = parse_uid(request.path_params["study"], "study-uid")
    facts = (await run_in_threadpool(gateway.index.study_facts, [uid])).get(uid)
    if facts is None:
        raise NotFound("unknown-study", "Nothing was received of this study.")
    events = await run_in_threadpool(gateway.index.study_events_of, uid)
    return JSONResponse({**_described(gateway, facts), "events": [asdict(each) for each in events]})


def _described(gateway: Gateway, facts: Any) -> dict[str, Any]:
    found: dict[str, Any] = facts.describe(gateway.settings.study_quiet_seconds, gateway.index.now())
    return found


async def events(request: Request) -> Response:
    """GET /api/events?after=&kind=: events after that number, oldest first; as a stream for who accepts one."""
    gateway: Gateway = request.app.state.gateway
    kinds = request.query_params.getlist("kind")
    if unknown := set(kinds) - set(EVENT_KINDS):
        raise HttpProblem(400, "bad-kind", f"{len(unknown)} kinds are unknown; there are {', '.join(EVENT_KINDS)}.")
    told = request.headers.get("last-event-id") or request.query_params.get("after")
    streamed = SSE in request.headers.get("accept", "")
    if told is None and streamed:
        after = await run_in_threadpool(gateway.index.last_event)  # a new listener hears what comes
    else:
        after = _number(told, 0)
    await run_in_threadpool(_read_event, request)
    if not streamed:
        found = await run_in_threadpool(gateway.index.study_events, after, MOST, kinds)
        return JSONResponse({"events": [asdict(each) for each in found]})
    if request.method == "HEAD":
        return Response(media_type=SSE)
    return StreamingResponse(_stream(request, gateway, after, kinds), media_type=SSE)


async def _stream(request: Request, gateway: Gateway, after: int, kinds: list[str]) -> AsyncIterator[bytes]:
    streams: set[tuple[str, object]] = request.app.state.streams
    who = principal_of(request).subject
    if len(streams) >= MAX_STREAMS or sum(each == who for each, _ in streams) >= MAX_OF_ONE:
        yield f"retry: {RETRY_MS * 10}\n\n".encode()
        return
    mine = (who, object())
    streams.add(mine)
    until, heard, asked = time.monotonic() + STREAM_SECONDS, time.monotonic(), time.monotonic()
    try:
        yield f"retry: {RETRY_MS}\n\n".encode()
        while time.monotonic() < until and not await request.is_disconnected():
            if time.monotonic() - asked >= ASK_SECONDS:
                asked = time.monotonic()
                if not await may_go_on(request):
                    break
            for event in await run_in_threadpool(gateway.index.study_events, after, MOST, kinds):
                after, heard = event.id, time.monotonic()
                yield _frame(event)
            if time.monotonic() - heard > HEARTBEAT_SECONDS:
                heard = time.monotonic()
                yield b": still here\n\n"
            await asyncio.sleep(gateway.settings.poll_seconds)
    except Unavailable as error:  # the client comes again, with the number of the last event that it has
        log.warning("an event stream ended", extra={"reason": error.reason})
    finally:
        streams.discard(mine)


def _frame(event: StudyEvent) -> bytes:
    return f"id: {event.id}\nevent: study-{event.kind}\ndata: {json.dumps(asdict(event))}\n\n".encode()


def _read_event(request: Request) -> None:
    record(request.app.state.gateway, "retrieved", actor=principal_of(request).subject, kind="events")


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    number = row_number(text)
    if number is None:
        raise HttpProblem(400, "bad-number", "limit, before, after and Last-Event-ID are whole numbers.")
    return number


def stow_evidence(gateway: Gateway, actor: str, outcomes: list[Outcome]) -> None:
    """What one STOW-RS request says of its studies, where the settings say that a request holds a whole study.

    Refused instances are expected still. That it cannot be written down fails no request: the quiet timer remains.
    """
    if not gateway.settings.stow_completes:
        return
    failed: dict[str, int] = {}
    for each in outcomes:
        if each.study:
            failed[each.study] = failed.get(each.study, 0) + bool(each.failure)
    try:
        for uid, missing in failed.items():
            if here := len(gateway.index.study_instances(uid)):
                gateway.index.study_evidence_add(uid, "stow", actor, here + missing, missing)
    except PalimpsestError as error:
        log.warning("evidence of a STOW request was not kept", extra={"reason": error.reason})


ROUTES: tuple[RouteSpec, ...] = (
    ("GET", "/api/studies", studies),
    ("GET", "/api/studies/{study}", study),
    ("GET", "/api/events", events),
)
