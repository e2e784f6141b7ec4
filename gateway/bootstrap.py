"""The one composition root: settings in, a Gateway out. Nothing is connected before it is used."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.archive import ArchiveStore, FilesystemArchive
from gateway.blobs import BlobStore, storage_errors
from gateway.index import Index
from gateway.jobs import CeleryQueue, JobQueue
from gateway.keys import KeyRing
from gateway.policy import Policy
from gateway.policy_file import load_policy
from gateway.settings import Settings, load_settings
from gateway.spool import Spool


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the rooms work with. One per process, built after a fork; closed by `close`."""

    settings: Settings
    index: Index
    spool: Spool
    candidates: BlobStore
    archive: ArchiveStore
    keys: KeyRing
    queue: JobQueue
    policy: Policy

    def close(self) -> None:
        """Close database and broker connections."""
        self.queue.close()
        self.index.close()


def build(
    settings: Settings | None = None, *, queue: JobQueue | None = None, archive: ArchiveStore | None = None
) -> Gateway:
    """Make the folders, bring the database up to date, open (or create) the key ring.

    The ring is created only while nothing was archived yet: a lost ring must not be replaced unnoticed. Raises
    Unavailable, OutOfResources, PolicyRefused (key ring permissions or place), BadPolicy (policy file).
    """
    settings = settings or load_settings()
    destinations = [destination.name for destination in settings.destinations]
    policy = load_policy(settings.policy_file, settings.home, destinations)  # first: a wrong one changes nothing
    with storage_errors():
        for folder in settings.folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    index = Index(settings.database)
    index.create()
    keys = KeyRing.load_or_create(
        settings.keys_dir, archive_dir=settings.archive_dir, create=not index.anything_archived()
    )
    return Gateway(
        settings=settings,
        index=index,
        spool=Spool(settings),
        candidates=BlobStore(settings.candidates_dir),
        archive=archive or FilesystemArchive(settings.archive_dir),
        keys=keys,
        queue=queue or CeleryQueue(settings),
        policy=policy,
    )
