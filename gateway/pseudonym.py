"""Stable keyed replacements (PS3.15 E.1): the same input under the same key always gives the same pseudonym.

HMAC-SHA256 with the key ring's pseudonym key: without the key nobody can test a guess.
"""

from __future__ import annotations

import base64
import hmac
import uuid

_BASE32 = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789ABCDEFGHJKMNPQRSTVWXYZ")  # Crockford's


def pseudonym_uid(uid: str, key: bytes) -> str:
    """A UID of at most 44 characters: '2.25.' and a version 8 UUID (PS3.5 B.2, RFC 9562 5.8) from 122 bits of HMAC."""
    digest = hmac.digest(key, b"palimpsest/uid/v1\x00" + uid.encode("utf-8", "replace"), "sha256")
    number = int.from_bytes(digest[:16], "big")
    number = (number & ~(0xF << 76)) | (8 << 76)
    number = (number & ~(0x3 << 62)) | (2 << 62)
    return f"2.25.{uuid.UUID(int=number).int}"


def pseudonym_patient(patient_id: str, study_uid: str, key: bytes) -> str:
    """The name of a patient in envelopes and in the audit trail; of one without an ID, that of the study's nobody."""
    return pseudonym_text(patient_id or study_uid, key, "P" if patient_id else "S")


def pseudonym_accession(accession: str, key: bytes) -> str:
    """What stands for an Accession Number (0008,0050) in de-identified copies (`worker.deid_values.dummy_value`)."""
    return pseudonym_text(f"00080050{accession}", key, "D")


def pseudonym_text(value: str, key: bytes, prefix: str = "", *, length: int = 16) -> str:
    """`prefix` and digits and capitals, `length` characters in all (16 fits every VR, SH included).

    The prefix separates domains: one value under two prefixes gives unrelated texts. Raises ValueError when fewer
    than 8 keyed characters (40 bits) would remain, or more than 51.
    """
    keyed = length - len(prefix)
    if not 8 <= keyed <= 51:
        raise ValueError("8 to 51 keyed characters beside the prefix")
    message = b"\x00".join((b"palimpsest/text/v1", prefix.encode("utf-8"), value.encode("utf-8", "replace")))
    digest = hmac.digest(key, message, "sha256")
    return prefix + base64.b32encode(digest).translate(_BASE32)[:keyed].decode("ascii")
