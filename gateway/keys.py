"""The key ring: keys by id, in one owner-only file outside the archive.

`KeyRing.load_or_create(folder)` for the services and the CLI, `KeyRing.open_readonly(folder)` for the verifier.
A change made by one process is seen by all (the file is read again when its time or size changes). Old versions stay:
`find_*` gives them by id for as long as something sealed with them exists.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from gateway import keybackup, keyfile, keystate
from gateway.errors import NotFound, PalimpsestError, PolicyRefused, Unavailable
from gateway.keystate import KINDS, Backup, Key, RingState

__all__ = ["KINDS", "KeyRing", "KeyRow", "UnknownKey"]


class UnknownKey(NotFound, LookupError):
    """No key of this id in the ring: sealed by another ring, or the ring was restored from an older backup."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One line of `palimpsest keys list`; no secret in it."""

    id: str
    kind: str
    created: str
    current: bool
    backed_up: bool


class KeyRing:
    """A key ring in a folder. Safe to use from several threads and processes, and over a fork."""

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        """Open the ring in `folder`. Raises Unavailable (missing, damaged) or PolicyRefused (permissions)."""
        self._folder = Path(folder)
        self._readonly = readonly
        self._cached: tuple[tuple[int, ...], RingState] | None = None
        keyfile.check_owner_only(self._folder)
        self._state()

    @classmethod
    def load_or_create(cls, folder: Path, *, archive_dir: Path | None = None, create: bool = True) -> KeyRing:
        """Open the ring, creating it on the first start (one process wins, the others open what it made).

        create=False: a missing ring is an error, for a gateway that has archived objects already.
        Raises Unavailable 'keys-missing' when a ring was here and is gone, 'keys-corrupt', 'keys-unwritable';
        PolicyRefused 'keys-in-archive', 'keys-permissions', 'keys-owner'.
        """
        folder = Path(folder)
        keyfile.check_place(folder, archive_dir)
        if create and not (folder / keyfile.RING_FILE).exists():
            _create(folder)
        return cls(folder)

    @classmethod
    def open_readonly(cls, folder: Path) -> KeyRing:
        """Open an existing ring without lock or write, for the verifier. Raises as `__init__`."""
        return cls(Path(folder), readonly=True)

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._cached[1].ids()) if self._cached else ''})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key ring is not pickled: open it by its folder in the other process")

    @property
    def folder(self) -> Path:
        """Where the ring lies."""
        return self._folder

    # --- keys ---

    def kek_current(self) -> tuple[str, bytes]:
        """(id, 32 bytes) of the key that wraps new data keys."""
        key = self._state().current("kek")
        return key.id, key.secret

    def find_kek(self, key_id: str) -> bytes:
        """The wrapping key of this id, 32 bytes. Raises UnknownKey."""
        return self._find(key_id, "kek").secret

    def signing_key(self) -> tuple[str, bytes]:
        """(id, raw 32-byte Ed25519 private key) for new records."""
        key = self._state().current("sign")
        return key.id, key.secret

    def find_verify_key(self, key_id: str) -> bytes:
        """Raw 32-byte Ed25519 public key of this id. Raises UnknownKey."""
        return self._find(key_id, "sign").public

    def pseudonym_key(self) -> bytes:
        """32 bytes for new pseudonyms. After a rotation the same patient gets new pseudonyms."""
        return self._state().current("pseudo").secret

    def token_key(self) -> tuple[str, bytes]:
        """(id, 32 bytes) that sign new bearer tokens."""
        key = self._state().current("token")
        return key.id, key.secret

    def find_token_key(self, key_id: str) -> bytes:
        """The token key of this id (a token's `kid`), 32 bytes. Raises UnknownKey."""
        return self._find(key_id, "token").secret

    # --- care ---

    def list(self) -> list[KeyRow]:
        """All keys without their secrets, oldest first."""
        state = self._state()
        saved = {key_id for backup in state.backups for key_id in backup.ids}
        return [KeyRow(k.id, k.kind, k.created, k is state.current(k.kind), k.id in saved) for k in state.keys]

    def rotate(self, kind: str) -> str:
        """Add a new version of `kind` and return its id. Old versions stay; a new backup is due."""
        if kind not in KINDS:
            raise PolicyRefused("unknown-key-kind", f"key kinds are {', '.join(KINDS)}")
        with self._change() as state:
            changed = state.with_new(kind, _now())
            self._write(changed)
        return changed.current(kind).id

    def backup(self, path: Path, passphrase: str, *, log2_n: int = keybackup.SCRYPT_LOG2_N) -> Backup:
        """Write a backup, read it back, open every key's canary with it, and only then record it as proven.

        Raises PolicyRefused for an existing file, a path inside the key folder, or a short passphrase; Unavailable
        when the file cannot be written or does not prove.
        """
        path = Path(path)
        keybackup.check_passphrase(passphrase)
        if path.resolve().is_relative_to(self._folder.resolve()):
            raise PolicyRefused("backup-in-key-folder", "keep the backup elsewhere: one loss must not take both")
        with self._change() as state:
            _write_new(path, keybackup.seal_backup(state, passphrase, _now(), log2_n=log2_n))
            proof = _prove_file(path, passphrase, state)
            self._write(replace(state, backups=(*state.backups, proof)))
        return proof

    @classmethod
    def restore(
        cls, path: Path, passphrase: str, target: Path, *, overwrite: bool = False, archive_dir: Path | None = None
    ) -> KeyRing:
        """Rebuild a ring in the folder `target` from a backup.

        An existing ring is refused unless `overwrite`; it is then kept beside as keyring.json.replaced-<time>.
        """
        target = Path(target)
        data = keybackup.read_backup(Path(path))
        state = keybackup.open_backup(data, passphrase)
        state = replace(state, backups=(*state.backups, _prove(data, passphrase, state, opened=state)))
        keyfile.check_place(target, archive_dir)
        try:
            _install(target, state, overwrite)
        except OSError:
            raise Unavailable("keys-unwritable", "the key folder cannot be written") from None
        return cls(target)

    def export_public(self, path: Path) -> None:
        """Write the public signing keys as JSON. An existing file is replaced."""
        try:
            keyfile.write_atomic(Path(path), keybackup.public_document(self._state()))
        except OSError:
            raise Unavailable("export-unwritable", f"{path} cannot be written") from None

    def backup_current(self) -> bool:
        """Whether one proven backup holds every key of the ring; False again after a rotation."""
        return self._state().backed_up()

    # --- inside ---

    def _find(self, key_id: str, kind: str) -> Key:
        key = self._state().find(key_id, kind)
        if key is None:
            raise UnknownKey("unknown-key", f"the key ring has no {kind} key of this id")
        return key

    def _state(self) -> RingState:
        ring = self._folder / keyfile.RING_FILE
        try:
            facts = ring.stat()
            seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_mode)
            cached = self._cached
            if cached is not None and cached[0] == seen:
                return cached[1]
            keyfile.check_owner_only(ring)
            state = keystate.parse(ring.read_bytes())
        except OSError:
            raise Unavailable("keys-missing", "the key ring cannot be read; if it is lost, restore a backup") from None
        self._cached = (seen, state)
        return state

    @contextlib.contextmanager
    def _change(self) -> Iterator[RingState]:
        if self._readonly:
            raise PolicyRefused("keys-readonly", "this process may read the key ring, not change it")
        with keyfile.locked(self._folder):
            yield self._state()

    def _write(self, state: RingState) -> None:
        try:
            keyfile.write_atomic(self._folder / keyfile.RING_FILE, keystate.dump(state))
        except OSError:
            raise Unavailable("keys-unwritable", "the key ring cannot be written") from None


