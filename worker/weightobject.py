"""The codec's weights in the archive: an object of their own, there before the first object whose frames need it.

One form for every archive and every destination: a Raw Data object like the envelopes, with the weight file in our
private block (docs/archive-object.md, section 7). Its UID is a function of the file's SHA-256 alone, so the archive's
own rules (write once, no byte unchecked) make it content-addressed, and whoever stores envelopes stores it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

from codec.errors import CorruptBitstream
from codec.weights import BadWeights, UnknownWeights, Weights, in_use, load, needed_by
from gateway.archive import ArchiveStore, archive_key
from gateway.errors import IntegrityError, NotFound
from worker import container as box
from worker.container import SectionType
from worker.envelope import Names, element, parse_envelope, part10, private_block, raw_data_header

FORMAT_NAME = "palimpsest-weights/1"
#: Creator-Version UID (0008,9123) of such objects
CREATOR_VERSION_UID = "2.25.112846302790385920465187723906451872119"
SERIES_DESCRIPTION = 0x0008103E
PATIENT = "PALIMPSEST-WEIGHTS"  # nobody: a PACS files every object under some patient


def weights_uid(digest: str, purpose: str = "object") -> str:
    """SOP Instance UID of the object of a weight file (SHA-256 in hex), or its series' or study's UID. Keyless."""
    return _uid(f"palimpsest/weights-{purpose}/1/{digest}")


def _uid(name: str) -> str:
    """A version 8 UUID of the name's SHA-256, as a UID (RFC 9562; PS3.5 B.2)."""
    number = int.from_bytes(sha256(name.encode("ascii")).digest()[:16], "big")
    number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62
    return f"2.25.{number}"


def weights_object(weights: Weights) -> bytes:
    """The Part 10 file that holds a weight file. Deterministic, and the same in every archive."""
    uid, described = weights_uid(weights.sha256), f"Codec weights {weights.name} {weights.sha256[:8]}"
    study = _uid("palimpsest/weights-study/1")  # one for all: they lie together
    series = weights_uid(weights.sha256, "series")
    names = Names(uid, f"{PATIENT}^", PATIENT, study, series, CREATOR_VERSION_UID)
    header = raw_data_header(names, {SERIES_DESCRIPTION: element(SERIES_DESCRIPTION, "LO", described)})
    return part10(uid, header + private_block(FORMAT_NAME, weights.data))


# --- the archive ---


def archive_weights(archive: ArchiveStore, weights: Iterable[Weights] | None = None) -> None:
    """Have weights (default: all that something is encoded with) in the archive, read back. Again: nothing happens.

    To be called before anything is coded. Raises what the archive raises, and IntegrityError ``weights-damaged`` when
    this installation's own file is not what it should be; then nothing must be coded.
    """
    for each in _in_use() if weights is None else weights:
        key = archive_key(weights_uid(each.sha256))
        if not (archive.exists(key) and _read_back(archive, each)):
            data = weights_object(each)
            archive.put(key, data, sha256(data).hexdigest())
            _read_back(archive, each)


def _in_use() -> tuple[Weights, ...]:
    try:
        return in_use()
    except BadWeights as error:
        raise IntegrityError("weights-damaged", f"{error}: install this release again") from error


@lru_cache(maxsize=64)
def _read_back(archive: ArchiveStore, weights: Weights) -> bool:
    """Once a process: that the archive gives back what it was given. Raises IntegrityError, NotFound."""
    data = weights_object(weights)
    if archive.get(archive_key(weights_uid(weights.sha256)), sha256(data).hexdigest()) != data:
        raise IntegrityError("archive-read-back", "the archive gave back other bytes than it was given")
    return True


def require_archived(archive: ArchiveStore, envelope: bytes | memoryview) -> None:
    """Refuse an archive object whose weights are not in the archive, and cannot be put there.

    Raises NotFound ``weights-not-archived``, and what the archive raises.
    """
    archive_weights(archive, needed_weights(envelope))


def needed_weights(envelope: bytes | memoryview) -> tuple[Weights, ...]:
    """The weights that an archive object's frames name. Raises NotFound ``weights-not-archived``, IntegrityError."""
    found: dict[str, Weights] = {}
    for name in needed_ids(envelope):
        try:
            weights = load(name)
        except UnknownWeights as error:
            raise NotFound(
                "weights-not-archived",
                f"an object needs codec weights {name.hex()} that this release does not have, so they cannot be in "
                "the archive before it: install the release that coded it, or let it be coded anew by this one",
            ) from error
        found[weights.sha256] = weights
    return tuple(found.values())


def needed_ids(envelope: bytes | memoryview) -> frozenset[bytes]:
    """Ids (4 bytes) of the weights that an archive object's frames and stacks name. Raises IntegrityError."""
    sections = box.parse(parse_envelope(envelope).container)
    if SectionType.FRAMES not in sections:
        return frozenset()
    parts = [*box.unpack_frames(sections[SectionType.FRAMES])]
    if SectionType.STACK in sections:
        parts += [stack for stack in box.unpack_frames(sections[SectionType.STACK]) if len(stack)]
    try:
        return frozenset(name for part in parts if (name := needed_by(part)) is not None)
    except CorruptBitstream as error:
        raise IntegrityError("bitstream-damaged", "a frame names no weights that can be read") from error
