"""Another copy of a damaged archive object: at a destination that was sent it, or made anew from the source.

Destinations of kind filesystem and S3 give back the very bytes, which are compared with the recorded digest. Where the
spool still has what was received, or an older object of the instance is there, the instance is coded anew
(worker/recode.py), by an encoding process, in its turn.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Final

from gateway.bootstrap import Gateway
from gateway.destination import Destination
from gateway.errors import Unavailable
from gateway.index_care import ArchivedObject
from gateway.instance import DELIVERED

__all__ = ["mend"]

SLACK: Final = 1 << 20  # bytes by which a copy may be larger than what is looked for, and is no copy then


def mend(gw: Gateway, found: ArchivedObject, *, bytes_too: bool = True) -> str:
    """Put a damaged object back from a destination; 'destination:NAME', or '' if none has it.

    Then its instances are to be coded anew, as far as they can be; so, too, without bytes_too: the recorded bytes are
    there and do not open, and the same from elsewhere would not either. Raises Unavailable (archive).
    """
    for name in _places(gw, found) if bytes_too else ():
        destination = gw.settings.destination(name)
        data = _fetched(gw, destination, found.key) if destination is not None else None
        if data is not None and sha256(data).hexdigest() == found.digest:
            gw.archive.mend(found.key, data, found.digest)
            return f"destination:{name}"
    for row in found.rows:
        if row.shredded_at is None and (gw.spool.exists(row.digest) or gw.index.superseded_of(row.id)):
            gw.index.recode_want(row.id)
    return ""


def _places(gw: Gateway, found: ArchivedObject) -> list[str]:
    """Destinations that were sent this very object."""
    sent = (each for row in found.rows for each in gw.index.forwards(row.id) if each.state in DELIVERED)
    return list(dict.fromkeys(each.destination for each in sent if each.representation in ("envelope", None)))


def _fetched(gw: Gateway, destination: Destination, name: str) -> bytes | None:
    """What lies at a destination under that name; None where there is nothing, or nothing can be asked."""
    limit = gw.settings.max_object_bytes * 2 + SLACK
    if destination.kind == "filesystem":
        try:
            with (Path(destination.path) / name).open("rb") as file:
                return file.read(limit)
        except OSError:
            return None
    if destination.kind != "s3":
        return None
    from botocore.exceptions import BotoCoreError, ClientError

    from worker.forward_s3 import S3Sender

    try:
        with S3Sender(gw.settings, destination) as sender:
            return sender.read(name, limit)
    except (BotoCoreError, ClientError, Unavailable):
        return None
