"""The Encrypted Attributes Sequence (0400,0500): what de-identification removed, as CMS for named recipients.

PS3.15 E.1.1: the Encrypted Attributes Data Set holds the Modified Attributes Sequence (0400,0550) with one item, is
encoded in the transfer syntax that (0400,0510) names (that of the source, so that every byte of a value survives) and
encrypted as CMS EnvelopedData into (0400,0520). As CMS does not authenticate, the data set ends in a private block
of ours: original file meta, the object it belongs to, the signer and an Ed25519 signature over everything before.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydicom import charset, dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from gateway.errors import InvalidInstance
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from stego.cms import open_cms, seal_cms
from stego.errors import SealError
from worker.attributes import Data
from worker.deid import ENCRYPTED_ATTRIBUTES, Profile, separate
from worker.deid_rules import SOP_UID, UNREADABLE, element_of, tags_of

CREATOR = "PALIMPSEST IDENTITY"
FORMAT_NAME = "palimpsest-identity/1"
CONTENT_SYNTAX, ENCRYPTED_CONTENT, MODIFIED_ATTRIBUTES = 0x04000510, 0x04000520, 0x04000550
_BLOCK = 0x4D510000
_FORMAT, _FILE_META, _PREAMBLE, _GROUP_LENGTHS, _BELONGS_TO, _SIGNER, _SIGNATURE = (
    _BLOCK | 0x1000 | number for number in range(1, 8)
)
_SIGNATURE_BYTES = 64
_GROUP_LENGTH = struct.Struct("<HI")  # pydicom does not write the retired (gggg,0000), so they travel apart
_ITEM = {True: struct.Struct("<HHI"), False: struct.Struct(">HHI")}
_SIGNED_PREFIX = b"palimpsest/encrypted-attributes/v1\x00"
#: transfer syntax -> (implicit VR, little endian)
_ENCODINGS = {IMPLICIT_LE: (True, True), EXPLICIT_LE: (False, True), EXPLICIT_BE: (False, False)}


@dataclass(frozen=True)
class CmsItem:
    """One item of (0400,0500): transfer syntax of the content, and the CMS bytes (padded to even length in DICOM)."""

    syntax: str
    content: bytes

    def dataset(self) -> Dataset:
        """The item as pydicom takes it."""
        item = Dataset()
        item.add_new(CONTENT_SYNTAX, "UI", self.syntax)
        item.add_new(ENCRYPTED_CONTENT, "OB", self.content + b"\0" * (len(self.content) & 1))
        return item


@dataclass(frozen=True)
class Opened:
    """removed: what `reidentify` takes. belongs_to: SOP Instance UID that the item was made for. signer: key id."""

    removed: Dataset = field(repr=False)
    belongs_to: str
    signer: str


def seal_identity(
    data: Data, recipients: Sequence[bytes], *, belongs_to: str, signer: tuple[str, bytes], key: bytes
) -> CmsItem:
    """The Basic Profile's removed attributes of a received Part 10 file, for recipients alone.

    recipients: certificates or RSA public keys (`stego.cms`). belongs_to: SOP Instance UID of the object that will
    carry the item. signer: (id, raw Ed25519 private key). key: the pseudonym key. Raises InvalidInstance
    ``cms-unreadable`` when the file cannot be read as DICOM; ValueError for an unfit recipient.
    """
    try:
        source = dcmread(io.BytesIO(bytes(data)), stop_before_pixels=True)
        removed = separate(source, Profile(), key).removed
        packed, syntax = pack_attributes(removed, belongs_to=belongs_to, signer=signer)
    except UNREADABLE as error:
        raise InvalidInstance("cms-unreadable", "the header cannot be read as a DICOM data set") from error
    if SOP_UID not in removed or not _reads_back(packed, syntax, removed):
        # a lenient parser calls a cut-off header a short one, and reads what contradicts its own syntax
        raise InvalidInstance("cms-unreadable", "the header is damaged")
    return CmsItem(syntax, seal_cms(packed, recipients))


def seal_attributes(
    removed: Dataset, recipients: Sequence[bytes], *, belongs_to: str, signer: tuple[str, bytes]
) -> CmsItem:
    """Sign and seal the Modified Attributes item that `deidentify` gave. Raises ValueError for an unfit recipient."""
    packed, syntax = pack_attributes(removed, belongs_to=belongs_to, signer=signer)
    return CmsItem(syntax, seal_cms(packed, recipients))


def open_attributes(item: CmsItem | Dataset, private_key: bytes, *, find_verify_key: Callable[[str], bytes]) -> Opened:
    """Inverse of `seal_attributes` for one recipient. find_verify_key: id -> raw public key, or LookupError.

    Raises SealError, whatever the cause; ValueError when the private key cannot be read.
    """
    if isinstance(item, Dataset):
        content = item[ENCRYPTED_CONTENT].value if ENCRYPTED_CONTENT in item else b""
        syntax = str(item[CONTENT_SYNTAX].value) if CONTENT_SYNTAX in item else ""
        item = CmsItem(syntax, _without_pad(content))
    opened = _unpack(open_cms(item.content, private_key), item.syntax, find_verify_key)
    if opened is None:
        raise SealError
    return opened


def attach(dataset: Dataset, items: Sequence[CmsItem]) -> None:
    """Put the items into a de-identified data set as (0400,0500); one item for each group of recipients."""
    dataset.add_new(ENCRYPTED_ATTRIBUTES, "SQ", [item.dataset() for item in items])


def pack_attributes(removed: Dataset, *, belongs_to: str, signer: tuple[str, bytes]) -> tuple[bytes, str]:
    """(the signed Encrypted Attributes Data Set, its transfer syntax). Deterministic (Ed25519 is)."""
    implicit, little = removed.original_encoding if None not in removed.original_encoding else (False, True)
    syntax = next(uid for uid, encoding in _ENCODINGS.items() if encoding == (implicit, little))
    outer = Dataset()
    outer.add_new(MODIFIED_ATTRIBUTES, "SQ", [removed])
    outer.add_new(_BLOCK | 0x10, "LO", CREATOR)
    outer.add_new(_FORMAT, "LO", FORMAT_NAME)
    if hasattr(removed, "file_meta"):
        outer.add_new(_FILE_META, "OB", _encode(removed.file_meta, EXPLICIT_LE))
    if getattr(removed, "preamble", None) is not None:
        outer.add_new(_PREAMBLE, "OB", removed.preamble)
    lengths = _pack_group_lengths(removed)
    if lengths:
        outer.add_new(_GROUP_LENGTHS, "OB", lengths)
    outer.add_new(_BELONGS_TO, "UI", belongs_to)
    outer.add_new(_SIGNER, "LO", signer[0])
    body = _encode(outer, syntax)
    signature = Ed25519PrivateKey.from_private_bytes(signer[1]).sign(_signed(body, syntax))
    return body + _signature_element(signature, syntax), syntax


def unpack_attributes(packed: bytes, syntax: str, *, find_verify_key: Callable[[str], bytes]) -> Opened:
    """Inverse of `pack_attributes`, for content that `openssl` or another opened. Raises SealError."""
    opened = _unpack(packed, syntax, find_verify_key)
    if opened is None:
        raise SealError
    return opened


def _unpack(packed: bytes, syntax: str, find_verify_key: Callable[[str], bytes]) -> Opened | None:
    tail = len(_signature_element(bytes(_SIGNATURE_BYTES), syntax)) if syntax in _ENCODINGS else 0
    if not tail or len(packed) <= tail:
        return None
    body, signature = packed[:-tail], packed[-_SIGNATURE_BYTES:]
    outer = _decode(body, syntax)
    if outer is None or packed[-tail:] != _signature_element(signature, syntax):
        return None
    signer = _text(outer, _SIGNER)
    if not _genuine(signer, signature, _signed(body, syntax), find_verify_key):
        return None
    removed = _removed(outer, syntax)
    return None if removed is None else Opened(removed, _text(outer, _BELONGS_TO), signer)


def _removed(outer: Dataset, syntax: str) -> Dataset | None:
    """The item, its values as unread bytes just as a file's are: parsing would mend what was odd in the source."""
    raw, item = _bytes(outer, MODIFIED_ATTRIBUTES), _ITEM[_ENCODINGS[syntax][1]]
    if len(raw) < item.size or item.unpack_from(raw) != (0xFFFE, 0xE000, len(raw) - item.size):
        return None
    removed = _decode(raw[item.size :], syntax)
    if removed is None or _text(outer, _FORMAT) != FORMAT_NAME:
        return None
    for group, length in _GROUP_LENGTH.iter_unpack(_bytes(outer, _GROUP_LENGTHS)):
        removed.add_new(group << 16, "UL", length)
    if _FILE_META in outer:
        meta = _decode(_bytes(outer, _FILE_META), EXPLICIT_LE)
        if meta is None:
            return None
        removed.file_meta = FileMetaDataset(meta)
        removed.file_meta.set_original_encoding(False, True, meta.original_character_set)
    if _PREAMBLE in outer:
        removed.preamble = _bytes(outer, _PREAMBLE)
    return removed


