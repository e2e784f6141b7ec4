"""The restore drill: does this backup alone open what is archived? Tried on random objects, in a throw-away ring."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gateway import keyfile
from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError
from gateway.index_rows import InstanceRow
from gateway.keybackup import backup_time, read_backup
from gateway.keys import KeyRing
from worker.restore import restore

__all__ = ["DrillReport", "drill"]


@dataclass(frozen=True, slots=True)
class DrillReport:
    """opened: objects restored bit for bit. closed: shredded ones that stayed closed. failed: (instance id, reason).

    keys: in the backup, patients' included. at: when the backup's keys were copied; later objects were not drawn.
    """

    at: str
    keys: int
    opened: int
    closed: int
    failed: tuple[tuple[int, str], ...]

    @property
    def ok(self) -> bool:
        """Whether every object did what it should. An archive without objects proves nothing, and is not ok."""
        return not self.failed and self.opened + self.closed > 0


def drill(gateway: Gateway, backup: Path, passphrase: str, count: int) -> DrillReport:
    """Restore `backup` into a ring of its own, and open up to `count` random archived objects with that ring alone.

    The ring lies in the run folder, owner-only, and is overwritten and removed afterwards. Raises PolicyRefused for a
    backup that does not open.
    """
    at = backup_time(read_backup(backup))
    rows = gateway.index.archived_sample(count, datetime.fromisoformat(at).timestamp())
    with _throw_away(gateway.settings.run_dir) as folder:
        ring = KeyRing.restore(backup, passphrase, folder)
        verdicts = [(row, _try(gateway, row, ring)) for row in rows]
        keys = len(ring.list()) + len(ring.patients.ids())
    good = [row for row, reason in verdicts if not reason]
    closed = sum(1 for row in good if row.shredded_at is not None)
    failed = tuple((row.id, reason) for row, reason in verdicts if reason)
    return DrillReport(at, keys, len(good) - closed, closed, failed)


def _try(gateway: Gateway, row: InstanceRow, ring: KeyRing) -> str:
    """'' when the object did what it should, else a machine word."""
    try:
        envelope = gateway.archive.map(str(row.archive_key), str(row.archive_digest))
        found = restore(envelope, ring, member=row.member)
    except PalimpsestError as error:
        return "" if row.shredded_at is not None and error.reason == "seal-refused" else error.reason
    if row.shredded_at is not None:
        return "shredded-opens"
    proven = (row.digest, gateway.index.facts(row.id).get("restored_sha256"))
    return "" if found.sha256 in proven else "restore-digest"


@contextmanager
def _throw_away(run_dir: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="drill-", dir=run_dir) as name:  # mode 0700
        folder = Path(name) / "keys"
        try:
            yield folder
        finally:
            for path in folder.rglob("*"):
                if path.is_file():
                    keyfile.erase(path)
