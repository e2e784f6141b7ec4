"""The answer to a store request: one line per part, in DICOM JSON (PS3.18 10.5.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse, Response

from service.dicomxml import native_model
from service.media import XML
from service.problems import problem_response

__all__ = ["DICOM_JSON", "Outcome", "answer", "instance_url"]

DICOM_JSON = "application/dicom+json"
PRIVATE_CREATOR = "PALIMPSEST STORE 1"


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


def answer(outcomes: list[Outcome], url: Callable[..., str], media: str = DICOM_JSON) -> Response:
    """The Store Instances response (PS3.18 10.5.3), in DICOM JSON, or XML where that is `media`: 200 all stored, 202
    some, 409 none; 413 or 507 when that was the one reason.
    """
    failed = [outcome for outcome in outcomes if outcome.failure]
    if failed and len(failed) == len(outcomes):
        statuses = {outcome.http_status for outcome in failed}
        if len(statuses) == 1 and (status := statuses.pop()) in (413, 503, 507):
            headers = {"Retry-After": "60"} if status != 413 else None
            return problem_response(status, failed[0].reason, "No instance was stored.", headers=headers)
    status = 200 if not failed else 202 if len(failed) < len(outcomes) else 409
    body = _body(outcomes, url)
    if media == XML:
        return Response(native_model(body), status, media_type=XML)
    return JSONResponse(body, status, media_type=media)


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


def instance_url(base: str, study: str, series: str = "", instance: str = "") -> str:
    """The WADO-RS URL of a study, series or instance."""
    url = f"{base}/dicomweb/studies/{study}"
    if series:
        url += f"/series/{series}"
    return url + (f"/instances/{instance}" if instance else "")
