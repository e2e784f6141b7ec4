"""The JSON side of running the gateway: what `palimpsest status` and `send` ask, and the replays."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from gateway.bootstrap import Gateway
from gateway.errors import NotFound
from gateway.index_rows import InstanceRow
from gateway.instance import CommitmentState, ForwardState
from gateway.metrics_read import exposition
from gateway.uids import parse_sop_instance
from service.access import RouteSpec, principal_of
from service.health import dependencies_up
from service.overview import destinations as overview_of_destinations
from service.overview import overview, queue_depths
from service.problems import HttpProblem

__all__ = ["ROUTES", "json_body", "replay_failures", "replay_forwards", "row_number"]

MAX_BODY = 4096
_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
#: What of a row leaves the service: how far it came and what it weighs; nothing of the patient.
ROW_FIELDS = (
    "id", "digest", "dataset_digest", "sop_uid", "sop_class", "study_uid", "series_uid", "transfer_syntax", "size",
    "source", "received_at", "state", "form", "reason", "attempts", "coder", "carrier", "payload_bytes", "codec_bytes",
    "raw_pixel_bytes", "archived_size", "modality", "envelope_uid", "verified_at", "archived_at", "released_at",
    "indexed_at", "current", "conflict", "last_error",
)  # fmt: skip


async def status(request: Request) -> Response:
    """GET /api/status: the whole gateway in one object."""
    return JSONResponse(await run_in_threadpool(overview, request.app.state.gateway))


async def instances(request: Request) -> Response:
    """GET /api/instances?digest=...|sop=...|id=...: state of instances, all versions of a SOP Instance UID, with their
    forwards.
    """
    return JSONResponse(await run_in_threadpool(_instances, request.app.state.gateway, dict(request.query_params)))


def _instances(gateway: Gateway, query: dict[str, str]) -> dict[str, Any]:
    match query:
        case {"digest": digest} if _DIGEST.fullmatch(digest):
            row = gateway.index.by_digest(digest.lower())
            rows = [row] if row else []
        case {"sop": uid}:
            rows = list(gateway.index.versions(parse_sop_instance(uid)))
        case {"id": text} if (number := row_number(text)) is not None:
            rows = [gateway.index.get(number)]
        case _:
            raise HttpProblem(400, "bad-query", "Ask by digest, sop or id.")
    return {"instances": [_row(gateway, row) for row in rows]}


async def choose(request: Request) -> Response:
    """POST /api/instances/choose {"id": ...}: of several versions in conflict, this one is served from now on."""
    number = row_number((await json_body(request)).get("id"))
    if number is None:
        raise HttpProblem(400, "bad-id", "Name the version by its id.")
    gateway: Gateway = request.app.state.gateway
    row = await run_in_threadpool(gateway.index.make_current, number, principal_of(request).subject)
    return JSONResponse({"instances": [await run_in_threadpool(_row, gateway, row)]})


def row_number(value: object) -> int | None:
    """A row's number from JSON or a form; None for what can be none (a database's integer has 64 bits)."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 18:
        return int(value)
    if type(value) is float and value.is_integer():  # JSON makes no difference between 1 and 1.0
        value = int(value)
    return value if type(value) is int and 0 <= value < 1 << 62 else None


def _row(gateway: Gateway, row: InstanceRow) -> dict[str, Any]:
    shown: dict[str, Any] = {name: getattr(row, name) for name in ROW_FIELDS}
    shown["global_part"] = gateway.index.facts(row.id).get("global_part") or {}
    forwards = gateway.index.forwards(instance_id=row.id)
    shown["forwards"] = [
        {
            "id": item.id,
            "destination": item.destination,
            "state": item.state,
            "attempts": item.attempts,
            "reason": item.reason,
        }
        for item in forwards
    ]
    return shown


async def failures(request: Request) -> Response:
    """GET /api/failures: failures and pass-throughs grouped by kind and reason, each with up to 100 ids."""
    groups = await run_in_threadpool(request.app.state.gateway.index.failures)
    return JSONResponse({"failures": [asdict(group) for group in groups]})


async def destinations(request: Request) -> Response:
    """GET /api/destinations: each with its backlog, its circuit, and what its probe found, object by object."""
    rows = await run_in_threadpool(overview_of_destinations, request.app.state.gateway)
    return JSONResponse({"destinations": rows})


async def forwards(request: Request) -> Response:
    """GET /api/forwards?state=WAITING|SENT|COMMITTED|DEAD: dead letters unless another state is asked for."""
    wanted = request.query_params.get("state", ForwardState.DEAD.value).upper()
    if wanted not in list(ForwardState):
        raise HttpProblem(400, "bad-state", f"state is one of {', '.join(ForwardState)}.")
    gateway: Gateway = request.app.state.gateway
    rows = await run_in_threadpool(lambda: gateway.index.forwards(state=ForwardState(wanted), limit=1000))
    return JSONResponse({"forwards": [asdict(row) for row in rows]})


