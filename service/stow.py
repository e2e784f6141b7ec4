"""STOW-RS: store instances (PS3.18 10.5). Bytes stream to the spool; each part is judged on its own.

A part's failure never touches its neighbours: it is dropped, named in the answer, and the next part goes on.  Success
for an instance means what it means for C-STORE, because both doors call `gateway.accept.accept_instance`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from gateway.accept import accept_instance
from gateway.blobs import storage_errors
from gateway.bootstrap import Gateway
from gateway.errors import InvalidInstance, PalimpsestError
from gateway.part10 import Peek, peek
from gateway.uids import UID, parse_uid
from service.access import RouteSpec, principal_of
from service.media import DICOM, accepts
from service.multipart import MultipartError, PartBegin, PartData, PartEnd, RelatedParser, parse_media_type
from service.problems import HttpProblem, problem_response
from service.trail import refused

__all__ = ["ROUTES", "Outcome", "StoreRequest", "answer"]

DICOM_JSON = "application/dicom+json"
#: Bytes gathered before a thread takes them: one hop a mebibyte instead of one per network read.
BATCH_BYTES = 1 << 20
SPACE_CHECK_BYTES = 16 << 20
MEDIUM_PRIORITY = 5
UNEXPECTED_FAILURE = 0x0110  # PS3.7 C.5.11: processing failure
PRIVATE_CREATOR = "PALIMPSEST STORE 1"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one part. `failure` is 0 or the Failure Reason (0008,1197); UIDs are '' where the part did not
    tell them.
    """

    failure: int = 0
    http_status: int = 200
    reason: str = ""
    sop_class: str = ""
    sop_instance: str = ""
    study: str = ""
    series: str = ""


@dataclass
class _Part:
    """A part under way. Without a file only when none could be made; then `error` says why."""

    path: Path | None = None
    file: BinaryIO | None = None
    size: int = 0
    next_check: int = 0
    error: PalimpsestError | None = None


