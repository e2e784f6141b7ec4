"""`palimpsest backup` and `palimpsest restore`: the database and the key ring, in one folder with a manifest.

What is newer than the backup is caught up with from the archive and the spool (worker/rebuild.py); a shredding that is
newer is done again. The archive itself is not in it: it is write-once, and copied by its own means.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from gateway.audit import AuditEvent
from gateway.audit_heads import last_head
from gateway.audit_notary import heads_folder
from gateway.audit_restart import restart_trail
from gateway.blobs import storage_errors, sync_folder
from gateway.bootstrap import Gateway, build
from gateway.databackup import Dumped, digest_of, dump_database, load_database
from gateway.errors import IntegrityError, PolicyRefused
from gateway.index import Index
from gateway.keybackup import check_passphrase, open_backup, read_backup
from gateway.keyfile import RING_FILE
from gateway.keys import KeyRing
from gateway.masters import open_master
from gateway.settings import Settings
from worker.pipeline import software
from worker.rebuild import RebuildReport, rebuild
from worker.reshred import shred_again

__all__ = ["Restored", "make_backup", "read_manifest", "restore_backup"]

MANIFEST, DATABASE, KEYS = "manifest.json", "database.jsonl.zst", "keys.backup"
FORMAT: Final = "palimpsest-backup"
#: what was shown under another identity is shown under its own again: somebody must know
LOST: Final = (
    "the database is that of a backup ({}): corrections, merges, revoked rejections and choices between versions that "
    "are newer are gone, enter them again"
)
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Restored:
    """rows: read from the backup; reshredded: instances forgotten again; caught_up: None where that was not wanted.

    ring: whether the key ring came from the backup (a living one stays).
    """

    rows: int
    ring: bool
    reshredded: int
    caught_up: RebuildReport | None


def make_backup(gw: Gateway, folder: Path, passphrase: str, actor: str) -> dict[str, Any]:
    """Write a backup into a new or empty folder; its manifest. The gateway may be at work.

    The keys are copied after the database, so every key that its rows name is in the backup. Raises PolicyRefused
    ``backup-exists``, ``passphrase-too-short``; OutOfResources, Unavailable.
    """
    check_passphrase(passphrase)
    with storage_errors():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise PolicyRefused("backup-exists", f"{folder} is not empty; backups are never overwritten")
        folder.chmod(0o700)
    dumped = dump_database(gw.index, folder / DATABASE)
    gw.keys.backup(folder / KEYS, passphrase)
    manifest = _manifest(gw, folder, dumped)
    if digest_of(folder / DATABASE) != (dumped.sha256, dumped.size):
        raise IntegrityError("backup-damaged", "the copy of the database does not read back as it was written")
    _write_durably(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    detail: dict[str, str | int] = {"count": dumped.rows["instance"], "sha256": dumped.sha256, "bytes": dumped.size}
    gw.index.audit(AuditEvent("backup-made", actor, detail=detail))
    return manifest


def _manifest(gw: Gateway, folder: Path, dumped: Dumped) -> dict[str, Any]:
    digest, size = digest_of(folder / KEYS)
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": software(),
        "database": gw.index.dialect,
        "audit_seq": dumped.seq,
        "rows": dict(dumped.rows),
        "files": {
            DATABASE: {"sha256": dumped.sha256, "size": dumped.size}, KEYS: {"sha256": digest, "size": size}
        },
    }  # fmt: skip


def _write_durably(path: Path, data: bytes) -> None:
    with storage_errors():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a backup whose files are what it says. Raises PolicyRefused ``backup-refused``,
    ``newer-release``, IntegrityError ``backup-damaged``.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {name: (str(each["sha256"]), int(each["size"])) for name, each in manifest["files"].items()}
        known = manifest["format"] == FORMAT and manifest["version"] == VERSION and set(files) == {DATABASE, KEYS}
        newer = manifest["format"] == FORMAT and int(manifest["version"]) > VERSION
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = newer = False
    if newer:
        raise PolicyRefused("newer-release", f"{folder} is of a newer release: install that one or a newer one")
    if not known:
        raise PolicyRefused("backup-refused", f"{folder} holds no finished backup of this program")
    for name, expected in files.items():
        if digest_of(folder / name) != expected:
            raise IntegrityError("backup-damaged", f"{name} is not what the manifest says")
    return dict(manifest)


def restore_backup(
    settings: Settings,
    folder: Path,
    passphrase: str,
    actor: str,
    *,
    catch_up: bool = True,
    progress: Callable[[RebuildReport], None] = lambda _: None,
) -> Restored:
    """Bring database and key ring back. A key ring that is here stays: it knows of all later shreddings.

    Raises PolicyRefused ``index-not-empty``, ``backup-refused``, ``newer-release``; IntegrityError ``backup-damaged``;
    Unavailable.
    """
    manifest = read_manifest(folder)
    open_backup(read_backup(folder / KEYS), passphrase)  # before anything is changed: is this the right passphrase?
    index = Index(settings.database)
    try:
        rows = load_database(index, folder / DATABASE, restoring=True)
        shredded = index.shredded_keys()
    finally:
        index.close()
    ring = not (settings.keys_dir / RING_FILE).exists()
    if ring:
        KeyRing.restore(
            folder / KEYS, passphrase, settings.keys_dir, archive_dir=settings.archive_dir,
            master=open_master(settings), shredded=shredded,
        )  # fmt: skip
    gw = build(settings, restoring=True)
    try:
        head = last_head(heads_folder(gw))
        if head is not None and head.seq > int(manifest["audit_seq"]):
            restart_trail(gw, actor, "database-restored")
        detail = {"count": rows.get("instance", 0), "sha256": manifest["files"][DATABASE]["sha256"]}
        gw.index.audit(AuditEvent("backup-restored", actor, detail=detail))
        forgotten = shred_again(gw, actor)
        gw.index.alert_raise("index-restored", "index", LOST.format(str(manifest["created"])[:32]), "warning")
        report = rebuild(gw, add=True, progress=progress) if catch_up else None
        gw.index.restore_over()
    finally:
        gw.close()
    return Restored(sum(rows.values()), ring, forgotten, report)
