"""The one composition root: settings in, a Gateway out. Nothing is connected before it is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gateway.archive import ArchiveStore, FilesystemArchive
from gateway.archive_s3 import S3Archive
from gateway.blobs import BlobStore, storage_errors
from gateway.errors import PolicyRefused
from gateway.groupcommit import GroupCommit
from gateway.index import Index
from gateway.index_rows import InstanceRow
from gateway.jobs import CeleryQueue, JobQueue
from gateway.keyfile import RING_FILE
from gateway.keys import KeyRing
from gateway.keyuse import note_use
from gateway.masters import open_master
from gateway.policy import Policy
from gateway.policy_file import check_recipients, load_policy, policy_path
from gateway.receipts import Receipt, receipts
from gateway.settings import Settings, load_settings
from gateway.spool import Spool
from gateway.transport import check_backends

UNFINISHED_RESTORE: Final = (
    "a restore was stopped before it forgot patients that were shredded after the backup: nothing is shown of it. Move "
    "the database aside and run `palimpsest restore` again, or finish this one by `palimpsest rebuild --add`"
)


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
    receipts: GroupCommit[Receipt, InstanceRow | None] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "receipts", receipts(self.spool, self.index))

    def close(self) -> None:
        """Close database and broker connections."""
        self.queue.close()
        self.index.close()


def build(
    settings: Settings | None = None,
    *,
    queue: JobQueue | None = None,
    archive: ArchiveStore | None = None,
    restoring: bool = False,
) -> Gateway:
    """Make the folders, bring the database up to date, open (or create) the key ring.

    The ring is created only while nothing was archived yet: a lost ring must not be replaced unnoticed. Raises
    Unavailable, OutOfResources, PolicyRefused (key ring permissions or place, insecure transport, ``newer-release``),
    BadPolicy (policy file). A restored backup in which shredded patients may stand again is refused
    (``restore-unfinished``) but to whoever is restoring.
    """
    settings = settings or load_settings()
    check_backends(settings)
    policy = read_policy(settings)  # first: a wrong one changes nothing
    with storage_errors():
        for folder in settings.folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    index = Index(settings.database)
    index.create()
    if not restoring and index.restore_unfinished():
        index.close()
        raise PolicyRefused("restore-unfinished", UNFINISHED_RESTORE)
    keys = KeyRing.load_or_create(
        settings.keys_dir,
        archive_dir=settings.archive_dir,
        create=not index.anything_archived(),
        master=open_master(settings),
    )
    keys.observer, keys.in_use = note_use, index.sealed_to
    return Gateway(
        settings=settings,
        index=index,
        spool=Spool(settings),
        candidates=BlobStore(settings.candidates_dir),
        archive=archive or open_archive(settings),
        keys=keys,
        queue=queue or CeleryQueue(settings),
        policy=policy,
    )


def open_archive(settings: Settings) -> ArchiveStore:
    """The archive that the settings name: a bucket, or the folder. Nothing is connected yet."""
    if settings.archive_s3 is not None:
        return S3Archive(settings, settings.archive_s3)
    return FilesystemArchive(settings.archive_dir)


def read_ring(settings: Settings) -> KeyRing:
    """The key ring under the settings' master, to read only; its uses are noted. Raises as `KeyRing.open_readonly`."""
    keys = KeyRing.open_readonly(settings.keys_dir, master=open_master(settings))
    keys.observer = note_use
    return keys


def read_policy(settings: Settings) -> Policy:
    """The policy in force. Raises BadPolicy."""
    return load_policy(settings.policy_file, settings.home, [each.name for each in settings.destinations])


def checked_policy(settings: Settings) -> Policy:
    """The policy, its recipients looked up in the key ring: what must hold before anything runs under it.

    Not a part of `build`, or nobody could add the recipient that is missing. Raises BadPolicy, Unavailable (ring
    damaged), PolicyRefused (its permissions).
    """
    policy = read_policy(settings)
    if policy.names_recipients:
        there = (settings.keys_dir / RING_FILE).exists()
        known = read_ring(settings).recipients() if there else ()
        check_recipients(policy, policy_path(settings.policy_file, settings.home), known)
    return policy
