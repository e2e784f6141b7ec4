"""One key per patient: a small file each, wrapped by the master, made at first use, destroyed on request.

A key's id is a keyed hash of the patient's label and a generation number, so it is found without a list, and a file's
name tells nothing: <folder>/<first two characters>/<26 characters>.json, with .tombstone beside it (and the key gone)
once it was destroyed. A patient who comes back after that gets the next generation.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from gateway import keyfile
from gateway.blobs import sync_folder
from gateway.errors import IntegrityError, Unavailable
from gateway.keystate import Key, ShreddedKey, UnknownKey, new_key
from gateway.masters import Master, MasterRefused
from gateway.pseudonym import pseudonym_text

__all__ = ["PREFIX", "PatientKey", "PatientKeys", "Tombstone", "patient_key_id"]

PREFIX = "pat-"
FOLDER, LOCK = "patients", "patients.lock"
_ID = re.compile(r"pat-[0-9A-HJKMNP-TV-Z]{26}")
_FORMAT, _TOMBSTONE_FORMAT = "palimpsest-patient-key", "palimpsest-tombstone"
_CACHE_KEYS = 4096  # unwrapped keys held in memory; then the cache starts afresh
_TRIES = 5  # a file replaced while it is read (rewrapping) is read again


@dataclass(frozen=True, slots=True)
class PatientKey:
    """A patient key as its file holds it. `wrapped`: the master's token; `canary`: proves the key once unwrapped."""

    id: str
    created: str
    canary: bytes = field(repr=False)
    wrapped: str = field(repr=False)


class Tombstone(NamedTuple):
    """What is left of a destroyed key. created: '' where it was not known here; data: as given by who destroyed it."""

    id: str
    created: str
    destroyed: str
    data: bytes


