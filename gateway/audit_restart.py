"""A trail that ended with its database: what was kept of it outside stays as evidence, and the new trail names it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

from gateway.audit import AuditEvent
from gateway.audit_notary import ANCHORS, heads_folder
from gateway.blobs import storage_errors, sync_folder
from gateway.bootstrap import Gateway

__all__ = ["restart_trail", "set_aside"]

ENDED: Final = "-ended-"


def restart_trail(gw: Gateway, actor: str, reason: str) -> None:
    """Put aside the heads of a trail that is gone, and begin the new one with an event that names their SHA-256.

    Raises Unavailable, OutOfResources.
    """
    aside, digest = set_aside(heads_folder(gw))
    set_aside(gw.settings.keys_dir / ANCHORS)
    detail = {"reason": reason, "kind": aside.name if aside else "none", "sha256": digest}
    gw.index.audit(AuditEvent("audit-restarted", actor, detail=detail))


def set_aside(kept: Path) -> tuple[Path | None, str]:
    """(where the heads are now, SHA-256 in hex of them), (None, '') if there are none."""
    with storage_errors():
        files = _files(kept)
        if not files:
            return None, ""
        digest = sha256(b"".join(sha256(path.read_bytes()).digest() for path in files)).hexdigest()
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        aside = kept.with_name(f"{kept.stem}{ENDED}{moment}{kept.suffix}")
        kept.rename(aside)
        sync_folder(kept.parent)
        return aside, digest


def _files(kept: Path) -> Sequence[Path]:
    if kept.is_file():
        return [kept]
    return sorted(path for path in kept.iterdir() if path.is_file()) if kept.is_dir() else []