def _pack_group_lengths(removed: Dataset) -> bytes:
    packed = []
    for tag in tags_of(removed):
        if tag.element == 0 and tag.group > 6:
            value = element_of(removed, tag).value
            little = bool(removed.original_encoding[1] in (True, None))
            if isinstance(value, bytes) and len(value) == 4:
                value = int.from_bytes(value, "little" if little else "big")
            if isinstance(value, int):  # anything else is no group length; readers skip it, and so does pydicom
                packed.append(_GROUP_LENGTH.pack(tag.group, value))
    return b"".join(packed)


def _genuine(signer: str, signature: bytes, message: bytes, find_verify_key: Callable[[str], bytes]) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(find_verify_key(signer)).verify(signature, message)
    except (LookupError, InvalidSignature, ValueError):
        return False
    return True


def _reads_back(packed: bytes, syntax: str, removed: Dataset) -> bool:
    outer = _decode(packed, syntax)
    found = None if outer is None else _removed(outer, syntax)
    return found is not None and set(tags_of(found)) == set(tags_of(removed))


def _signed(body: bytes, syntax: str) -> bytes:
    return _SIGNED_PREFIX + syntax.encode("ascii") + b"\x00" + body


def _signature_element(signature: bytes, syntax: str) -> bytes:
    element = Dataset()
    element.add_new(_SIGNATURE, "OB", signature)
    return _encode(element, syntax)