class PatientKeys:
    """The patient keys of one ring folder. Safe to use from several threads and processes, and over a fork."""

    def __init__(self, ring_folder: Path, master: Master) -> None:
        self._ring_folder = ring_folder
        self._folder = ring_folder / FOLDER
        self._master = master
        self._cache: dict[str, tuple[tuple[int, ...], bytes]] = {}

    # --- use ---

    def open(self, key_id: str, *, cached: bool = True) -> bytes:
        """The key, 32 bytes. Raises UnknownKey, ShreddedKey, Unavailable (damaged, or the master is away).

        cached=False: from the file, whatever is in memory.
        """
        path = self._path(key_id)
        for _ in range(_TRIES):
            seen = self._facts(key_id, path)
            known = self._cache.get(key_id) if cached else None
            if known is not None and known[0] == seen:
                return known[1]
            try:
                secret = self._unwrap(self._read(path))
            except FileNotFoundError:
                continue
            except IntegrityError:
                if self._facts(key_id, path) == seen:
                    raise _damaged() from None
                continue
            if len(self._cache) >= _CACHE_KEYS:
                self._cache.clear()
            self._cache[key_id] = (seen, secret)
            return secret
        raise Unavailable("patient-key-busy", "a patient key is being replaced all the time; it is tried again")

    def find(self, label: str, pseudonyms: Sequence[bytes]) -> str | None:
        """Id of the patient's living key, durable, or None. pseudonyms: the ring's pseudonym keys, newest first."""
        try:
            for key_id in self._generations(label, pseudonyms):
                path = self._path(key_id)
                if path.exists() and not _tombstone(path).exists():
                    if key_id not in self._cache:  # its maker may not have come as far as the folder's fsync
                        sync_folder(path.parent)
                    return key_id
        except OSError:
            raise Unavailable("keys-missing", "the patient keys cannot be read") from None
        return None

    def make(self, label: str, pseudonyms: Sequence[bytes], now: str, in_use: Callable[[str], bool]) -> str:
        """Id of the patient's key, made and fsynced if there is none; one winner among processes.

        in_use: whether archived objects are sealed to a key of this id. Then it was here and is gone, and another one
        under its id would keep a backup from bringing it back. Raises Unavailable 'patient-key-lost'.
        """
        with self.locked():
            found = self.find(label, pseudonyms)
            if found is not None:
                return found
            generation = sum(1 for _ in self._generations(label, pseudonyms[:1]))
            key_id = patient_key_id(label, pseudonyms[0], generation)
            if in_use(key_id):
                message = "archived objects need this patient's key, and it is gone: `palimpsest keys restore` a backup"
                raise Unavailable("patient-key-lost", message, retry_after=300.0)
            self.add(new_key(key_id, "patient", now))
            return key_id

    def ids_of(self, label: str, pseudonyms: Sequence[bytes]) -> list[str]:
        """Every id this patient ever had here, of all generations and pseudonym keys, destroyed ones included."""
        return list(self._generations(label, pseudonyms))

    # --- care ---

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held by whoever makes, replaces or destroys a patient key. Raises Unavailable."""
        with ExitStack() as held:
            try:
                held.enter_context(keyfile.locked(self._ring_folder, LOCK))
            except OSError:
                raise Unavailable("keys-unwritable", "the patient keys cannot be written") from None
            yield

    def ids(self) -> list[str]:
        """Ids of all living keys."""
        return [key_id for key_id, path in self._files(".json") if not _tombstone(path).exists()]

    def stored(self, key_id: str) -> PatientKey:
        """The key's file, nothing unwrapped. Raises UnknownKey, ShreddedKey, Unavailable."""
        path = self._path(key_id)
        self._facts(key_id, path)
        try:
            return self._read(path)
        except FileNotFoundError:
            raise _unknown() from None
        except IntegrityError:
            raise _damaged() from None

    def key(self, key_id: str) -> Key:
        """The key with its canary and age, unwrapped: for backups. Raises as `open`."""
        stored = self.stored(key_id)
        return Key(stored.id, "patient", stored.created, self.open(key_id), stored.canary)

    def keys(self) -> Iterator[Key]:
        """All living keys, unwrapped; one that is destroyed meanwhile is left out. Raises as `open`."""
        for key_id in self.ids():
            try:
                yield self.key(key_id)
            except UnknownKey:
                continue

    def add(self, key: Key) -> None:
        """Wrap and store; an existing file is replaced. The caller holds the lock. Raises Unavailable."""
        path = self._path(key.id)
        wrapped = self._master.wrap(key.secret, _context(key.id))
        self._write(path, PatientKey(key.id, key.created, key.canary, wrapped))

    def rewrap(self) -> int:
        """Bring every key under the master's current version, one at a time, while others use them; returns how many.

        May be stopped and started again: what is under the current version already is passed over. Raises Unavailable
        at once when the master is away, and at the end when a key is damaged; the others are done then.
        """
        current, changed, damaged = self._master.version(), 0, False
        for key_id, path in self._files(".json"):
            with self.locked():  # one key at a time: a destroyed key must not be written back
                try:
                    stored = self._read(path)
                    if _tombstone(path).exists() or self._master.version_of(stored.wrapped) == current:
                        continue
                    wrapped = self._master.rewrap(stored.wrapped, _context(key_id))
                except FileNotFoundError:
                    continue
                except IntegrityError:
                    damaged = True
                    continue
                self._write(path, PatientKey(key_id, stored.created, stored.canary, wrapped))
                changed += 1
        if damaged:
            raise _damaged()
        return changed

    # --- destruction ---

    def destroy(self, key_id: str, data: bytes, now: str) -> None:
        """Put a tombstone, then overwrite and remove the key; what was begun before is finished.

        The tombstone is durable first: from then on the key is gone for every reader, even if we are killed here.
        """
        path = self._path(key_id)
        with self.locked():
            if not _tombstone(path).exists():
                self.bury(Tombstone(key_id, self._created(path), now, data))
            self.erase(key_id)
        self._cache.pop(key_id, None)

    def erase(self, key_id: str) -> None:
        """Overwrite and remove the key's file, and what a killed writer left of it. The caller holds the lock."""
        path = self._path(key_id)
        try:
            for each in (path, *path.parent.glob(f".{path.name}.*")):
                keyfile.erase(each)
            sync_folder(path.parent)
        except OSError:
            message = "a patient key cannot be destroyed: mend the key folder and ask again"
            raise Unavailable("keys-unwritable", message) from None

    def bury(self, stone: Tombstone) -> None:
        """Write a tombstone. The caller holds the lock. Raises Unavailable."""
        path = self._path(stone.id)
        text = {"id": stone.id, "created": stone.created, "destroyed": stone.destroyed, "data": _b64(stone.data)}
        self._store(_tombstone(path), json.dumps({"format": _TOMBSTONE_FORMAT, "version": 1, **text}).encode())

    def destroyed(self, key_id: str) -> bool:
        """Whether a tombstone is in the key's place. Raises UnknownKey for what is no patient key id."""
        return _tombstone(self._path(key_id)).exists()

    def half_destroyed(self, key_id: str) -> bool:
        """Whether a destroyed key's file, or a copy of it that a killed writer left, is still there."""
        path = self._path(key_id)
        left = path.exists() or any(path.parent.glob(f".{path.name}.*"))
        return left and _tombstone(path).exists()

    def tombstones(self) -> tuple[Tombstone, ...]:
        """All tombstones. Raises Unavailable for one that cannot be read."""
        return tuple(_parse_tombstone(path) for _, path in self._files(".tombstone"))

    # --- inside ---

    def _generations(self, label: str, pseudonyms: Sequence[bytes]) -> Iterator[str]:
        """Ids in use, ever: newest generation first within a pseudonym key, newest pseudonym key first."""
        for pseudonym in pseudonyms:
            found: list[str] = []
            while True:
                key_id = patient_key_id(label, pseudonym, len(found))
                path = self._path(key_id)
                if not path.exists() and not _tombstone(path).exists():
                    break
                found.append(key_id)
            yield from reversed(found)

    def _path(self, key_id: str) -> Path:
        if _ID.fullmatch(key_id) is None:
            raise _unknown()
        name = key_id.removeprefix(PREFIX)
        return self._folder / name[:2] / f"{name}.json"

    def _files(self, suffix: str) -> Iterator[tuple[str, Path]]:
        for path in sorted(self._folder.glob(f"??/*{suffix}")):
            key_id = PREFIX + path.name.removesuffix(suffix)
            if _ID.fullmatch(key_id) is not None:
                yield key_id, path

    def _facts(self, key_id: str, path: Path) -> tuple[int, ...]:
        """What changes when the file does. A key that is gone leaves the cache here."""
        try:
            if _tombstone(path).exists():
                self._cache.pop(key_id, None)
                raise ShreddedKey("shredded-key", "the key of this patient was destroyed; only the pixels can be read")
            facts = path.stat()
        except FileNotFoundError:
            self._cache.pop(key_id, None)
            raise _unknown() from None
        except OSError:
            raise Unavailable("keys-missing", "the patient keys cannot be read") from None
        return facts.st_mtime_ns, facts.st_size, facts.st_ino

    def _read(self, path: Path) -> PatientKey:
        """Raises FileNotFoundError, IntegrityError (not what we wrote), Unavailable."""
        try:
            document = json.loads(path.read_bytes())
            if document["format"] != _FORMAT or document["version"] != 1:
                raise ValueError("not a patient key")
            key_id = str(document["id"])
            if key_id != PREFIX + path.stem:
                raise ValueError("another key's file")
            canary = base64.b64decode(document["canary"], validate=True)
            return PatientKey(key_id, str(document["created"]), canary, str(document["wrapped"]))
        except FileNotFoundError:
            raise
        except OSError:
            raise Unavailable("keys-missing", "the patient keys cannot be read") from None
        except (ValueError, KeyError, TypeError):
            raise IntegrityError("patient-key-damaged") from None

    def _unwrap(self, stored: PatientKey) -> bytes:
        secret = self._master.unwrap(stored.wrapped, _context(stored.id))
        if not Key(stored.id, "patient", stored.created, secret, stored.canary).opens(stored.canary):
            raise MasterRefused
        return secret

    def _write(self, path: Path, key: PatientKey) -> None:
        text = {"id": key.id, "created": key.created, "canary": _b64(key.canary), "wrapped": key.wrapped}
        self._store(path, json.dumps({"format": _FORMAT, "version": 1, **text}).encode())

    def _store(self, path: Path, data: bytes) -> None:
        try:
            for folder in (self._folder, path.parent):
                if not folder.is_dir():
                    keyfile.make_folder(folder)
                    sync_folder(folder.parent)
            keyfile.write_atomic(path, data)
        except OSError:
            raise Unavailable("keys-unwritable", "the patient keys cannot be written") from None

    def _created(self, path: Path) -> str:
        try:
            return self._read(path).created
        except (FileNotFoundError, IntegrityError):
            return ""


