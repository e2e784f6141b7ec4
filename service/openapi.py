"""The OpenAPI 3.1 document of the interfaces for programs, made from the routes that are served and their access rules.

Pages for people (`/admin`, `/viewer`) are not in it. It says nothing of any patient, so it needs no token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from gateway.audit_events import EVENTS
from gateway.audit_message import OUTCOMES
from gateway.audit_writer import FORMATS, MEDIA
from gateway.index_audit import MAX_FOUND
from gateway.instance import CommitmentState, ForwardState
from gateway.matching import COLUMNS, LEVELS, LISTED
from gateway.rendering import ANNOTATIONS, ICC
from gateway.tokens import Role
from service.access import RULES, RouteSpec
from service.media import DICOM, JSON, OCTETS, RELATED, XML
from service.problems import MEDIA_TYPE as PROBLEM

__all__ = ["ROUTES", "document"]

SHOWN: Final = ("/dicomweb/", "/api/", "/fhir/", "/healthz", "/readyz", "/metrics", "/openapi.json")
IMAGES: Final = ("image/jpeg", "image/png", "image/gif")
FRAMES: Final = (OCTETS, "image/jpeg", "image/jphc", "image/jp2", "image/jls", "image/jxl", "image/dicom-rle")
Schema = dict[str, Any]

_UID: Final[Schema] = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)*$", "maxLength": 64}
_PATH: Final[dict[str, Schema]] = {
    "study": _UID,
    "series": _UID,
    "instance": _UID,
    "frames": {"type": "string", "pattern": r"^[1-9][0-9]{0,5}(,[1-9][0-9]{0,5}){0,20}$"},
    "digest": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
    "path": {"type": "string", "pattern": "^[0-9A-F]{8}$"},
    "id": {"type": "integer", "minimum": 0, "maximum": 10**17 - 1},
}
_FRAME: Final[Schema] = {"type": "string", "pattern": "^[1-9][0-9]{0,5}$"}
_CLOCK: Final = "([01][0-9]|2[0-3])([0-5][0-9]){0,2}"
_DAY: Final = "[12][0-9]{3}(0[1-9]|1[0-2])(0[1-9]|1[0-9]|2[0-8])"
_VALUES: Final[dict[str, Schema]] = {
    "uid": {**_UID, "pattern": r"^[0-9]+(\.[0-9]+)*$"},
    "range": {"type": "string", "pattern": f"^({_DAY}(-({_DAY})?)?|-{_DAY})$"},
    "time": {"type": "string", "pattern": f"^({_CLOCK}(-({_CLOCK})?)?|-{_CLOCK})$"},
    "number": {"type": "integer", "minimum": -999_999_999_999, "maximum": 999_999_999_999},
    "text": {"type": "string", "pattern": r"^[^\x00-\x1f]*$", "maxLength": 1024},
    "name": {"type": "string", "pattern": r"^[^\x00-\x1f]*$", "maxLength": 1024},
}
_NUMBERS: Final[Schema] = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
_SWITCH: Final[Schema] = {"type": "string", "enum": ["true", "false"]}
_SEARCH: Final[dict[str, Schema]] = {
    "limit": _NUMBERS,
    "offset": _NUMBERS,
    "includefield": {"type": "string", "description": "Keywords or tags with commas between them, or all."},
    "fuzzymatching": _SWITCH,
    "emptyvaluematching": _SWITCH,
    "multiplevaluematching": _SWITCH,
}
_SIDE: Final = "[1-9][0-9]{0,2}"
_RENDERED: Final[dict[str, Schema]] = {
    "viewport": {"type": "string", "pattern": f"^{_SIDE},{_SIDE}$"},
    "window": {"type": "string", "pattern": "^-?[0-9]{1,4},[1-9][0-9]{0,3},(linear|linear-exact|sigmoid)$"},
    "quality": {"type": "integer", "minimum": 1, "maximum": 100},
    "annotation": {"type": "string", "enum": [*ANNOTATIONS, ",".join(ANNOTATIONS)]},
    "iccprofile": {"type": "string", "enum": list(ICC)},
}
_STATES: Final[dict[str, Schema]] = {
    "/api/forwards": {"type": "string", "enum": list(ForwardState)},
    "/api/commitments": {"type": "string", "enum": list(CommitmentState)},
}
_MOMENT: Final = "[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])(T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z)?"
_PAGED: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": MAX_FOUND}
_AUDIT: Final[dict[str, dict[str, Schema]]] = {
    "/api/audit": {"since": _PATH["id"], "format": {"type": "string", "enum": list(FORMATS)}},
    "/api/audit/search": {
        "patient": _VALUES["text"],
        "study": _VALUES["text"],
        "user": _VALUES["text"],
        "event": {"type": "string", "enum": sorted(EVENTS)},
        "outcome": {"type": "string", "enum": list(OUTCOMES)},
        "instance": _PATH["id"],
        "from": {"type": "string", "pattern": f"^{_MOMENT}$"},
        "to": {"type": "string", "pattern": f"^{_MOMENT}$"},
        "before": _PATH["id"],
        "limit": _PAGED,
    },
    "/fhir/AuditEvent": {
        "patient:identifier": _VALUES["text"],
        "entity:identifier": _VALUES["text"],
        "agent:identifier": _VALUES["text"],
        "subtype": {"type": "string", "enum": sorted(EVENTS)},
        "outcome": {"type": "string", "enum": list(OUTCOMES.values())},
        "date": {"type": "string", "pattern": f"^(ge|gt|le|lt){_MOMENT}$"},
        "_count": _PAGED,
        "_before": _PATH["id"],
    },
}
_OBJECT: Final[Schema] = {"type": "object"}
_OBJECTS: Final[Schema] = {"type": "array", "items": _OBJECT}
_ANYTHING: Final[Schema] = {}
_NUMBERED: Final[Schema] = {"type": "object", "properties": {"id": _PATH["id"]}, "required": ["id"]}
#: What is done to one row.
_BY_ID: Final = frozenset({"/api/instances/choose", "/api/commitments/replay"})


def document(routes: Iterable[RouteSpec], rules: Mapping[tuple[str, str], frozenset[Role]]) -> dict[str, Any]:
    """The document of these routes, as JSON-able data."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, _ in sorted(routes, key=lambda route: (route[1], route[0])):
        if not path.startswith(SHOWN):
            continue
        operations = paths.setdefault(re.sub(r"\{(\w+):path\}", r"{\1}", path), {})
        for name in ("get", "head") if method == "GET" else (method.lower(),):
            operations[name] = _operation(name, path, rules[(method, path)])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Palimpsest",
            "version": "1",
            "description": "DICOMweb (PS3.18) and what runs the gateway. Refusals are problem details (RFC 9457).",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Problem": _problem_schema()},
        },
    }


