"""A folder of one series: one payload hidden in all of its images together, and taken out again."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import IntegrityError, InvalidInstance, NotFound, PolicyRefused, Unsupported
from gateway.part10 import peek
from palimpsest.payload_files import REFUSED, check_free, facts_of_now, make_folder, read_file, write_result
from palimpsest.scan import find_files

if TYPE_CHECKING:
    from gateway.keys import KeyRing
    from worker.deid_profile import Profile
    from worker.stegoseries import StegoSeries


def embed_series(
    folder: Path, out: Path, restoration: Path, ring: KeyRing, profile: Profile, *, force: bool,
    record: Callable[[StegoSeries], None],
) -> StegoSeries:  # fmt: skip
    """Every file of `folder` into `out`, named by its new SOP Instance UID; the record first.

    record: told of the made series before anything is written. Raises Unsupported, PolicyRefused (``not-one-series``,
    ``exists``, ``same-folder``), NotFound, Unavailable.
    """
    from worker.stegoseries import make_series

    if out.resolve() == folder.resolve():
        raise PolicyRefused("same-folder", f"{out}: originals and what is made from them belong in two folders")
    files = [read_file(path) for path in _members(folder, restoration)]
    made = make_series(files, facts_of_now(), ring, profile=profile)
    for uid, _ in made.images:
        check_free(out / f"{uid}.dcm", force=force)
    record(made)
    make_folder(out)
    write_result(restoration, made.restoration, force=None)
    for uid, data in made.images:
        write_result(out / f"{uid}.dcm", data, force=force)
    return made


def extract_series(
    folder: Path, out: Path, ring: KeyRing, restoration: Path, *, force: bool, record: Callable[[int], None]
) -> list[Path]:
    """The originals of all images in `folder` into `out`, named by their SOP Instance UID.

    restoration: the series' record; it may lie beside the images. record: told how many, before anything is written.
    Raises PolicyRefused ``refused`` with the one message of `payload extract`, ``exists``; NotFound, Unavailable.
    """
    from worker.stegoseries import open_series

    try:
        images = [read_file(path) for path in _members(folder, restoration)]
        files = open_series(images, ring, read_file(restoration))
    except (IntegrityError, Unsupported):
        raise PolicyRefused("refused", REFUSED) from None
    named = [(out / name, data) for name, data in zip(_names(files), files, strict=True)]
    for path, _ in named:
        check_free(path, force=force)
    record(len(named))
    make_folder(out)
    for path, data in named:
        write_result(path, data, force=force)
    return [path for path, _ in named]


def _names(files: list[bytes]) -> list[str]:
    """A file name for each: its UID, or its digest where that is none or another file has it already."""
    names: list[str] = []
    for data in files:
        try:
            name = f"{peek(data).sop_instance_uid}.dcm"
        except InvalidInstance:
            name = ""
        names.append(name if name and name not in names else f"{sha256(data).hexdigest()[:32]}.dcm")
    return names


def _members(folder: Path, restoration: Path) -> list[Path]:
    """The folder's files but the restoration record, if it lies there."""
    known = restoration.resolve()
    found = [path for path in find_files([folder]) if path.resolve() != known]
    if not found:
        raise NotFound("no-such-file", f"{folder}: there is no file in it")
    return found
