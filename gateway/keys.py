"""The key ring: keys by id, in one owner-only file outside the archive.

`KeyRing.load_or_create(folder)` for the services and the CLI, `KeyRing.open_readonly(folder)` for the verifier.
A change made by one process is seen by all (the file is read again when its time or size changes). Old versions stay:
`find_*` gives them by id for as long as something sealed with them exists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from gateway import keybackup, keycoverage, keyfile, keyrestore, keystate
from gateway.errors import PolicyRefused, Unavailable
from gateway.keyrecipients import check_recipient
from gateway.keystate import KINDS, Backup, Key, Recipient, RingState, Seal, ShreddedKey, UnknownKey
from gateway.masters import Master, mismatch, open_seal, reseal, seal_with, state_master
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

    def __init__(self, folder: Path, *, readonly: bool = False, master: Master | None = None) -> None:
        """Open the ring in `folder`. master: the remote one that keeps it; None for a file ring.

        Raises Unavailable (missing, damaged, master away) or PolicyRefused (permissions, 'key-master-mismatch').
        """
        self._folder = Path(folder)
        self._remote = master
        self._readonly = readonly
        self._cached: tuple[tuple[int, ...], RingState] | None = None
        self._seal: Seal | None = None  # as last opened: a changed ring file costs the master nothing
        #: one key per patient; rooms use `patient_key` and `find_kek`
        self.patients = PatientKeys(self._folder, self.master)
        #: told of every use of a key: what for, and the key's id. None: nobody asks.
        self.observer: Callable[[str, str], None] | None = None
        self._moment: datetime | None = None  # see `as_of`
        #: whether archived objects are sealed to this patient key: such a one is never made anew
        self.in_use: Callable[[str], bool] = lambda key_id: False
        keyfile.check_owner_only(self._folder)
        if self._state().missing_kinds() and not readonly:
            self._upgrade()

    @classmethod
    def load_or_create(
        cls, folder: Path, *, archive_dir: Path | None = None, create: bool = True, master: Master | None = None
    ) -> KeyRing:
        """Open the ring, creating it on the first start (one process wins, the others open what it made).

        create=False: a missing ring is an error, for a gateway that has archived objects already.
        Raises Unavailable 'keys-missing' when a ring was here and is gone, 'keys-corrupt', 'keys-unwritable';
        PolicyRefused 'keys-in-archive', 'keys-permissions', 'keys-owner'; with a remote master as `__init__`.
        """
        folder = Path(folder)
        keyfile.check_place(folder, archive_dir)
        if create and not (folder / keyfile.RING_FILE).exists():
            _create(folder, master)
        return cls(folder, master=master)

    @classmethod
    def open_readonly(cls, folder: Path, *, master: Master | None = None) -> KeyRing:
        """Open an existing ring without lock or write, for the verifier. Raises as `__init__`."""
        return cls(Path(folder), readonly=True, master=master)

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._cached[1].ids()) if self._cached else ''})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key ring is not pickled: open it by its folder in the other process")

    @property
    def folder(self) -> Path:
        """Where the ring lies."""
        return self._folder

    @property
    def master(self) -> Master:
        """What wraps the patient keys: the remote master, or the ring's own `kek` keys."""
        return self._remote or state_master(self._state, lambda: self._add("kek"))

    def as_of(self, moment: float) -> KeyRing:
        """The same ring, whose current keys are those in use at `moment` (seconds since the epoch).

        What was begun before a rotation is finished with the keys it was begun with, so that it stays the same object.
        """
        view = KeyRing.__new__(KeyRing)
        view.__dict__.update(self.__dict__)
        view._moment = datetime.fromtimestamp(moment, UTC)
        return view

    # --- keys ---

    def kek_current(self) -> tuple[str, bytes]:
        """(id, 32 bytes) of the key that wraps new data keys where there is no patient."""
        return self._noted("wrap", self._state().current("kek"))

    def patient_key(self, label: str) -> tuple[str, bytes]:
        """('pat-...', 32 bytes) of one patient. label: 'P' NUL Patient ID, or 'S' NUL Study Instance UID without one.

        Made at first use, fsynced before it is returned; after it was destroyed the patient gets another one. Raises
        Unavailable (master away, folder not writable, 'patient-key-lost'), PolicyRefused 'keys-readonly' where one
        would have to be made.
        """
        pseudonyms = self._pseudonyms()
        key_id = self.patients.find(label, pseudonyms)
        if key_id is None:
            self._check_writable()
            key_id = self.patients.make(label, pseudonyms, _instant(), self.in_use)
        self._note("wrap", key_id)
        try:
            return key_id, self.patients.open(key_id)
        except UnknownKey:  # destroyed just now
            raise Unavailable("patient-key-busy", "the patient's key was destroyed just now; try again") from None

    def patient_key_ids(self, label: str) -> list[str]:
        """Every key id of this patient, destroyed ones included: all generations, under all pseudonym keys."""
        return self.patients.ids_of(label, self._pseudonyms())

    def find_kek(self, key_id: str) -> bytes:
        """The wrapping key of this id (kek or patient), 32 bytes. Raises UnknownKey, ShreddedKey, Unavailable."""
        self._note("unwrap", key_id)
        if key_id.startswith(PREFIX):
            return self.patients.open(key_id)
        return self._find(key_id, "kek").secret

    def signing_key(self) -> tuple[str, bytes]:
        """(id, raw 32-byte Ed25519 private key) for new records."""
        return self._noted("sign", self._state().current("sign", self._moment))

    def find_verify_key(self, key_id: str) -> bytes:
        """Raw 32-byte Ed25519 public key of this id. Raises UnknownKey."""
        self._note("verify", key_id)
        return self._find(key_id, "sign").public

    def certify_keys(self) -> tuple[Key, ...]:
        """The Ed25519 keys of restore certificates, oldest first; the last signs. Raises as `stego_key`."""
        self._noted("certify", self._state().current("certify"))
        return self._state().of_kind("certify")[::-1]

    def pseudonym_key(self) -> bytes:
        """32 bytes for new pseudonyms. After a rotation the same patient gets new pseudonyms."""
        return self._noted("pseudonym", self._state().current("pseudo", self._moment))[1]

    def pseudonym_keys(self) -> tuple[bytes, ...]:
        """All pseudonym keys, newest first: under which of them something was named, nobody may know any more."""
        return self._pseudonyms()

    def token_key(self) -> tuple[str, bytes]:
        """(id, 32 bytes) that sign new bearer tokens."""
        return self._noted("token", self._state().current("token"))

    def token_keys(self) -> tuple[bytes, ...]:
        """All token keys, newest first: under one of them a browser's cookie was made."""
        return tuple(self._noted("token", key)[1] for key in self._state().of_kind("token"))

    def find_token_key(self, key_id: str) -> bytes:
        """The token key of this id (a token's `kid`), 32 bytes. Raises UnknownKey."""
        return self._noted("token", self._find(key_id, "token"))[1]

    def stego_key(self) -> tuple[str, bytes]:
        """(id, 32 bytes) for new pixel carriers. Raises UnknownKey for an old ring that was only ever read."""
        return self._noted("embed", self._state().current("stego", self._moment))

    def stego_keys(self) -> tuple[tuple[str, bytes], ...]:
        """All stego keys, newest first: what an extraction tries."""
        return tuple(self._noted("extract", key) for key in self._state().of_kind("stego"))

    def pixel_key(self) -> tuple[str, bytes]:
        """(id, 32 bytes) that wraps new sealed bitmaps' keys. Raises as `stego_key`."""
        return self._noted("wrap", self._state().current("pixel", self._moment))

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
        self._check_writable()
        if kind == "kek" and self._remote is not None:
            self._remote.rotate()  # first: what is wrapped below comes under the new version
        key_id = self._add(kind)
        if kind == "kek":
            self.rewrap()
        return key_id

    def rewrap(self) -> int:
        """Bring every patient key under the master's current version; returns how many were not.

        Finishes what a stopped rotation left. Raises Unavailable when the master is away or a key is damaged.
        """
        with self._change() as state:
            remote, seal = self._remote, state.seal
            if remote and seal and remote.version_of(seal.token) != remote.version():
                self._write(replace(state, seal=reseal(remote, seal)))
        return self.patients.rewrap()

    def backup(self, path: Path, passphrase: str, *, log2_n: int = keybackup.SCRYPT_LOG2_N) -> Backup:
        """Write a backup, read it back, open every key's canary with it, and only then record it as proven.

        It holds patient keys, recipients and tombstones, too, and needs no master to be used. Raises PolicyRefused for
        an existing file, a path inside the key folder, or a short passphrase; Unavailable when the file cannot be
        written or does not prove, a patient key is damaged, or the master is away.
        """
        path = Path(path)
        keybackup.check_passphrase(passphrase)
        if path.resolve().is_relative_to(self._folder.resolve()):
            raise PolicyRefused("backup-in-key-folder", "keep the backup elsewhere: one loss must not take both")
        with self._change() as state:
            at = _instant()
            living = keybackup.Contents(state, tuple(self.patients.keys()), self.patients.tombstones())
            keybackup.write(path, keybackup.seal_contents(living, passphrase, at, log2_n=log2_n))
            proof = keybackup.prove_file(path, passphrase, living, at)
            keycoverage.write(self._folder, proof.sha256, (key.id for key in living.patients))
            self._write(replace(state, backups=(*state.backups, proof)))  # only now the list counts
        self._note("backup", proof.sha256)
        return proof

    @classmethod
    def restore(
        cls,
        path: Path,
        passphrase: str,
        target: Path,
        *,
        overwrite: bool = False,
        archive_dir: Path | None = None,
        master: Master | None = None,
        shredded: Collection[str] = (),
    ) -> KeyRing:
        """Rebuild a ring in the folder `target` from a backup, under `master` (None: a file ring).

        An existing ring is refused unless `overwrite`; it is then kept beside as keyring.json.replaced-<time>, and its
        patient keys are taken over. Destroyed keys (tombstones in the backup and in the folder, ids in `shredded`)
        never come back. Raises as `keyrestore.install`.
        """
        target = Path(target)
        data = keybackup.read_backup(Path(path))
        contents = keybackup.open_backup(data, passphrase)
        proof = keybackup.prove(data, passphrase, contents, keybackup.backup_time(data), opened=contents)
        keyfile.check_place(target, archive_dir)
        keyrestore.install(target, contents, proof, master=master, overwrite=overwrite, shredded=shredded)
        return cls(target, master=master)

    def purge_backup(self, path: Path, passphrase: str, ids: Collection[str]) -> None:
        """Take patient keys out of a backup file, in its place. Raises as `keybackup.purge_file`."""
        with self._change() as state:
            old, new = keybackup.purge_file(Path(path), passphrase, ids)
            backups = tuple(
                replace(each, sha256=new, without=tuple(sorted({*each.without, *ids}))) if each.sha256 == old else each
                for each in state.backups
            )
            self._write(replace(state, backups=backups))
            keycoverage.rewrite(self._folder, old, new)

    def forget_backup(self, sha256: str) -> None:
        """Strike a backup off the list: its file was destroyed. Raises PolicyRefused 'unknown-backup'."""
        with self._change() as state:
            left = tuple(each for each in state.backups if each.sha256 != sha256)
            if len(left) == len(state.backups):
                raise PolicyRefused("unknown-backup", "no backup of this digest is on the list")
            self._write(replace(state, backups=left))

    def export_public(self, path: Path, *, pem: bool = False) -> None:
        """Write the public signing keys as JSON; pem: that of restore certificates alone. Replaces the file."""
        make = keybackup.certify_pem if pem else keybackup.public_document
        try:
            keyfile.write_atomic(Path(path), make(self._state()))
        except OSError:
            raise Unavailable("export-unwritable", f"{path} cannot be written") from None

    def backup_current(self) -> bool:
        """Whether one proven backup holds every key of the ring itself; False again after a rotation.

        Patient keys come with every new patient: see `backed_up_until`.
        """
        return self._state().backed_up()

    def backed_up_until(self) -> float | None:
        """Seconds since the epoch: a proven backup holds all keys of the ring, and every patient key made until then.

        None: there is no such backup.
        """
        times = [datetime.fromisoformat(each.at) for each in self._whole_backups()]
        return max(times).timestamp() if times else None

    def backed_up(self, key_ids: Iterable[str]) -> frozenset[str]:
        """Those of these patient keys that the last backup holds, if it holds all keys of the ring, too.

        By their ids, whatever the clocks of this machine and others say. Raises Unavailable.
        """
        return keycoverage.covered(self._folder, {each.sha256 for each in self._whole_backups()}, key_ids)

    def _whole_backups(self) -> tuple[Backup, ...]:
        state = self._state()
        return tuple(each for each in state.backups if set(state.ids()) <= set(each.ids))

    def missing_kinds(self) -> tuple[str, ...]:
        """Kinds of key that a ring of an older release, opened to read only, lacks."""
        return self._state().missing_kinds()

    def unproven(self) -> tuple[str, ...]:
        """Ids of the ring's keys that do not open their canaries."""
        return tuple(key.id for key in self._state().keys if not key.opens(key.canary))

    def backups_holding(self, key_ids: Collection[str]) -> tuple[tuple[Backup, tuple[str, ...]], ...]:
        """Known backups that may hold destroyed patient keys, with the ids: begun while the key lived, and not purged.

        A key whose age is not known here (destroyed on another machine) counts as old.
        """
        stones = [stone for stone in self.tombstones() if stone.id in key_ids]
        found = []
        for backup in self._state().backups:
            lived = (stone.id for stone in stones if stone.created <= backup.at <= stone.destroyed)
            held = tuple(key_id for key_id in lived if key_id not in backup.without)
            if backup.patients and held:
                found.append((backup, held))
        return tuple(found)

    def backups(self) -> tuple[Backup, ...]:
        """The proven backups that are known, oldest first."""
        return self._state().backups

    def add_recipient(self, recipient: Recipient) -> None:
        """Add one to whom policy may share data keys. Raises PolicyRefused 'recipient-exists', 'bad-recipient'."""
        check_recipient(recipient)
        with self._change() as state:
            if any(each.name == recipient.name for each in state.recipients):
                raise PolicyRefused("recipient-exists", "there is a recipient of this name: remove it first")
            self._write(replace(state, recipients=(*state.recipients, recipient)))

    def remove_recipient(self, name: str) -> None:
        """Remove one; objects that were shared already stay shared. Raises PolicyRefused 'unknown-recipient'."""
        with self._change() as state:
            left = tuple(each for each in state.recipients if each.name != name)
            if len(left) == len(state.recipients):
                raise PolicyRefused("unknown-recipient", "there is no recipient of this name")
            self._write(replace(state, recipients=left))

    def destroy_patient_key(self, key_id: str, tombstone: bytes) -> None:
        """Destroy a patient key for good; `tombstone` stays in its place. May be asked again after a failure.

        An id without a key gets its tombstone all the same, so that no restore brings the key back. Raises UnknownKey
        for what is no patient key id, PolicyRefused 'keys-readonly', Unavailable (not writable: nothing is certain).
        """
        self._check_writable()
        self.patients.destroy(key_id, tombstone, _instant())
        self._note("destroy", key_id)

    def tombstones(self) -> tuple[Tombstone, ...]:
        """All tombstones of destroyed patient keys. Raises Unavailable for a damaged one."""
        return self.patients.tombstones()

    # --- inside ---

    def _note(self, purpose: str, key_id: str) -> None:
        if self.observer is not None:
            self.observer(purpose, key_id)

    def _noted(self, purpose: str, key: Key) -> tuple[str, bytes]:
        self._note(purpose, key.id)
        return key.id, key.secret

    def _pseudonyms(self) -> tuple[bytes, ...]:
        return tuple(key.secret for key in self._state().of_kind("pseudo"))

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
            state = self._parsed(ring.read_bytes())
        except OSError:
            raise Unavailable("keys-missing", "the key ring cannot be read; if it is lost, restore a backup") from None
        self._cached = (seen, state)
        return state

    def _parsed(self, data: bytes) -> RingState:
        remote, known = self._remote, self._seal

        def opener(name: str, token: str) -> bytes:
            if remote is None:
                raise mismatch(name, "file")
            if known is not None and (known.master, known.token) == (name, token):
                return known.key
            return open_seal(remote)(name, token)

        state = keystate.parse(data, opener)
        if remote is not None and state.seal is None:
            raise mismatch("file", remote.name)
        self._seal = state.seal
        return state

    @contextlib.contextmanager
    def _change(self) -> Iterator[RingState]:
        self._check_writable()
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(keyfile.locked(self._folder))
            except OSError:
                raise Unavailable("keys-unwritable", "the key ring cannot be written") from None
            yield self._state()

    def _write(self, state: RingState) -> None:
        try:
            keyfile.write_atomic(self._folder / keyfile.RING_FILE, keystate.dump(state))
        except OSError:
            raise Unavailable("keys-unwritable", "the key ring cannot be written") from None


def _create(folder: Path, master: Master | None) -> None:
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
            state = replace(keystate.new_state(_now()), seal=seal_with(master) if master else None)
            keyfile.write_atomic(ring, keystate.dump(state))
            keyfile.mark_created(lock)
    except OSError:
        raise Unavailable("keys-unwritable", "the key folder cannot be written") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _instant() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
