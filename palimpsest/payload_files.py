"""Payloads in single files: sealed into an image, taken out again, looked at. Needs a key ring, no running gateway.

Nothing is written before it was proven by opening it, nothing partly, and nothing over an existing file unasked.
"""

from __future__ import annotations

import errno
import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from gateway.blobs import sync_folder
from gateway.errors import IntegrityError, NotFound, PolicyRefused, Unavailable, Unsupported
from gateway.keyfile import RING_FILE, write_atomic, write_new
from gateway.part10 import peek

if TYPE_CHECKING:
    from gateway.keys import KeyRing
    from gateway.policy import DeliveryRule, Policy
    from gateway.settings import Settings
    from worker.candidate import Candidate
    from worker.deid_profile import Profile
    from worker.identity import Provenance
    from worker.stegoobject import StegoObject

Mode = Literal["auto", "segmented", "self-contained", "hidden"]
RAW_DATA: Final = "1.2.840.10008.5.1.4.1.1.66"
SOURCE: Final = "file"
#: what a file system without hard links says (FAT, some network shares)
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
REFUSED: Final = "refused: another key, damaged, or nothing of ours in it"


@dataclass(frozen=True)
class Embedded:
    """What `embed` made. representation: 'segmented' (the archive object), 'self-contained' or 'hidden'.

    restoration: a Raw Data object that has to be kept, None where everything is in `data`. passed_over: mode -> reason,
    of the modes that were tried first. facts: figures for people, no identity.
    """

    data: bytes = field(repr=False)
    restoration: bytes | None = field(repr=False)
    representation: str
    uid: str
    passed_over: Mapping[str, str]
    facts: Mapping[str, str | int | float]


@dataclass(frozen=True)
class Extracted:
    """What `extract` found: the received file (or, for compressed input, its native form: not exact)."""

    data: bytes = field(repr=False)
    sha256: str
    exact: bool
    mode: str
    key_ids: tuple[str, ...]


# --- files ---


def write_result(path: Path, data: bytes, *, force: bool | None) -> None:
    """Write whole or not at all, mode 0600. force: True replaces, False does not, None never can (see `check_free`).

    Raises PolicyRefused ``exists``, Unavailable ``unwritable``.
    """
    check_free(path, force=force)
    try:
        if force:
            write_atomic(path, data)
        else:
            _write_once(path, data)
    except FileExistsError:
        raise _exists(path, force) from None
    except OSError as error:
        raise Unavailable("unwritable", f"{path} cannot be written: {error.strerror}") from None


def check_free(path: Path, *, force: bool | None) -> None:
    """Refuse early what `write_result` would refuse late. Raises PolicyRefused ``exists``."""
    if path.exists() and not force:
        raise _exists(path, force)


def _exists(path: Path, force: bool | None) -> PolicyRefused:
    what = " and is never replaced: name another file" if force is None else "; --force replaces it"
    return PolicyRefused("exists", f"{path} exists already{what}")


def check_apart(out: Path, restoration: Path | None) -> None:
    """The image or images and what restores them need places of their own, and no earlier record makes room.

    Raises PolicyRefused ``same-file``, ``exists``.
    """
    if restoration is None:
        return
    if restoration.resolve() == out.resolve() or (out.exists() and restoration.exists() and restoration.samefile(out)):
        raise PolicyRefused("same-file", f"{out}: the image and what restores it are two files")
    check_free(restoration, force=None)


def write_embedded(out: Path, made: Embedded, restoration: Path | None, *, force: bool) -> None:
    """The restoration record first, as the image alone could not be restored; neither without the other.

    Raises as `write_result` and `check_apart`.
    """
    if made.restoration is None or restoration is None:
        write_result(out, made.data, force=force)
        return
    write_result(restoration, made.restoration, force=None)
    try:
        if out.exists() and out.samefile(restoration):  # two names of one file, where case does not count
            raise PolicyRefused("same-file", f"{out}: the image and what restores it are two files")
        write_result(out, made.data, force=force)
    except (PolicyRefused, Unavailable):
        restoration.unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> None:
    """Make a folder for results, mode 0700. Raises Unavailable ``unwritable``."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable("unwritable", f"{path} cannot be written: {error.strerror}") from None


def _write_once(path: Path, data: bytes) -> None:
    """As `write_atomic`, but a file that came to be in the meantime is kept. Raises FileExistsError.

    Where the file system has no links, an interrupted write may leave a part behind; still nothing is replaced.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(6).hex()}")
    try:
        write_atomic(temporary, data)
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        write_new(path, data)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)  # the name must last, too: a restoration record is the only way back


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises NotFound ``no-such-file``, Unavailable ``unreadable``."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFound("no-such-file", f"{path}: there is no such file") from None
    except OSError as error:
        raise Unavailable("unreadable", f"{path} cannot be read: {error.strerror}") from None


# --- keys and the trail ---


def open_ring(settings: Settings, folder: Path | None, *, create: bool = False, write: bool = False) -> KeyRing:
    """The key ring in `folder`, or the gateway's own. Made only where `create` says so; `write`: patients' keys may be.

    Raises NotFound ``no-key-ring`` with what to do, Unavailable, PolicyRefused as `KeyRing`.
    """
    from gateway.bootstrap import read_ring
    from gateway.keys import KeyRing
    from gateway.masters import open_master

    place = folder or settings.keys_dir
    if not create and not (place / RING_FILE).exists():
        raise NotFound("no-key-ring", f"no key ring in {place}: name one with --keys" + _hint(write))
    if folder is not None:
        return KeyRing.load_or_create(folder, create=create) if write else KeyRing.open_readonly(folder)
    if not write:
        return read_ring(settings)
    master, archive = open_master(settings), settings.archive_dir
    return KeyRing.load_or_create(place, archive_dir=archive, create=create, master=master)