def patient_key_id(label: str, pseudonym: bytes, generation: int = 0) -> str:
    """'pat-' and 26 characters, 130 bits of a keyed hash. label: 'P' NUL Patient ID, or 'S' NUL Study Instance UID."""
    return pseudonym_text(f"{label}\x00{generation}", pseudonym, PREFIX, length=30)


def _tombstone(path: Path) -> Path:
    return path.with_suffix(".tombstone")


def _parse_tombstone(path: Path) -> Tombstone:
    try:
        document = json.loads(path.read_bytes())
        data = base64.b64decode(document["data"], validate=True)
        return Tombstone(str(document["id"]), str(document["created"]), str(document["destroyed"]), data)
    except (OSError, ValueError, KeyError, TypeError):
        raise Unavailable("tombstone-damaged", "a tombstone of a destroyed patient key cannot be read") from None


def _context(key_id: str) -> bytes:
    return b"palimpsest/patient/v1\x00" + key_id.encode("ascii")


def _unknown() -> UnknownKey:
    return UnknownKey("unknown-key", "the key ring has no patient key of this id")


def _damaged() -> Unavailable:
    message = "a patient key does not open: `palimpsest keys doctor` names it, `palimpsest keys restore` brings it back"
    return Unavailable("patient-key-damaged", message, retry_after=60.0)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
