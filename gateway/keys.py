"""The key ring: keys by id, in one owner-only file outside the archive.

`KeyRing.load_or_create(folder)` for the services and the CLI, `KeyRing.open_readonly(folder)` for the verifier.
A change made by one process is seen by all (the file is read again when its time or size changes). Old versions stay:
`find_*` gives them by id for as long as something sealed with them exists.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from gateway import keybackup, keyfile, keystate
from gateway.errors import PalimpsestError, PolicyRefused, Unavailable
from gateway.keystate import KINDS, Backup, Key, Recipient, RingState, ShreddedKey, UnknownKey
from gateway.masters import FileMaster
from gateway.patientkeys import PREFIX, PatientKeys, Tombstone

__all__ = ["KINDS", "KeyRing", "KeyRow", "Recipient", "ShreddedKey", "Tombstone", "UnknownKey"]


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
        self._master = FileMaster(self._kek, lambda key_id: self._find(key_id, "kek").secret, lambda: self._add("kek"))
        self._patients = PatientKeys(self._folder, self._master)
        #: told of every use of a key: what for, and the key's id. None: nobody asks.
        self.observer: Callable[[str, str], None] | None = None
        keyfile.check_owner_only(self._folder)
        if self._state().missing_kinds() and not readonly:
            self._upgrade()

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
        """(id, 32 bytes) of the key that wraps new data keys where there is no patient."""
        return self._noted("wrap", self._state().current("kek"))

    def patient_key(self, label: str) -> tuple[str, bytes]:
        """('pat-...', 32 bytes) of one patient. label: 'P' NUL Patient ID, or 'S' NUL Study Instance UID without one.

        Made at first use, fsynced before it is returned; after it was destroyed the patient gets another one. Raises
        Unavailable (master away, folder not writable), PolicyRefused 'keys-readonly' where one would have to be made.
        """
        pseudonyms = self._pseudonyms()
        key_id = self._patients.find(label, pseudonyms)
        if key_id is None:
            self._check_writable()
            key_id = self._patients.make(label, pseudonyms, _now())
        self._note("wrap", key_id)
        try:
            return key_id, self._patients.open(key_id)
        except UnknownKey:  # destroyed just now
            raise Unavailable("patient-key-busy", "the patient's key was destroyed just now; try again") from None

    def patient_key_ids(self, label: str) -> list[str]:
        """Every key id of this patient, destroyed ones included: all generations, under all pseudonym keys."""
        return self._patients.ids_of(label, self._pseudonyms())

    def find_kek(self, key_id: str) -> bytes:
        """The wrapping key of this id (kek or patient), 32 bytes. Raises UnknownKey, ShreddedKey, Unavailable."""
        self._note("unwrap", key_id)
        if key_id.startswith(PREFIX):
            return self._patients.open(key_id)
        return self._find(key_id, "kek").secret

    def signing_key(self) -> tuple[str, bytes]:
        """(id, raw 32-byte Ed25519 private key) for new records."""
        return self._noted("sign", self._state().current("sign"))

    def find_verify_key(self, key_id: str) -> bytes:
        """Raw 32-byte Ed25519 public key of this id. Raises UnknownKey."""
        self._note("verify", key_id)
        return self._find(key_id, "sign").public

    def pseudonym_key(self) -> bytes:
        """32 bytes for new pseudonyms. After a rotation the same patient gets new pseudonyms."""
        return self._noted("pseudonym", self._state().current("pseudo"))[1]

    def token_key(self) -> tuple[str, bytes]:
        """(id, 32 bytes) that sign new bearer tokens."""
        return self._noted("token", self._state().current("token"))

    def find_token_key(self, key_id: str) -> bytes:
        """The token key of this id (a token's `kid`), 32 bytes. Raises UnknownKey."""
        return self._noted("token", self._find(key_id, "token"))[1]

    def stego_key(self) -> tuple[str, bytes]:
        """(id, 32 bytes) for new pixel carriers. Raises UnknownKey for an old ring that was only ever read."""
        return self._noted("embed", self._state().current("stego"))

    def stego_keys(self) -> tuple[tuple[str, bytes], ...]:
        """All stego keys, newest first: what an extraction tries."""
        return tuple(self._noted("extract", key) for key in self._state().of_kind("stego"))

    def pixel_key(self) -> tuple[str, bytes]:
        """(id, 32 bytes) that wraps new sealed bitmaps' keys. Raises as `stego_key`."""
        return self._noted("wrap", self._state().current("pixel"))

    def find_pixel_key(self, key_id: str) -> bytes:
        """The pixel key of this id, 32 bytes. Raises UnknownKey."""
        return self._noted("unwrap", self._find(key_id, "pixel"))[1]

    def recipients(self) -> tuple[Recipient, ...]:
        """Those outside to whom policy may share data keys, in the order they were added."""
        return self._state().recipients

    # --- care ---

    def list(self) -> list[KeyRow]:
        """All keys without their secrets, oldest first."""
        state = self._state()
        saved = {key_id for backup in state.backups for key_id in backup.ids}
        return [KeyRow(k.id, k.kind, k.created, k is state.current(k.kind), k.id in saved) for k in state.keys]

    def rotate(self, kind: str) -> str:
        """Add a new version of `kind` and return its id. Old versions stay; a new backup is due.

        kind 'kek': every patient key is brought under the new one, while others use them (see `rewrap`).
        """
        if kind not in KINDS:
            raise PolicyRefused("unknown-key-kind", f"key kinds are {', '.join(KINDS)}")
        if kind == "kek":
            key_id = self._add("kek")
            self.rewrap()
            return key_id
        return self._add(kind)

    def rewrap(self) -> int:
        """Bring every patient key under the master's current version; returns how many were not.

        Finishes what a stopped rotation left. Raises Unavailable when the master is away or a key is damaged.
        """
        self._check_writable()
        return self._patients.rewrap()

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

    def destroy_patient_key(self, key_id: str, tombstone: bytes) -> None:
        """Destroy a patient key for good; `tombstone` stays in its place. May be asked again after a failure.

        An id without a key gets its tombstone all the same, so that no restore brings the key back. Raises UnknownKey
        for what is no patient key id, PolicyRefused 'keys-readonly', Unavailable (not writable: nothing is certain).
        """
        self._check_writable()
        self._patients.destroy(key_id, tombstone, _now())
        self._note("destroy", key_id)

    def tombstones(self) -> tuple[Tombstone, ...]:
        """All tombstones of destroyed patient keys. Raises Unavailable for a damaged one."""
        return self._patients.tombstones()

    # --- inside ---

    def _note(self, purpose: str, key_id: str) -> None:
        if self.observer is not None:
            self.observer(purpose, key_id)

    def _noted(self, purpose: str, key: Key) -> tuple[str, bytes]:
        self._note(purpose, key.id)
        return key.id, key.secret

    def _pseudonyms(self) -> tuple[bytes, ...]:
        return tuple(key.secret for key in self._state().of_kind("pseudo"))

    def _kek(self) -> tuple[str, bytes]:
        key = self._state().current("kek")
        return key.id, key.secret

    def _add(self, kind: str) -> str:
        with self._change() as state:
            changed = state.with_new(kind, _now())
            self._write(changed)
        return changed.current(kind).id

    def _upgrade(self) -> None:
        """Add the kinds of key that a ring of an older release lacks; one process does it, the others see it."""
        with self._change() as state:
            for kind in state.missing_kinds():
                state = state.with_new(kind, _now())
            self._write(state)

    def _check_writable(self) -> None:
        if self._readonly:
            raise PolicyRefused("keys-readonly", "this process may read the key ring, not change it")

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
        self._check_writable()
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