async def commitments(request: Request) -> Response:
    """GET /api/commitments?state=...: storage commitment transactions in both roles, newest first."""
    wanted = request.query_params.get("state", "").upper()
    if wanted and wanted not in list(CommitmentState):
        raise HttpProblem(400, "bad-state", f"state is one of {', '.join(CommitmentState)}.")
    gateway: Gateway = request.app.state.gateway
    state = CommitmentState(wanted) if wanted else None
    rows = await run_in_threadpool(lambda: gateway.index.commitments(state, limit=1000))
    return JSONResponse({"commitments": [asdict(row) for row in rows]})


async def commitments_replay(request: Request) -> Response:
    """POST /api/commitments/replay {"id": ...}: the requester is told the answer (again)."""
    number = row_number((await json_body(request)).get("id"))
    if number is None:
        raise HttpProblem(400, "bad-id", "Name the transaction by its id.")
    gateway: Gateway = request.app.state.gateway
    row = await run_in_threadpool(gateway.index.commitment_replay, number, principal_of(request).subject)
    return JSONResponse({"commitments": [asdict(row)]})


async def json_body(request: Request) -> dict[str, Any]:
    """A small JSON object. Raises HttpProblem 413, 400."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY:
            raise HttpProblem(413, "body-too-large", "The body is a small JSON object.")
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise HttpProblem(400, "bad-json", "The body is a small JSON object.")
    return body


async def failures_replay(request: Request) -> Response:
    """POST /api/failures/replay {"reason": ...} or {"id": ...}: the instances are worked on again, attempts counted
    anew.
    """
    body = await json_body(request)
    actor = principal_of(request).subject
    count = await run_in_threadpool(
        replay_failures, request.app.state.gateway, actor, reason=body.get("reason"), instance_id=body.get("id")
    )
    return JSONResponse({"replayed": count})


def replay_failures(gateway: Gateway, actor: str, *, reason: Any = None, instance_id: Any = None) -> int:
    """Retry instances waiting after a failure, by id or by reason. Raises NotFound if there are none."""
    if (number := row_number(instance_id)) is not None:
        ids: tuple[int, ...] = (number,)
    else:
        ids = tuple(gateway.index.failed_for(str(reason)))
    if not ids:
        raise NotFound("no-such-failure", "There is no failure of that kind to replay.")
    for number in ids:
        gateway.index.retry(number, actor)
    return len(ids)


async def forwards_replay(request: Request) -> Response:
    """POST /api/forwards/replay: dead letters are sent again. {"forward": id}, {"forwards": [id, ...]}, {"destination":
    name} and/or {"reason": word}, or {"all": true}.
    """
    body = await json_body(request)
    actor = principal_of(request).subject
    count = await run_in_threadpool(_replay_asked, request.app.state.gateway, actor, body)
    return JSONResponse({"replayed": count})


def _replay_asked(gateway: Gateway, actor: str, body: dict[str, Any]) -> int:
    named = body.get("forwards")
    if isinstance(named, list):
        numbers = [row_number(each) for each in named]
        if None in numbers or not numbers:
            raise HttpProblem(400, "bad-id", "forwards is a list of numbers.")
        return sum(replay_forwards(gateway, actor, forward_id=number) for number in numbers)
    everything = body.get("all") is True
    return replay_forwards(
        gateway, actor, forward_id=body.get("forward"), destination=body.get("destination"), reason=body.get("reason"),
        everything=everything,
    )  # fmt: skip


def replay_forwards(
    gateway: Gateway,
    actor: str,
    *,
    forward_id: Any = None,
    destination: Any = None,
    reason: Any = None,
    everything: bool = False,
) -> int:
    """Replay dead letters: one, those of a destination and/or for a reason, or all. NotFound if there are none."""
    ids: list[int] = []
    if (number := row_number(forward_id)) is not None:
        ids = [number]
    elif everything or isinstance(destination, str) or isinstance(reason, str):
        ids = gateway.index.dead_letters(
            destination if isinstance(destination, str) else None, reason if isinstance(reason, str) else None
        )
    if not ids:
        raise NotFound("no-such-dead-letter", "There is no dead letter of that kind to replay.")
    for number in ids:
        gateway.index.forward_replay(number, actor)
    return len(ids)


async def metrics(request: Request) -> Response:
    """GET /metrics: what the processes of this host counted, and the gauges of index and host."""
    gateway: Gateway = request.app.state.gateway
    depths, parts = partial(queue_depths, gateway), partial(dependencies_up, gateway)
    text = await run_in_threadpool(exposition, gateway, depths, parts)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


ROUTES: tuple[RouteSpec, ...] = (
    ("GET", "/api/status", status),
    ("GET", "/api/instances", instances),
    ("POST", "/api/instances/choose", choose),
    ("GET", "/api/failures", failures),
    ("POST", "/api/failures/replay", failures_replay),
    ("GET", "/api/destinations", destinations),
    ("GET", "/api/forwards", forwards),
    ("POST", "/api/forwards/replay", forwards_replay),
    ("GET", "/api/commitments", commitments),
    ("POST", "/api/commitments/replay", commitments_replay),
    ("GET", "/metrics", metrics),
)