def _problem_schema() -> Schema:
    texts = {name: {"type": "string"} for name in ("type", "title", "detail", "reason")}
    return {
        "type": "object",
        "properties": {**texts, "status": {"type": "integer"}},
        "required": ["type", "title", "status", "detail", "reason"],
    }


def _operation(name: str, path: str, roles: frozenset[Role]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": f"{name} {path}",
        "parameters": [*_path_parameters(path), *_query_parameters(name, path)],
        "responses": {**_successes(name, path), **_refusals(name, path, roles)},
    }
    if name == "post":
        made["requestBody"] = _body(path)
    if roles:
        made["security"] = [{"bearer": []}]
        made["description"] = "Roles: " + ", ".join(sorted(roles))
    return made


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = re.findall(r"\{(\w+)", path)
    forms = {**_PATH, "frames": _FRAME} if path.endswith("/thumbnail") else _PATH
    return [
        {"name": name, "in": "path", "required": True, "schema": forms.get(name, {"type": "string"})} for name in names
    ]


def search_level(path: str) -> str | None:
    """The level that a QIDO-RS path searches; None for another path."""
    last = path.rsplit("/", 1)[-1]
    return {"studies": "study", "series": "series", "instances": "instance"}.get(last) if "/dicomweb/" in path else None


def _query_parameters(name: str, path: str) -> list[dict[str, Any]]:
    found: dict[str, Schema] = {}
    required: tuple[str, ...] = ()
    level = search_level(path)
    if name == "post":
        return []
    if level:
        depth = LEVELS.index(level)
        keys = {key: _VALUES[kind] for key, (_, home, kind) in COLUMNS.items() if LEVELS.index(home) <= depth}
        in_path = {"StudyInstanceUID"} if "{study}" in path else set()
        in_path |= {"SeriesInstanceUID"} if "{series}" in path else set()
        found = {**_SEARCH, **{key: form for key, form in keys.items() if key not in in_path}}
        found |= {"ModalitiesInStudy": _VALUES["text"], "SOPClassesInStudy": _VALUES["uid"]} if LISTED else {}
    elif path.endswith("/rendered"):
        found = _RENDERED
    elif path.endswith("/thumbnail"):
        found = {"viewport": _RENDERED["viewport"]}
    elif path == "/api/instances":
        found, required = {"digest": _PATH["digest"]}, ("digest",)
    elif path in _STATES:
        found = {"state": _STATES[path]}
    elif path in _AUDIT:
        found = _AUDIT[path]
    return [{"name": key, "in": "query", "required": key in required, "schema": form} for key, form in found.items()]