def _create(folder: Path) -> None:
    try:
        keyfile.make_folder(folder)
        keyfile.check_owner_only(folder)
        with keyfile.locked(folder) as lock:
            ring = folder / keyfile.RING_FILE
            if ring.exists():
                return
            if keyfile.ring_was_created(lock):
                raise Unavailable(
                    "keys-missing",
                    "the key ring that was here is gone: bring it back with `palimpsest keys restore`. "
                    "A new one would not open what is archived",
                )
            keyfile.write_atomic(ring, keystate.dump(keystate.new_state(_now())))
            keyfile.mark_created(lock)
    except OSError:
        raise Unavailable("keys-unwritable", "the key folder cannot be written") from None


def _install(folder: Path, state: RingState, overwrite: bool) -> None:
    keyfile.make_folder(folder)
    keyfile.check_owner_only(folder)
    with keyfile.locked(folder) as lock:
        ring = folder / keyfile.RING_FILE
        if ring.exists() and not overwrite:
            raise PolicyRefused("keys-exist", "there is a key ring already; restoring over it must be asked for")
        if ring.exists():
            kept = f"{ring.name}.replaced-{_now().replace(':', '')}-{os.urandom(3).hex()}"
            keyfile.write_new(ring.with_name(kept), ring.read_bytes())
        keyfile.write_atomic(ring, keystate.dump(state))
        keyfile.mark_created(lock)


def _prove(data: bytes, passphrase: str, living: RingState, *, opened: RingState | None = None) -> Backup:
    """Open `data` again and open the living ring's canaries with its keys. Raises Unavailable."""
    kept = {key.id: key for key in (opened or keybackup.open_backup(data, passphrase)).keys}
    if not all(key.id in kept and kept[key.id].opens(key.canary) for key in living.keys):
        raise Unavailable("backup-unproven", "the backup was written but its keys do not open the canaries")
    return Backup(_now(), living.ids(), sha256(data).hexdigest())


def _prove_file(path: Path, passphrase: str, living: RingState) -> Backup:
    """`_prove` from the medium; what does not prove is removed, so that nobody trusts it."""
    try:
        return _prove(keybackup.read_backup(path), passphrase, living)
    except PalimpsestError:
        path.unlink(missing_ok=True)
        raise


def _write_new(path: Path, data: bytes) -> None:
    try:
        keyfile.write_new(path, data)
    except FileExistsError:
        raise PolicyRefused("backup-exists", f"{path} exists already; backups are never overwritten") from None
    except OSError:
        raise Unavailable("backup-unwritable", f"{path} cannot be written") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
