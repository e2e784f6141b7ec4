"""A folder of one series: one payload hidden in all of its images together, and taken out again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import IntegrityError, NotFound, PolicyRefused, Unsupported
from gateway.part10 import peek
from palimpsest.payload_files import REFUSED, check_free, facts_of_now, read_file, write_result
from palimpsest.scan import find_files

if TYPE_CHECKING:
    from gateway.keys import KeyRing
    from worker.deid_profile import Profile
    from worker.stegoseries import StegoSeries


def embed_series(
    folder: Path, out: Path, restoration: Path, ring: KeyRing, profile: Profile, *, force: bool
) -> StegoSeries:
    """Every file of `folder` into `out`, named by its new SOP Instance UID; the record first.

    Raises Unsupported, PolicyRefused (``not-one-series``, ``exists``), NotFound, Unavailable.
    """
    from worker.stegoseries import make_series

    made = make_series([read_file(path) for path in _members(folder)], facts_of_now(), ring, profile=profile)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    for uid, _ in made.images:
        check_free(out / f"{uid}.dcm", force=force)
    write_result(restoration, made.restoration, force=force)
    for uid, data in made.images:
        write_result(out / f"{uid}.dcm", data, force=force)
    return made


def extract_series(folder: Path, out: Path, ring: KeyRing, restoration: bytes, *, force: bool) -> list[Path]:
    """The originals of all images in `folder` into `out`, named by their SOP Instance UID.

    Raises PolicyRefused ``refused`` with the one message of `payload extract`, ``exists``; NotFound, Unavailable.
    """
    from worker.stegoseries import open_series

    try:
        files = open_series([read_file(path) for path in _members(folder)], ring, restoration)
    except (IntegrityError, Unsupported):
        raise PolicyRefused("refused", REFUSED) from None
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    named = [(out / f"{peek(data).sop_instance_uid}.dcm", data) for data in files]
    for path, _ in named:
        check_free(path, force=force)
    for path, data in named:
        write_result(path, data, force=force)
    return [path for path, _ in named]


def _members(folder: Path) -> list[Path]:
    found = list(find_files([folder]))
    if not found:
        raise NotFound("no-such-file", f"{folder}: there is no file in it")
    return found
