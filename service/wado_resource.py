"""What every WADO-RS route does first: read the path, find the rows, negotiate, and write the audit event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from anyio import to_thread
from fastapi import Request

from gateway import metrics
from gateway.bootstrap import Gateway
from gateway.errors import Gone, NotFound
from gateway.index_rows import InstanceRow
from gateway.pseudonym import pseudonym_uid
from gateway.uids import parse_uid
from service.access import principal_of
from service.trail import record

__all__ = ["Target", "accept_of", "base_url", "instance_path", "read_event", "retrieving", "rows_of", "target_of"]

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """The UIDs of the path, checked."""

    study: str
    series: str | None
    instance: str | None


def target_of(request: Request) -> Target:
    """The resource that the path names. Raises BadUID."""
    path = request.path_params
    return Target(
        parse_uid(path["study"], "study-uid"),
        parse_uid(path["series"], "series-uid") if "series" in path else None,
        parse_uid(path["instance"], "sop-instance-uid") if "instance" in path else None,
    )


def accept_of(request: Request) -> str | None:
    """What the client accepts: the query parameter stands for the header (PS3.18 8.3.3.1)."""
    return request.query_params.get("accept") or request.headers.get("accept")


def rows_of(gateway: Gateway, target: Target) -> list[InstanceRow]:
    """The instances served under a path, in a stable order; raises NotFound, Gone."""
    if target.instance is None:
        rows = gateway.index.by_study(target.study, target.series)
    else:  # by its own UID: a viewer asks for every instance of a great series in turn
        row = gateway.index.by_sop(target.instance)
        rows = [row] if row and (row.study_uid, row.series_uid) == (target.study, target.series) else []
    if not rows:
        if _forgotten(gateway, target.study):
            raise Gone("identity-shredded", "What was stored under this path was destroyed on purpose.")
        raise NotFound("no-such-resource", "Nothing is stored under this path.")
    return sorted(rows, key=lambda row: (row.series_uid or "", row.id))


def _forgotten(gateway: Gateway, study: str) -> bool:
    """Whether instances of this study were shredded: they stand under the pseudonym of its UID."""
    rows = gateway.index.by_study(pseudonym_uid(study, gateway.keys.pseudonym_key()))
    return any(row.shredded_at is not None for row in rows)


def read_event(request: Request, rows: Sequence[InstanceRow], what: str) -> None:
    """The audit event of a read (PS3.15 A.5.3.6); failing to write it fails the read."""
    record(
        request.app.state.gateway,
        "retrieved",
        actor=principal_of(request).subject,
        outcome="success",
        instance_id=rows[0].id if len(rows) == 1 else None,
        study_uid=rows[0].study_uid,
        kind=what,
        count=len(rows),
    )
    metrics.RETRIEVED.labels(kind=what, outcome="success").inc(len(rows))


async def retrieving(request: Request, work: Callable[..., T], *args: object) -> T:
    """Run what may wait for the retrieve worker, in one of the threads set apart for that."""
    return await to_thread.run_sync(work, *args, limiter=request.app.state.retrieving)


def base_url(request: Request) -> str:
    """Scheme and host under which the client reaches this service, for references in answers.

    Some clients name the host without its port (dicomweb-client 0.61); of one that is this machine's own the port is
    known.
    """
    url, (address, port) = request.base_url, request.scope.get("server") or ("", None)
    if url.port is None and port not in (None, 80, 443) and url.hostname in (address, "localhost"):
        url = url.replace(port=port)
    return str(url).rstrip("/")


def instance_path(row: InstanceRow) -> str:
    """The path of an instance below the service's root."""
    return f"/dicomweb/studies/{row.study_uid}/series/{row.series_uid}/instances/{row.sop_uid}"
