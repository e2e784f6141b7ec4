"""A look at the whole key ring: is everything where it should be, does every key open, would a loss be survivable?

Every finding says what to do. Nothing is changed.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from gateway import keyfile
from gateway.errors import PalimpsestError, PolicyRefused, Unavailable
from gateway.keys import KeyRing
from gateway.keystate import UnknownKey
from gateway.masters import MasterRefused
from gateway.patientkeys import FOLDER, PREFIX

__all__ = ["Finding", "examine"]

Level = Literal["ok", "note", "problem"]
BACKUP_DAYS = 31
KEY_DAYS = {"kek": 730, "sign": 1095, "token": 365}
_CONTEXT = b"palimpsest/doctor/v1"
_NAMED = 5  # ids named in one finding


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and, unless all is well, what to do."""

    level: Level
    check: str
    text: str
    advice: str = ""


def examine(
    ring: KeyRing,
    archive_dir: Path | None = None,
    *,
    named: Collection[str] = (),
    shredded: Collection[str] = (),
    now: datetime | None = None,
) -> list[Finding]:
    """Every check, in a fixed order. Raises nothing that a check can find: a check that fails is a finding.

    named: ids of patient keys that the index says objects are sealed to; shredded: those it says were destroyed.
    """
    now = now or datetime.now(UTC)
    checks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("permissions", lambda: _permissions(ring.folder)),
        ("place", lambda: _place(ring.folder, archive_dir)),
        ("master", lambda: _master(ring)),
        ("ring keys", lambda: _canaries(ring)),
        ("patient keys", lambda: _patients(ring)),
        ("index", lambda: _index(ring, set(named), set(shredded))),
        ("versions", lambda: _versions(ring)),
        ("backups", lambda: _backups(ring, now)),
        ("tombstones", lambda: _tombstones(ring)),
        ("left-overs", lambda: _leftovers(ring.folder)),
        ("age", lambda: _ages(ring, now)),
    )
    found: list[Finding] = []
    for name, check in checks:
        try:
            found += check()
        except PalimpsestError as error:
            found.append(Finding("problem", name, error.message, _advice(error)))
        except OSError as error:
            found.append(Finding("problem", name, f"cannot be looked at ({error.strerror})", "mend the key folder"))
    return found


def _permissions(folder: Path) -> Iterator[Finding]:
    paths = [folder, *(path for path in folder.rglob("*"))]
    wrong = []
    for path in paths:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # a temporary file of a running gateway
            continue
        if stat.S_ISLNK(mode) or mode & 0o077:
            wrong.append(path)
    if wrong:
        what = f"{len(wrong)} of {len(paths)} files and folders are links or open to others, as {wrong[0]}"
        yield Finding(
            "problem", "permissions", what, f"run `chmod -R go= {folder}`; rotate if somebody may have read them"
        )
    else:
        yield Finding("ok", "permissions", f"{len(paths)} files and folders, for their owner only")


def _place(folder: Path, archive_dir: Path | None) -> Iterator[Finding]:
    keyfile.check_place(folder, archive_dir)
    yield Finding("ok", "place", "apart from the archive")
    if archive_dir is not None and archive_dir.exists() and archive_dir.stat().st_dev == folder.stat().st_dev:
        text = "keys and archive lie on one file system: one stolen or broken disk takes both"
        yield Finding("note", "place", text, "put the key folder on another disk, and keep backups elsewhere")


def _master(ring: KeyRing) -> Iterator[Finding]:
    probe = bytes(32)
    if ring.master.unwrap(ring.master.wrap(probe, _CONTEXT), _CONTEXT) != probe:
        raise Unavailable("key-master-unreachable", "the master gives back something else than it was given")
    yield Finding("ok", "master", f"{ring.master.name} answers; {ring.master.version()} is in use")


def _canaries(ring: KeyRing) -> Iterator[Finding]:
    missing = ring.missing_kinds()
    if missing:
        text = f"no {', '.join(missing)} key: a ring of an older release"
        yield Finding("problem", "ring keys", text, "start the gateway once: it adds them")
    wrong = ring.unproven()
    if wrong:
        text = f"{', '.join(wrong)} do not open their canaries"
        yield Finding("problem", "ring keys", text, "restore a backup: `palimpsest keys restore --overwrite`")
    else:
        yield Finding("ok", "ring keys", f"{len(ring.list())} keys open their canaries")


def _patients(ring: KeyRing) -> Iterator[Finding]:
    ids, wrong = ring.patients.ids(), []
    for key_id in ids:
        try:
            ring.patients.open(key_id, cached=False)
        except UnknownKey:  # destroyed meanwhile
            continue
        except Unavailable as error:
            if error.reason.startswith("key-master"):
                raise
            wrong.append(key_id)
    if wrong:
        text = f"{len(wrong)} of {len(ids)} patient keys do not open: {_some(wrong)}"
        yield Finding("problem", "patient keys", text, "bring them back: `palimpsest keys restore --overwrite FILE`")
    else:
        yield Finding("ok", "patient keys", f"{len(ids)} open")


