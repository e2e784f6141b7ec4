"""`palimpsest export --all`: every original as a plain DICOM file, bit for bit, with a manifest of them.

Names of files are digests: nothing of a patient stands in them. The manifest does hold UIDs, and the files all of it:
keep the folder like the archive. An export that was stopped goes on: what is there with the right digest stays.
"""

from __future__ import annotations

import json
import mmap
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final

from gateway.audit import AuditEvent
from gateway.blobs import file_digest, storage_errors, sync_folder
from gateway.bootstrap import Gateway
from gateway.errors import Gone, IntegrityError, NotFound, PolicyRefused
from gateway.index_rows import InstanceRow
from worker.retrieve import write_original

__all__ = ["ExportReport", "export_all"]

MANIFEST, MARK = "manifest.jsonl", "palimpsest-export.json"
FORMAT: Final = "palimpsest-export"
PART: Final = ".part"


@dataclass(slots=True)
class ExportReport:
    """counts: 'written', 'there' (already), 'shredded' (left out), 'native' (received compressed, given back native).

    failed: (instance id, reason).
    """

    counts: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)


def export_all(
    gw: Gateway, folder: Path, actor: str, progress: Callable[[ExportReport], None] = lambda _: None
) -> ExportReport:
    """Write every instance, all versions, into `folder`: new, empty, or an export that was stopped.

    Raises PolicyRefused ``not-an-export``, OutOfResources, Unavailable: then run it again.
    """
    report = ExportReport()
    _begin(folder)
    with storage_errors(), (folder / f"{MANIFEST}{PART}").open("w", encoding="utf-8") as manifest:
        for row in gw.index.every_instance():
            line = _export(gw, folder, row, report)
            if line is not None:
                manifest.write(json.dumps(line, sort_keys=True) + "\n")
            progress(report)
        manifest.flush()
        os.fsync(manifest.fileno())
    with storage_errors():
        (folder / f"{MANIFEST}{PART}").replace(folder / MANIFEST)
        sync_folder(folder)
    written = report.counts["written"] + report.counts["there"]
    outcome: Any = "failure" if report.failed else "success"
    gw.index.audit(AuditEvent("exported", actor, outcome, detail={"count": written, "kind": "all"}))
    return report


def _begin(folder: Path) -> None:
    with storage_errors():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (folder / MARK).exists():
            return
        if any(folder.iterdir()):
            raise PolicyRefused("not-an-export", f"{folder} holds something else: name a new folder")
        folder.chmod(0o700)
        (folder / MARK).write_text(json.dumps({"format": FORMAT, "version": 1}), encoding="utf-8")


def _export(gw: Gateway, folder: Path, row: InstanceRow, report: ExportReport) -> dict[str, Any] | None:
    if row.shredded_at is not None:
        report.counts["shredded"] += 1
        return None
    restored = str(gw.index.facts(row.id).get("restored_sha256") or row.digest)
    for digest in dict.fromkeys((row.digest, restored)):
        if _is_there(folder / _name(digest), digest):
            report.counts["there"] += 1
            return _line(row, digest)
    try:
        digest = _written(gw, folder, row)
    except (Gone, IntegrityError, NotFound) as error:
        report.failed.append((row.id, error.reason))
        return None
    report.counts["written"] += 1
    report.counts["native"] += digest != row.digest
    return _line(row, digest)


def _written(gw: Gateway, folder: Path, row: InstanceRow) -> str:
    """Write one file under its digest, durably; `write_original` has compared it with what was recorded."""
    temporary = folder / f"{row.id}{PART}"
    hasher = sha256()
    try:
        with storage_errors(), temporary.open("wb") as file:

            def write(piece: bytes | memoryview | mmap.mmap, file: IO[bytes] = file) -> None:
                hasher.update(piece)
                file.write(piece)

            write_original(gw, row, write)
            file.flush()
            os.fsync(file.fileno())
        digest = hasher.hexdigest()
        target = folder / _name(digest)
        with storage_errors():
            target.parent.mkdir(exist_ok=True)
            temporary.replace(target)
            sync_folder(target.parent)
        return digest
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _name(digest: str) -> str:
    return f"{digest[:2]}/{digest}.dcm"


def _is_there(path: Path, digest: str) -> bool:
    """Whether an earlier run wrote this file whole."""
    try:
        with path.open("rb") as file:
            return file_digest(file) == digest
    except FileNotFoundError:
        return False


def _line(row: InstanceRow, digest: str) -> dict[str, Any]:
    """sha256: of the file; received_sha256: of what was received, another one where that was compressed."""
    return {
        "file": _name(digest), "sha256": digest, "received_sha256": row.digest, "exact": digest == row.digest,
        "sop_class": row.sop_class, "sop_uid": row.sop_uid, "study_uid": row.study_uid, "series_uid": row.series_uid,
        "received_syntax": row.transfer_syntax, "received_at": row.received_at, "calling_ae": row.calling_ae,
        "current": row.current, "conflict": row.conflict,
    }  # fmt: skip