def _encode(dataset: Dataset, syntax: str) -> bytes:
    """Bytes without preamble and meta; unread values are written as they were read."""
    implicit, little = _ENCODINGS[syntax]
    if dataset.original_encoding == (None, None):
        # else pydicom reads, and so mends, every value below to re-encode it
        dataset.set_original_encoding(implicit, little, charset.default_encoding)
    fp = DicomBytesIO()
    fp.is_implicit_VR, fp.is_little_endian = implicit, little
    write_dataset(fp, dataset)
    return bytes(fp.getvalue())


def _decode(data: bytes, syntax: str) -> Dataset | None:
    implicit, little = _ENCODINGS[syntax]
    try:
        return read_dataset(DicomBytesIO(data), implicit, little)
    except UNREADABLE:
        return None


def _bytes(dataset: Dataset, tag: int) -> bytes:
    value = element_of(dataset, tag).value if tag in dataset else b""
    return value if isinstance(value, bytes) else b""


def _text(dataset: Dataset, tag: int) -> str:
    return _bytes(dataset, tag).decode("ascii", "replace").strip("\0 ")


def _without_pad(content: bytes) -> bytes:
    """DER says how long it is; one padding byte may follow (PS3.5 6.2)."""
    if len(content) < 6 or content[0] != 0x30 or content[1] & 0x80 == 0 or not 1 <= content[1] & 0x7F <= 4:
        return bytes(content)
    count = content[1] & 0x7F
    size = 2 + count + int.from_bytes(content[2 : 2 + count], "big")
    return bytes(content[:size]) if len(content) - size in (0, 1) else bytes(content)