def _body(path: str) -> dict[str, Any]:
    if path.startswith("/dicomweb/"):
        binary: Schema = {"type": "string", "format": "binary"}
        kinds = (f'{RELATED}; type="{kind}"; boundary=B' for kind in (DICOM, JSON, XML))
        return {"required": True, "content": {kind: {"schema": binary} for kind in (DICOM, *kinds)}}
    form = _NUMBERED if path in _BY_ID else _OBJECT
    return {"required": True, "content": {"application/json": {"schema": form}}}


def _successes(name: str, path: str) -> dict[str, Any]:
    media = _media(name, path)
    content = {} if name == "head" else {"content": {kind: {"schema": form} for kind, form in media.items()}}
    made: dict[str, Any] = {"200": {"description": "What was asked for.", **content}}
    if search_level(path) and name != "post":
        made["204"] = {"description": "Nothing matches."}
    elif name == "post" and path.startswith("/dicomweb/"):
        made |= {"202": {"description": "Some were stored; the answer says which not, and why.", **content}}
        made |= {"409": {"description": "None was stored; the answer says why.", **content}}
    elif path.startswith("/dicomweb/"):
        made["206"] = {"description": "A range of bytes, or all that can be given of a study.", **content}
        made["304"] = {"description": "Not modified."}
    return made


def _media(name: str, path: str) -> dict[str, Schema]:
    related = {RELATED: _ANYTHING}
    if path == "/metrics":
        return {"text/plain": _ANYTHING}
    if path == "/api/audit":
        return dict.fromkeys(MEDIA.values(), _ANYTHING)
    if path.startswith("/fhir/"):
        return {"application/fhir+json": _OBJECT}
    if not path.startswith("/dicomweb/"):
        return {"application/json": _ANYTHING}
    if name == "post":
        return {JSON: _OBJECT, "application/json": _OBJECT, XML: _ANYTHING}
    if search_level(path) or path.endswith("/metadata"):
        return {JSON: _OBJECTS, "application/json": _OBJECTS, **related}
    if path.endswith(("/rendered", "/thumbnail")):
        return {**dict.fromkeys(IMAGES, _ANYTHING), **related}
    if "/bulkdata" in path or path.endswith("/frames/{frames}"):
        return {**dict.fromkeys(FRAMES, _ANYTHING), **related}
    return {DICOM: _ANYTHING, **related}


_REFUSALS: Final = {
    400: "The request is malformed; reason and detail say where.",
    401: "No token, or one that is not valid.",
    403: "The role of this token may not do that.",
    404: "There is no such thing.",
    406: "It cannot be given in a form that is accepted.",
    408: "The body stopped arriving.",
    409: "It contradicts what is there.",
    410: "It was here, and was destroyed on purpose.",
    413: "Too much at once.",
    415: "Not in this form.",
    416: "No such range.",
    500: "Bytes are not what their digest says; nothing was sent.",
    503: "Not now: Retry-After says when.",
    429: "Too many requests; Retry-After says when.",
    507: "No room.",
}


def _refusals(name: str, path: str, roles: frozenset[Role]) -> dict[str, Any]:
    if path in ("/healthz", "/openapi.json"):
        return {}
    if path == "/readyz":
        return {"503": {"description": _REFUSALS[503], "content": {"application/json": {"schema": _ANYTHING}}}}
    numbers = {400, 401, 403, 429, 500, 503} if roles else {400, 429, 500, 503}
    if "{" in path or name == "post" or path == "/api/instances":
        numbers |= {404, 409, 410}
    if path.startswith("/dicomweb/"):
        numbers |= {406, 408, 413, 415, 507} if name == "post" else {406, 413, 416}
    elif name == "post":
        numbers |= {413}
    if name == "post" and path.startswith("/dicomweb/"):
        numbers.discard(409)  # said by `_successes`: its answer is a store response
    schema = {"$ref": "#/components/schemas/Problem"}
    content = {} if name == "head" else {"content": {PROBLEM: {"schema": schema}}}
    return {str(number): {"description": _REFUSALS[number], **content} for number in sorted(numbers)}


async def openapi(request: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(document(request.app.state.routes, RULES))


ROUTES: tuple[RouteSpec, ...] = (("GET", "/openapi.json", openapi),)
