"""Under which keys an object lies: the wraps of its data key and of its bitmap's key, made and opened again.

The data key is wrapped to the patient's key, and to the recipients that the policy's rule names. The key of a sealed
bitmap, which opens pixels and no identity, is wrapped to the ring's pixel key and to every recovery recipient.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from gateway.errors import Unavailable
from gateway.keys import KeyRing, Recipient
from gateway.policy import ArchiveRule
from stego.errors import SealError
from stego.recipients import Kind, is_ring_wrap, recipient_of, unwrap_with, wrap_to
from stego.record import Record
from stego.seal import Context, bitmap_key, unwrap_key, wrap_kek_id, wrap_key


@dataclass(frozen=True)
class Wraps:
    """What an object carries of its keys, and whose they are.

    data: wraps of the data key, the patient's first. pixel: wraps of the bitmap's key, () unless it is sealed.
    patient_key: id of the patient's key. key_ids: ids of all keys of the ring and names of recipients, for the audit.
    """

    data: tuple[bytes, ...]
    pixel: tuple[bytes, ...]
    patient_key: str
    key_ids: tuple[str, ...]


@dataclass(frozen=True)
class OpenedKey:
    """A data or bitmap key (32 bytes), and the id of the ring's key or the name of the recipient that opened it."""

    key: bytes = field(repr=False)
    id: str


def patient_label(patient_id: str, study_uid: str) -> str:
    """What the ring finds a patient's key by: the Patient ID, or the study where there is none."""
    return f"P\x00{patient_id}" if patient_id else f"S\x00{study_uid}"


def label_of(record: Record) -> str:
    """`patient_label` of what a record names; a file that names neither patient nor study is a patient by itself."""
    return patient_label(record.patient_id, record.study_uid or f"palimpsest/no-study/{record.file_sha256}")


def make_wraps(
    ring: KeyRing, rule: ArchiveRule, label: str, data_key: bytes, context: Context, *, sealed_bitmap: bool
) -> Wraps:
    """Wrap an object's keys as `rule` says. label: `patient_label`.

    Raises Unavailable, also ``unknown-recipient`` when the ring does not know one that the rule names: an object must
    not go without a recipient that it was promised to, nor be lost, so it waits.
    """
    patient_key, secret = ring.patient_key(label)
    further = tuple(known_recipient(ring, name) for name in rule.recipients)
    data = (
        wrap_key(data_key, kek=secret, kek_id=patient_key),
        *(_to_recipient(each, data_key, context) for each in further),
    )
    key_ids = [patient_key, *(f"recipient:{each.name}" for each in further)]
    pixel: tuple[bytes, ...] = ()
    if sealed_bitmap:
        pixel_id, pixel_secret = ring.pixel_key()
        recovery = tuple(each for each in ring.recipients() if each.recovery)
        key = bitmap_key(data_key, context)
        pixel = (
            wrap_key(key, kek=pixel_secret, kek_id=pixel_id),
            *(_to_recipient(each, key, context) for each in recovery),
        )
        key_ids += [pixel_id, *(f"recovery:{each.name}" for each in recovery)]
    return Wraps(data, pixel, patient_key, tuple(key_ids))


def known_recipient(ring: KeyRing, name: str) -> Recipient:
    """The recipient of this name. Raises Unavailable ``unknown-recipient``."""
    for each in ring.recipients():
        if each.name == name:
            return each
    raise Unavailable("unknown-recipient", "the policy names a recipient that the key ring does not have")


def _to_recipient(recipient: Recipient, key: bytes, context: Context) -> bytes:
    return wrap_to(cast(Kind, recipient.kind), recipient.public, recipient.name, key, context.aad())


def open_wraps(wraps: Sequence[bytes], find: Callable[[str], bytes]) -> OpenedKey:
    """The key from the first wrap that a key of the ring opens. find: id -> 32 bytes. Raises SealError."""
    for wrap in wraps:
        if is_ring_wrap(wrap):
            try:
                return OpenedKey(unwrap_key(wrap, find_kek=find), wrap_kek_id(wrap))
            except SealError:
                continue
    raise SealError


def open_wraps_as(wraps: Sequence[bytes], private: bytes, context: Context) -> OpenedKey:
    """The same with a recipient's private key (`stego.recipients.generate`). Raises SealError."""
    for wrap in wraps:
        try:
            return OpenedKey(unwrap_with(wrap, private, context.aad()), recipient_of(wrap)[1])
        except SealError:
            continue
    raise SealError


def pixel_key_that_opens(wraps: Sequence[bytes], ring: KeyRing, key: bytes) -> str:
    """Id of the ring's pixel key under which `key` lies in `wraps`, '' if there is none."""
    try:
        found = open_wraps(wraps, ring.find_pixel_key)
    except SealError:
        return ""
    return found.id if hmac.compare_digest(found.key, key) else ""
