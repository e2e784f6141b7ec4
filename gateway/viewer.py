"""Which viewer is served under /viewer, and what of it is installed: OHIF's packed distribution, pinned by its digest.

`palimpsest viewer install` unpacks it (palimpsest/viewer_install.py), the service gives it out (service/viewer.py).
The list of files is written last, so that a broken installation is none; nothing outside the list is ever served.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["INTEGRITY", "LISTING", "PACKAGE", "ROOT", "VERSION", "Installed", "StoredFile", "installed"]

PACKAGE: Final = "@ohif/app"  # MIT; https://www.npmjs.com/package/@ohif/app
VERSION: Final = "3.13.2"
#: Subresource Integrity (W3C) of the packed distribution, as the registry states it.
INTEGRITY: Final = "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
#: The path under which the installed files know themselves to be.
ROOT: Final = "/viewer/"
LISTING: Final = "palimpsest.json"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """path: where it lies; sha256: hex, of what is sent uncompressed; packed: a gzip form lies beside it (`.gz`)."""

    path: Path
    sha256: str
    packed: bool


@dataclass(frozen=True, slots=True)
class Installed:
    """files: what is served, by its path below ROOT; script and style: what the page loads first."""

    files: dict[str, StoredFile]
    script: str
    style: str


def installed(folder: Path) -> Installed | None:
    """The viewer in that folder; None if there is none, or one of another version."""
    try:
        listing = json.loads((folder / LISTING).read_bytes())
        if listing["integrity"] != INTEGRITY:
            return None
        files = {
            str(name): StoredFile(folder / str(name), str(sha256), bool(packed))
            for name, (sha256, packed) in listing["files"].items()
        }
        return Installed(files, str(listing["script"]), str(listing["style"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
