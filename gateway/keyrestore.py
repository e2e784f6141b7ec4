"""A ring from a backup: under whatever master is in use now, never with a key that was destroyed, never losing one.

Restoring is also how a ring moves to another master: the backup holds every secret under its passphrase alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gateway import keycoverage, keyfile, keystate
from gateway.errors import PalimpsestError, PolicyRefused, Unavailable
from gateway.keybackup import Contents
from gateway.keystate import Backup, Key, RingState, UnknownKey
from gateway.masters import Master, open_seal, seal_with, state_master
from gateway.patientkeys import LOCK, PatientKeys, Tombstone

__all__ = ["install"]


def install(
    target: Path,
    contents: Contents,
    proof: Backup,
    *,
    master: Master | None,
    overwrite: bool,
    shredded: Collection[str],
) -> None:
    """Write ring, patient keys and tombstones into the folder `target`.

    master: the remote one in use, None for a file ring. shredded: ids of destroyed keys known from elsewhere (the audit
    trail). An existing ring is refused unless `overwrite`, and then kept beside; its patient keys that the backup lacks
    are taken over. Raises PolicyRefused 'keys-exist', 'keys-conflict', permissions; Unavailable.
    """
    state = replace(
        contents.state, backups=(*contents.state.backups, proof), seal=seal_with(master) if master else None
    )
    try:
        keyfile.make_folder(target)
        keyfile.check_owner_only(target)
        with keyfile.locked(target) as lock, keyfile.locked(target, LOCK):
            old = _existing(target, overwrite)
            patients = PatientKeys(target, master or state_master(lambda: state))
            stones = _tombstones(contents, patients, shredded)
            replaced = _opened(old, master)
            keys = _patient_keys(target, contents, [patients, *_readers(target, replaced, master)], stones)
            state = replace(state, backups=(*_other_backups(replaced, state), *state.backups))
            for stone in stones.values():
                patients.bury(stone)
                patients.erase(stone.id)
            for key in keys:
                patients.add(key)
            if old is not None:
                kept = f"{keyfile.RING_FILE}.replaced-{_now().replace(':', '')}-{os.urandom(3).hex()}"
                keyfile.write_new(target / kept, old)
            keycoverage.write(target, proof.sha256, (key.id for key in contents.patients))
            # Last: stopped before this, the old ring is still here, and the same restore opens what is under either.
            keyfile.write_atomic(target / keyfile.RING_FILE, keystate.dump(state))
            keyfile.mark_created(lock)
    except OSError:
        raise Unavailable("keys-unwritable", "the key folder cannot be written") from None


def _existing(target: Path, overwrite: bool) -> bytes | None:
    ring = target / keyfile.RING_FILE
    if not ring.exists():
        return None
    if not overwrite:
        raise PolicyRefused(
            "keys-exist", "there is a key ring already: to restore over it say --overwrite (the old one is kept beside)"
        )
    return ring.read_bytes()


def _opened(old: bytes | None, master: Master | None) -> RingState | None:
    """The ring that is replaced, if there is one and it opens."""
    if old is None:
        return None
    try:
        return keystate.parse(old, open_seal(master) if master else None)
    except PalimpsestError:  # damaged, or under a master that is not in use any more: that is why it is replaced
        return None


def _readers(target: Path, replaced: RingState | None, master: Master | None) -> Iterator[PatientKeys]:
    """The patient keys as the ring that is replaced opens them."""
    if replaced is not None:
        yield PatientKeys(target, master if replaced.seal and master else state_master(lambda: replaced))


def _other_backups(replaced: RingState | None, state: RingState) -> list[Backup]:
    """Backups that only the replaced ring knew: they may hold keys that are shredded one day, and prove nothing here.

    Their ids are left out, because after a rotation one id may stand for another key there.
    """
    known = {each.sha256 for each in state.backups}
    return [replace(each, ids=()) for each in (replaced.backups if replaced else ()) if each.sha256 not in known]


def _tombstones(contents: Contents, patients: PatientKeys, shredded: Collection[str]) -> dict[str, Tombstone]:
    """All that is known of destroyed keys; what lies in the folder wins, being the newest."""
    found = {key_id: Tombstone(key_id, "", _now(), b"") for key_id in shredded}
    found |= {stone.id: stone for stone in contents.tombstones}
    return found | {stone.id: stone for stone in patients.tombstones()}


def _patient_keys(target: Path, contents: Contents, readers: list[PatientKeys], stones: Collection[str]) -> list[Key]:
    """What to write: the backup's keys, and those in the folder that it lacks, as far as one of `readers` opens them.

    A key in the folder that nobody opens is left where it is: `palimpsest keys doctor` names it.
    """
    keys = {key.id: key for key in contents.patients if key.id not in stones}
    for key_id in readers[0].ids():
        if key_id in stones:
            continue
        found = next((key for key in (_try(reader, key_id) for reader in readers) if key), None)
        if found is not None and keys.setdefault(key_id, found).secret != found.secret:
            raise PolicyRefused(
                "keys-conflict",
                f"{key_id} in {target} is another key than the backup's, and both may have sealed something: restore "
                "into an empty folder, and keep this one",
            )
    return list(keys.values())


def _try(reader: PatientKeys, key_id: str) -> Key | None:
    try:
        return reader.key(key_id)
    except (UnknownKey, Unavailable):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