def _hint(write: bool) -> str:
    return ", or let --create-keys make a new one" if write else ""


def record_use(settings: Settings, folder: Path | None, event: str, detail: Mapping[str, str | int | bool]) -> None:
    """Into the gateway's audit trail, when its keys were used and it has a database. Raises Unavailable."""
    from gateway.audit import AuditEvent
    from gateway.index import Index

    if folder is not None or (settings.database_url is None and not settings.database_path.exists()):
        return
    index = Index(settings.database)
    try:
        index.audit(AuditEvent(event, f"cli:{getpass.getuser()}", detail=detail))
    finally:
        index.close()


def facts_of_now() -> Provenance:
    """What the record says of a file that came over no network."""
    from worker.identity import Provenance
    from worker.pipeline import software

    return Provenance(datetime.now(UTC).isoformat(timespec="seconds"), SOURCE, "", software())


# --- embedding ---


def attempts(mode: Mode, rule: DeliveryRule | None) -> tuple[str, ...]:
    """Which representations to try, in order: the one named, the policy's for a destination, or what suits best."""
    if mode != "auto":
        return (mode,)
    if rule is None:
        return ("self-contained", "segmented")
    return tuple("segmented" if form == "envelope" else form for form in rule.attempts)


def embed(
    data: bytes, ring: KeyRing, policy: Policy, tries: tuple[str, ...], profile: Profile, *, restoration_apart: bool
) -> Embedded:
    """Seal a file's identity into it, in the first of `tries` that suits it.

    Raises Unsupported with the first try's reason when none does; PolicyRefused, Unavailable (ring).
    """
    passed_over: dict[str, str] = {}
    first: Unsupported | None = None
    for mode in tries:
        if mode == "segmented":
            return _segmented(data, ring, policy, passed_over)
        try:
            return _viewable(data, ring, mode, profile, passed_over, apart=restoration_apart or mode == "hidden")
        except Unsupported as error:
            passed_over[mode] = f"{error.reason}: {error.message}"
            first = first or error
    assert first is not None, "something is tried"
    raise first


def _segmented(data: bytes, ring: KeyRing, policy: Policy, passed_over: Mapping[str, str]) -> Embedded:
    from worker.candidate import build_candidate
    from worker.restore import restore
    from worker.rules import modality_of

    head = peek(data)
    rule = policy.archive_rule(head.sop_class_uid, modality_of(data))
    made = build_candidate(data, facts_of_now(), ring, rule=rule)
    if restore(made.envelope, ring).record.file_sha256 != made.file_sha256:
        raise IntegrityError("restore-mismatch", "the archive object does not give its file back")
    return Embedded(made.envelope, None, "segmented", made.envelope_uid, passed_over, _candidate_facts(made))


def _candidate_facts(made: Candidate) -> dict[str, str | int | float]:
    return {
        "form": made.form.value,
        "carrier": made.carrier,
        "coder": made.coder,
        "payload bytes": made.payload_bytes,
        "patient key": made.patient_key,
        **{f"global part, {name.replace('_', ' ')}": count for name, count in made.global_part.items()},
        **({"why sealed whole": made.reason} if made.reason else {}),
    }


def _viewable(
    data: bytes, ring: KeyRing, mode: str, profile: Profile, passed_over: Mapping[str, str], *, apart: bool
) -> Embedded:
    from worker.stegoobject import make_stego

    made = make_stego(
        data, facts_of_now(), ring, mode="hidden" if mode == "hidden" else "self-contained", profile=profile,
        side="archive" if apart else "inline",
    )  # fmt: skip
    return Embedded(made.part10, made.restoration, made.mode, made.stego_uid, passed_over, _stego_facts(made))


def _stego_facts(made: StegoObject) -> dict[str, str | int | float]:
    report = made.report
    return {
        "object": made.object_id.hex(),
        "carrying frame": report.frame + 1,
        "capsule bytes": report.capsule_bytes,
        "changed samples": report.changed,
        "largest change": report.max_change,
        "PSNR dB": round(report.psnr, 1),
        "patient key": made.patient_key,
    }


# --- extracting ---


def extract(data: bytes, ring: KeyRing, restoration: bytes | None, member: int | None = None) -> Extracted:
    """The received file out of an archive object or a stego object. member: which of a group's, from 1.

    Raises PolicyRefused ``refused`` with one message for a wrong key, damage, and what is nothing of ours; ``group``
    where the member must be said; ``restoration-missing`` for a stego object whose restoration record lies elsewhere;
    Unavailable (ring).
    """
    try:
        return _extract(data, ring, restoration, None if member is None else member - 1)
    except IntegrityError as error:
        if error.reason == "restoration-missing":
            raise PolicyRefused(error.reason, "this object's restoration record is needed too: --restoration") from None
        raise PolicyRefused("refused", REFUSED) from None
    except Unsupported as error:
        if error.reason == "group":
            raise PolicyRefused("group", f"{error.message}: --member 1, 2, ...") from None
        raise PolicyRefused("refused", REFUSED) from None


def _extract(data: bytes, ring: KeyRing, restoration: bytes | None, member: int | None) -> Extracted:
    from worker.restore import restore
    from worker.stegoobject import open_stego

    if is_raw_data(data):
        back = restore(data, ring, member=member)
        return Extracted(back.data, back.sha256, back.exact, back.form.value, back.key_ids)
    found = open_stego(data, ring, restoration=restoration)
    return Extracted(found.data, found.sha256, found.exact, found.mode, found.key_ids)


def is_raw_data(data: bytes) -> bool:
    """Whether the file says it is of the class of archive objects. Raises InvalidInstance (not DICOM)."""
    return peek(data).sop_class_uid == RAW_DATA