def _index(ring: KeyRing, named: set[str], shredded: set[str]) -> Iterator[Finding]:
    living, buried = set(ring.patients.ids()), {stone.id for stone in ring.tombstones()}
    named = {key_id for key_id in named if key_id.startswith(PREFIX)}
    lost, back = sorted(named - living - buried - shredded), sorted(living & shredded)
    if lost:
        text = f"{len(lost)} patient keys that archived objects need are not here: {_some(lost)}"
        yield Finding("problem", "index", text, "bring them back: `palimpsest keys restore --overwrite FILE`")
    if back:
        text = f"{len(back)} keys that were shredded are here again: {_some(back)}"
        yield Finding("problem", "index", text, "repeat the shredding of these patients")
    half = sorted((named & buried) - shredded)
    if half:
        text = f"{len(half)} keys were destroyed, and the index still knows the patients: {_some(half)}"
        yield Finding("problem", "index", text, "repeat the shredding of these patients")
    if not lost and not back and not half:
        yield Finding("ok", "index", f"{len(named)} patient keys are named by archived objects; none is missing")


def _versions(ring: KeyRing) -> Iterator[Finding]:
    current, used = ring.master.version(), Counter[str]()
    for key_id in ring.patients.ids():
        try:
            used[ring.master.version_of(ring.patients.stored(key_id).wrapped)] += 1
        except (UnknownKey, MasterRefused, Unavailable):
            continue  # named by the check before
    old = sum(used.values()) - used[current]
    text = ", ".join(f"{count} under {version}" for version, count in sorted(used.items())) or "no patient keys yet"
    if old:
        yield Finding("problem", "versions", text, "finish the rotation: `palimpsest keys rewrap`")
    else:
        yield Finding("ok", "versions", text)


def _backups(ring: KeyRing, now: datetime) -> Iterator[Finding]:
    advice = "make one: `palimpsest keys backup FILE`; outside the demo profile sources wait for it"
    until = ring.backed_up_until()
    if until is None:
        yield Finding("problem", "backups", "no proven backup holds every key of the ring", advice)
        return
    at = datetime.fromtimestamp(until, UTC)
    ids = ring.patients.ids()
    late = set(ids) - ring.backed_up(ids)
    days = (now - at).days
    if late:
        text = f"{len(late)} patient keys are not in the last backup, of {at:%Y-%m-%d %H:%M} UTC"
        yield Finding("problem", "backups", text, advice)
    elif days > BACKUP_DAYS:
        advice = "make a new one, or prove that it can still be read: `palimpsest keys drill FILE`"
        yield Finding("note", "backups", f"the last backup is {days} days old", advice)
    else:
        yield Finding("ok", "backups", f"the one of {at:%Y-%m-%d %H:%M} UTC holds everything")


def _tombstones(ring: KeyRing) -> Iterator[Finding]:
    stones = ring.tombstones()
    half = [stone.id for stone in stones if ring.patients.half_destroyed(stone.id)]
    if half:
        text = f"{len(half)} destroyed keys still have a file: {_some(half)}"
        yield Finding("problem", "tombstones", text, "repeat the shredding: it was stopped half way")
    holding = ring.backups_holding([stone.id for stone in stones])
    for backup, ids in holding:
        text = f"the backup of {backup.at} (SHA-256 {backup.sha256}) holds {len(ids)} shredded keys"
        advice = "`palimpsest keys purge FILE`, or destroy it and `palimpsest keys forget SHA256`"
        yield Finding("problem", "tombstones", text, advice)
    if not half and not holding:
        yield Finding("ok", "tombstones", f"{len(stones)} destroyed keys, in no known backup")


def _leftovers(folder: Path) -> Iterator[Finding]:
    replaced = sorted(folder.glob(f"{keyfile.RING_FILE}.replaced-*"))
    if replaced:
        text = f"{len(replaced)} key rings that were replaced by a restore lie in the folder"
        yield Finding("note", "left-overs", text, "keep them while something may need their keys, then destroy them")
    torn = [path for path in (*folder.glob(".*.*"), *(folder / FOLDER).glob("??/.*")) if _old(path)]
    if torn:
        text = f"{len(torn)} temporary files that a killed process left, as {torn[0]}"
        yield Finding("problem", "left-overs", text, "destroy them (`shred -u`): they may hold keys")
    if not replaced and not torn:
        yield Finding("ok", "left-overs", "none")


def _ages(ring: KeyRing, now: datetime) -> Iterator[Finding]:
    old = []
    for row in ring.list():
        days = (now - _instant(row.created)).days
        if row.current and days > KEY_DAYS.get(row.kind, days):
            old.append((row.id, days))
    for key_id, days in old:
        kind = key_id.split("-")[0]
        yield Finding("note", "age", f"{key_id} has been in use for {days} days", f"`palimpsest keys rotate {kind}`")
    if not old:
        yield Finding("ok", "age", "no key is overdue for rotation")


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Unavailable("keys-corrupt", "a key says no readable time of its making") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _old(path: Path) -> bool:
    """Older than a minute: not of a process that writes just now."""
    try:
        return datetime.now(UTC).timestamp() - path.lstat().st_mtime > 60
    except FileNotFoundError:
        return False


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (" ..." if len(ids) > _NAMED else "")


def _advice(error: PalimpsestError) -> str:
    if isinstance(error, PolicyRefused):
        return "follow what it says"
    return "mend it and look again: objects wait meanwhile, none is lost"
