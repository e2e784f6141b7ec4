"""Restore certificates: what the index knows of a proof, as a signed statement (docs/certificate.md).

It names the received files' SHA-256 and original UIDs, for their owner: that digest is an oracle for names, so a
certificate is given to authenticated readers only, and never goes into the archive or to a destination.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from gateway.audit import AuditEvent
from gateway.bootstrap import Gateway
from gateway.certificate_format import FORMAT, VERSION, sign_statement
from gateway.errors import Gone, Unavailable
from gateway.index_certificate import AuditEntry, Proven
from gateway.index_rows import InstanceRow
from gateway.instance import State
from gateway.pseudonym import pseudonym_uid

__all__ = ["Recheck", "certify_instance", "certify_study", "require_proven", "software"]

_RETRY_SECONDS = 30.0
_DIGEST = 64  # hex digits


@dataclass(frozen=True, slots=True)
class Recheck:
    """What decoding the archive object anew has shown. at: seconds since the epoch; sha256: of the rebuilt file."""

    at: float
    decoders: tuple[str, ...]
    software: str
    weights: tuple[str, ...]
    sha256: str


Rechecks = Mapping[int, Recheck]


def certify_instance(gw: Gateway, instance_id: int, *, actor: str, rechecks: Rechecks | None = None) -> bytes:
    """The certificate of one instance. Raises NotFound; Unavailable ``not-proven-yet``."""
    return _issue(gw, "instance", [gw.index.proven_instance(instance_id)], actor, rechecks or {})


def certify_study(gw: Gateway, study_uid: str, *, actor: str, rechecks: Rechecks | None = None) -> bytes:
    """The certificate of all that was received of a study: one statement, so that nothing can be taken out of it.

    Raises NotFound; Unavailable ``not-proven-yet`` while one instance is not archived.
    """
    return _issue(gw, "study", gw.index.proven_study(study_uid), actor, rechecks or {})


def require_proven(found: Sequence[Proven]) -> None:
    """Raises Unavailable ``not-proven-yet``."""
    open_ = sum(not _is_proven(each) for each in found)
    if open_:
        raise Unavailable(
            "not-proven-yet", f"{open_} of {len(found)} instances are not proven and archived yet", _RETRY_SECONDS
        )


def _is_proven(found: Proven) -> bool:
    row = found.row
    if row.state not in (State.ARCHIVED, State.RELEASED) or row.verified_at is None or row.archive_digest is None:
        return False
    return row.shredded_at is not None or len(str(found.facts.get("restored_sha256", ""))) == _DIGEST


def _issue(
    gw: Gateway, subject: Literal["instance", "study"], found: Sequence[Proven], actor: str, rechecks: Rechecks
) -> bytes:
    require_proven(found)
    first = found[0].row
    if rechecks and any(each.row.shredded_at is not None for each in found):
        raise Gone("identity-shredded", "the identity was destroyed on purpose: no file can be rebuilt any more")
    keys = gw.keys.certify_keys()
    study = pseudonym_uid(first.study_uid, gw.keys.pseudonym_key()) if first.study_uid else None
    detail = {"kind": "recheck" if rechecks else "record", "level": subject, "count": len(found), "key_id": keys[-1].id}
    number = first.id if subject == "instance" else None
    entry = gw.index.audit_entry(AuditEvent("certified", actor, instance_id=number, study=study, detail=detail))
    statement: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "subject": subject,
        "study_instance_uid": first.study_uid if subject == "study" else None,
        "issuer": gw.settings.ae_title,
        "issued_at": _time(gw.index.now()),
        "software": software(),
        "audit": _entry(entry),
        "count": len(found),
        "instances": [_instance(each, rechecks.get(each.row.id)) for each in found],
    }
    return sign_statement(statement, keys)


def _instance(found: Proven, recheck: Recheck | None) -> dict[str, Any]:
    row, facts = found.row, found.facts
    return {
        "number": row.id,
        "current": row.current,
        "received": _received(row) if row.shredded_at is None else None,
        "archived": {
            "object_uid": row.envelope_uid,
            "sha256": row.archive_digest,
            "member": row.member,
            "form": str(row.form),
            "coder": row.coder,
            "at": _time(row.archived_at),
        },
        "proven": {
            "by": "another process, from the archive object and the key ring alone",
            "software": facts.get("verifier"),
            "decoders": facts.get("decoders"),
            "weights_sha256": facts.get("weights"),
            "restored_sha256": facts.get("restored_sha256"),
            "pixel_sha256": facts.get("pixel_sha256") or None,
            "exact": _exact(row, facts),
            "at": _time(row.verified_at),
            "audit": _entry(found.entry) if found.entry else None,
        },
        "rechecked": _recheck(recheck) if recheck else None,
        "shredded_at": _time(row.shredded_at) if row.shredded_at is not None else None,
    }


def _received(row: InstanceRow) -> dict[str, Any]:
    return {
        "sop_class_uid": row.sop_class,
        "sop_instance_uid": row.sop_uid,
        "study_instance_uid": row.study_uid,
        "series_instance_uid": row.series_uid,
        "transfer_syntax_uid": row.transfer_syntax,
        "sha256": row.digest,
        "dataset_sha256": row.dataset_digest,
        "bytes": row.size,
        "at": _time(row.received_at),
    }


def _exact(row: InstanceRow, facts: Mapping[str, Any]) -> str | None:
    """What was equal: the whole file, or, where its pixels came compressed, every pixel and every other byte."""
    if row.shredded_at is not None:
        return None
    return "file" if facts.get("restored_sha256") == row.digest else "pixels and all other bytes"


def _recheck(recheck: Recheck) -> dict[str, Any]:
    return {
        "software": recheck.software,
        "decoders": list(recheck.decoders),
        "weights_sha256": list(recheck.weights),
        "restored_sha256": recheck.sha256,
        "at": _time(recheck.at),
    }


def _entry(entry: AuditEntry) -> dict[str, Any]:
    return {"seq": entry.seq, "hash": entry.hash}


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds or 0.0, UTC).isoformat(timespec="milliseconds")


@cache
def software() -> str:
    """Name and version, as certificates and audit messages show them."""
    try:
        return f"palimpsest {version('palimpsest')}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "palimpsest (source tree)"