@dataclass
class StoreRequest:
    """One STOW request, fed with body bytes; runs in worker threads, one call at a time."""

    gateway: Gateway
    actor: str
    study: UID | None
    parser: RelatedParser | None  # None: the body is one bare instance
    outcomes: list[Outcome] = field(default_factory=list)
    _part: _Part | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body; raises MultipartError."""
        if self.parser is None:
            if self._part is None:
                self._begin(PartBegin({"content-type": DICOM}))
            self._write(data)
            return
        for event in self.parser.feed(data):
            match event:
                case PartBegin():
                    self._begin(event)
                case PartData(run):
                    self._write(run)
                case PartEnd():
                    self._end()

    def close(self) -> None:
        """The body ended; raises MultipartError if that was too early."""
        if self.parser is not None:
            self.parser.close()
        elif self._part is not None:
            self._end()

    def abandon(self) -> None:
        """Remove the file of a part that never came to its end. Safe to call at any time."""
        part, self._part = self._part, None
        if part is not None and part.file is not None and part.path is not None:
            part.file.close()
            part.path.unlink(missing_ok=True)

    def _begin(self, event: PartBegin) -> None:
        part = self._part = _Part()
        try:
            part.path = self.gateway.spool.incoming()
            part.file = part.path.open("wb", buffering=0)
            if parse_media_type(event.headers.get("content-type", DICOM)).essence != DICOM:
                raise InvalidInstance("part-media-type", "A part is not application/dicom.")
        except PalimpsestError as error:
            part.error = error

    def _write(self, data: bytes) -> None:
        part = self._part
        assert part is not None
        part.size += len(data)
        if part.error is not None or part.file is None:
            return
        try:
            self._append(part, part.file, data)
        except PalimpsestError as error:
            part.error = error
            part.file.truncate(0)

    def _append(self, part: _Part, file: BinaryIO, data: bytes) -> None:
        self.gateway.spool.check_size(part.size)
        if part.size >= part.next_check:
            self.gateway.spool.check_space()
            part.next_check = part.size + SPACE_CHECK_BYTES
        with storage_errors(), memoryview(data) as view:
            written = 0
            while written < len(data):  # unbuffered: one write(2) may take less than it was given
                written += file.write(view[written:])

    def _end(self) -> None:
        part = self._part
        assert part is not None
        try:
            if part.file is not None:
                part.file.close()
            self.outcomes.append(self._judge(part))
        finally:
            self.abandon()

    def _judge(self, part: _Part) -> Outcome:
        seen: Peek | None = None
        try:
            if part.error is not None or part.path is None:
                assert part.error is not None
                refused(self.gateway, part.error, actor=self.actor, source="stow")
                raise part.error
            seen = _seen(part.path)
            accept_instance(
                self.gateway,
                part.path,
                source="stow",
                calling_ae=self.actor,
                priority=MEDIUM_PRIORITY,
                expected_study=self.study,
            )
        except PalimpsestError as error:
            log.warning("instance refused", extra={"reason": error.reason, "source": "stow"})
            status = 413 if error.reason == "object-too-large" else error.http_status
            return _outcome(seen, error.dimse_status, status, error.reason)
        except OSError as error:
            log.error("unexpected error in STOW", extra={"reason": type(error).__name__})
            return _outcome(seen, UNEXPECTED_FAILURE, 500, "internal-error")
        return _outcome(seen)


def _seen(path: Path) -> Peek | None:
    """The UIDs that the answer names the instance by; what is wrong with the file `accept_instance` says."""
    try:
        return peek(path)
    except PalimpsestError:
        return None


def _outcome(seen: Peek | None, failure: int = 0, status: int = 200, reason: str = "") -> Outcome:
    if seen is None:
        return Outcome(failure, status, reason)
    return Outcome(
        failure, status, reason, seen.sop_class_uid, seen.sop_instance_uid, seen.study_uid or "", seen.series_uid or ""
    )


def answer(outcomes: list[Outcome], url: Callable[..., str]) -> Response:
    """The Store Instances response (PS3.18 10.5.3): 200 all stored, 202 some, 409 none; 413 or 507 when that was the
    one reason.
    """
    failed = [outcome for outcome in outcomes if outcome.failure]
    if failed and len(failed) == len(outcomes):
        statuses = {outcome.http_status for outcome in failed}
        if len(statuses) == 1 and (status := statuses.pop()) in (413, 503, 507):
            headers = {"Retry-After": "60"} if status != 413 else None
            return problem_response(status, failed[0].reason, "No instance was stored.", headers=headers)
    status = 200 if not failed else 202 if len(failed) < len(outcomes) else 409
    return JSONResponse(_body(outcomes, url), status, media_type=DICOM_JSON)


def _body(outcomes: list[Outcome], url: Callable[..., str]) -> dict[str, Any]:
    body: dict[str, Any] = {}
    stored = [_stored_item(outcome, url) for outcome in outcomes if not outcome.failure]
    failed = [_failed_item(outcome) for outcome in outcomes if outcome.failure and outcome.sop_instance]
    other = [_failed_item(outcome) for outcome in outcomes if outcome.failure and not outcome.sop_instance]
    studies = {outcome.study for outcome in outcomes if outcome.study and not outcome.failure}
    if len(studies) == 1:
        body["00081190"] = {"vr": "UR", "Value": [url(studies.pop())]}
    for tag, items in (("00081198", failed), ("00081199", stored), ("0008119A", other)):
        if items:
            body[tag] = {"vr": "SQ", "Value": items}
    return body


def _stored_item(outcome: Outcome, url: Callable[..., str]) -> dict[str, Any]:
    item = _reference(outcome)
    if outcome.study and outcome.series:
        item["00081190"] = {"vr": "UR", "Value": [url(outcome.study, outcome.series, outcome.sop_instance)]}
    return item


def _failed_item(outcome: Outcome) -> dict[str, Any]:
    item = _reference(outcome) if outcome.sop_instance else {}
    item["00081197"] = {"vr": "US", "Value": [outcome.failure]}
    # The standard has no text here; a private element names the reason for people and for `palimpsest send`.
    item["00090010"] = {"vr": "LO", "Value": [PRIVATE_CREATOR]}
    item["00091001"] = {"vr": "LO", "Value": [outcome.reason]}
    return item


def _reference(outcome: Outcome) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [outcome.sop_class]},
        "00081155": {"vr": "UI", "Value": [outcome.sop_instance]},
    }


def _parser_for(request: Request) -> RelatedParser | None:
    media = parse_media_type(request.headers.get("content-type", ""))
    if media.essence == DICOM:
        return None
    if media.essence != "multipart/related" or media.parameters.get("type", DICOM).lower() != DICOM:
        raise HttpProblem(415, "unsupported-media-type", 'Send multipart/related; type="application/dicom".')
    return RelatedParser(media.parameters.get("boundary", ""))


async def store(request: Request) -> Response:
    """POST /dicomweb/studies and /dicomweb/studies/{study}."""
    accepts(request.headers.get("accept"), DICOM_JSON, "application/json")
    study = request.path_params.get("study")
    job = StoreRequest(
        request.app.state.gateway,
        principal_of(request).subject,
        parse_uid(study, "study-uid") if study else None,
        _parser_for(request),
    )
    try:
        await _receive(request, job)
    except MultipartError as error:
        if not any(not outcome.failure for outcome in job.outcomes):
            raise
        # What is stored stays stored, and is answered for; the broken rest is one more failure.
        job.outcomes.append(Outcome(0xC000, 400, f"multipart-{error.reason}"))
    finally:
        await run_in_threadpool(job.abandon)
    if not job.outcomes:
        raise HttpProblem(400, "no-instances", "The request holds no instance.")
    base = str(request.base_url).rstrip("/")
    return answer(job.outcomes, lambda *uids: instance_url(base, *uids))


async def _receive(request: Request, job: StoreRequest) -> None:
    batch = bytearray()
    async for chunk in request.stream():
        batch += chunk
        if len(batch) >= BATCH_BYTES:
            await run_in_threadpool(job.feed, bytes(batch))
            batch.clear()
    if batch:
        await run_in_threadpool(job.feed, bytes(batch))
    await run_in_threadpool(job.close)


def instance_url(base: str, study: str, series: str = "", instance: str = "") -> str:
    """The WADO-RS URL of a study, series or instance."""
    url = f"{base}/dicomweb/studies/{study}"
    if series:
        url += f"/series/{series}"
    return url + (f"/instances/{instance}" if instance else "")


ROUTES: tuple[RouteSpec, ...] = (
    ("POST", "/dicomweb/studies", store),
    ("POST", "/dicomweb/studies/{study}", store),
)
