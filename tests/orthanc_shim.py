"""A few routes that look like Orthanc's REST interface, in front of the product's own DICOMweb: for tests only.

The DICOMweb tests of other projects set their scene by them (upload, list, delete) and then talk DICOMweb. Run one
outside of this suite against

    python -m tests.orthanc_shim --home DIRECTORY --port 8042

Basic authentication with any name is taken; `/dicom-web/` is the product's `/dicomweb/`. Deleting hides an instance:
the gateway itself never deletes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import select, update
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.errors import PalimpsestError
from gateway.index_schema import attributes, instance
from gateway.part10 import peek
from gateway.settings import load_settings
from gateway.tokens import mint_token
from service.api import create_app
from tests.integration.test_service_wado import Working
from worker.indexing import index_instance

LEVELS = ("patients", "studies", "series", "instances")
PLAIN = {"Changes": [], "Exports": [], "Done": True, "Last": 0}


def identifier(*uids: str) -> str:
    """Orthanc's public identifier: SHA-1 of the identifiers of the levels, in five groups."""
    digest = hashlib.sha1("|".join(uids).encode()).hexdigest()
    return "-".join(digest[at : at + 8] for at in range(0, 40, 8))


class Shim:
    """The routes over one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    def known(self) -> dict[str, tuple[str, ...]]:
        """identifier -> (Patient ID, study, series and instance UID as far as the level goes), of what is shown."""
        columns = (attributes.c.patient_id, attributes.c.study_uid, attributes.c.series_uid, attributes.c.sop_uid)
        query = select(*columns).join(instance, instance.c.id == attributes.c.instance_id).where(instance.c.current)
        with self.gateway.index.read() as conn:
            rows = [tuple(str(value or "") for value in row) for row in conn.execute(query)]
        return {identifier(*row[:depth]): row[:depth] for row in rows for depth in range(1, 5)}

    async def listed(self, request: Request) -> Response:
        depth = LEVELS.index(request.url.path.strip("/")) + 1
        known = await run_in_threadpool(self.known)
        return JSONResponse([each for each, uids in known.items() if len(uids) == depth])

    async def upload(self, request: Request) -> Response:
        try:
            return JSONResponse(await run_in_threadpool(self._store, await request.body()))
        except PalimpsestError as error:
            return JSONResponse(error.problem(), error.http_status)

    def _store(self, data: bytes) -> dict[str, Any]:
        path = self.gateway.spool.incoming()
        path.write_bytes(data)
        shown = self.gateway.index.by_sop(peek(data).sop_instance_uid) is not None
        taken = accept_instance(self.gateway, path, source="stow", calling_ae="SHIM")
        path.unlink(missing_ok=True)
        index_instance(self.gateway, taken.row.id)
        with self.gateway.index.write() as conn:
            conn.execute(update(instance).where(instance.c.id == taken.row.id).values(current=True))
        for each, uids in self.known().items():
            if uids[3:] == (taken.row.sop_uid,):
                parents = {f"Parent{name}": identifier(*uids[:n]) for n, name in ((1, "Patient"), (2, "Study"))}
                status = "AlreadyStored" if shown else "Success"
                return {"ID": each, "Path": f"/instances/{each}", "Status": status, **parents}
        raise AssertionError("a stored instance is not shown")

    async def delete(self, request: Request) -> Response:
        known = await run_in_threadpool(self.known)
        uids = known.get(request.path_params["id"])
        if uids is None:
            return Response(status_code=404)
        await run_in_threadpool(self._hide, uids)
        return JSONResponse({})

    def _hide(self, uids: tuple[str, ...]) -> None:
        columns = (attributes.c.patient_id, attributes.c.study_uid, attributes.c.series_uid, attributes.c.sop_uid)
        mine = select(attributes.c.instance_id).where(*(c == uid for c, uid in zip(columns, uids, strict=False)))
        with self.gateway.index.write() as conn:
            conn.execute(update(instance).where(instance.c.id.in_(mine)).values(current=False))

    async def find(self, request: Request) -> Response:
        asked = json.loads(await request.body())
        level = {"Patient": "patient", "Study": "study", "Series": "series"}.get(asked["Level"], "instance")
        filters = {key: value for key, value in asked.get("Query", {}).items() if value not in ("", "*")}
        rows = await run_in_threadpool(self.gateway.index.search, level, filters, 1000)  # type: ignore[arg-type]
        keys = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        found = [identifier(*(str(row[key]) for key in keys if key in row)) for row in rows]
        return JSONResponse(found)

    async def nothing(self, request: Request) -> Response:
        return JSONResponse(PLAIN)

    async def system(self, request: Request) -> Response:
        return JSONResponse({"Name": "palimpsest", "Version": "1.12.0", "ApiVersion": 20, "DicomAet": "PALIMPSEST"})


class WithToken:
    """Whoever asks is the service: the tests know names and passwords only."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [pair for pair in scope.get("headers", []) if pair[0] != b"authorization"]
        headers.append((b"authorization", b"Bearer " + self.token.encode()))
        path = "/dicomweb" + scope["path"].removeprefix("/dicom-web").rstrip("/")
        moved = {**scope, "headers": headers, "path": path, "raw_path": path.encode(), "root_path": ""}
        await self.app(moved, receive, send)


def shim(gateway: Gateway) -> Starlette:
    """The application: Orthanc-like routes, and DICOMweb behind them."""
    routes, product = Shim(gateway), WithToken(create_app(gateway), mint_token(gateway, "service", "shim"))
    return Starlette(
        routes=[
            Route("/instances", routes.upload, methods=["POST"]),
            *(Route(f"/{level}", routes.listed) for level in LEVELS),
            *(Route(f"/{level}/{{id}}", routes.delete, methods=["DELETE"]) for level in LEVELS),
            *(Route(path, routes.nothing, methods=["GET", "DELETE"]) for path in ("/exports", "/changes")),
            Route("/tools/execute-script", routes.nothing, methods=["POST"]),
            Route("/tools/find", routes.find, methods=["POST"]),
            Route("/system", routes.system),
            Mount("/dicom-web", product),
            Mount("/dicomweb", product),
        ]
    )


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8042)
    arguments = parser.parse_args()
    queue = Working()
    queue.gateway = build(load_settings(home=arguments.home, watermark_bytes=1), queue=queue)
    uvicorn.run(shim(queue.gateway), host="127.0.0.1", port=arguments.port, access_log=False)


if __name__ == "__main__":
    main()
