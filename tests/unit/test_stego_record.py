"""stego.record: packing is an inverse pair, always fits, is signed, and refuses everything else alike."""

from __future__ import annotations

import os
import random
import zlib
from dataclasses import fields, replace
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from stego import seal
from stego.errors import SealError
from stego.record import CUT_MARK, DICTIONARY, LIMITS, Record, from_json, pack_record, to_json, unpack_record

SECRET = bytes(range(32))
SIGNER = ("sign-1", SECRET)
PUBLIC = {
    name: Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    for name, secret in (SIGNER, ("sign-2", bytes(32)))
}
TYPICAL = Record(
    patient_name="Mustermann^Erika",
    patient_id="4711-0815",
    birth_date="19640812",
    sex="F",
    accession="A2026-00131",
    study_uid="1.3.6.1.4.1.5962.1.2.1.20040119072730.12322",
    series_uid="1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322",
    sop_uid="1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322",
    sop_class="1.2.840.10008.5.1.4.1.1.2",
    study_date="20040119",
    modality="CT",
    file_sha256=sha256(b"a").hexdigest(),
    dataset_sha256=sha256(b"b").hexdigest(),
    pixel_sha256=sha256(b"c").hexdigest(),
    nonpixel_sha256=sha256(b"d").hexdigest(),
    received_at="2026-03-01T08:10:00.123456+00:00",
    source="dimse",
    calling_ae="CTSCANNER1",
    software="palimpsest 0.1.0",
)

texts = st.text(max_size=300)
records = st.builds(Record, **dict.fromkeys(LIMITS, texts))


@settings(max_examples=150)
@given(records)
def test_a_packed_record_reads_back_and_fits(record: Record) -> None:
    packed = pack_record(record, signing_key=SIGNER)
    assert len(packed) <= seal.MAX_RECORD_BYTES
    assert unpack_record(packed, find_verify_key=PUBLIC.__getitem__) == replace(record, signer="sign-1").fitted()


@settings(max_examples=100)
@given(records)
def test_fitting_is_idempotent_and_names_what_it_cut(record: Record) -> None:
    fitted = record.fitted()
    assert fitted.fitted() == fitted
    for name in LIMITS:
        assert (getattr(fitted, name) != getattr(record, name)) == (name in fitted.cut)
    assert from_json(to_json(fitted)) == fitted


def test_a_typical_record_takes_the_smallest_class_and_is_not_cut() -> None:
    packed = pack_record(TYPICAL, signing_key=SIGNER)
    assert seal.length_class(len(packed)) == seal.LENGTH_CLASSES[0]
    assert unpack_record(packed, find_verify_key=PUBLIC.__getitem__) == replace(TYPICAL, signer="sign-1")


@pytest.mark.parametrize("alphabet", ["\u0001", '"\\', "\U0001f9e0", "\ud800", "\u4e00\u9fa5\u8a9e"])
def test_the_worst_record_still_fits(alphabet: str) -> None:
    rng = random.Random(3)
    worst = Record(**{name: "".join(rng.choices(alphabet, k=500)) for name in LIMITS})
    packed = pack_record(worst, signing_key=("s" * 32, SECRET))
    assert len(packed) <= seal.MAX_RECORD_BYTES
    # Not even a record that deflate cannot shorten would overflow: stored blocks add 5 bytes.
    assert 1 + 64 + 5 + len(to_json(replace(worst, signer="s" * 32).fitted())) <= seal.MAX_RECORD_BYTES


def test_a_cut_name_keeps_its_beginning() -> None:
    record = replace(TYPICAL, patient_name="Long^" + "x" * 400).fitted()
    assert record.cut == ("patient_name",)
    assert record.patient_name.startswith("Long^xxx") and record.patient_name.endswith(CUT_MARK)
    assert len(record.patient_name.encode()) == LIMITS["patient_name"]


def test_a_wrong_signature_signer_or_key_is_refused() -> None:
    packed = pack_record(TYPICAL, signing_key=SIGNER)
    for ring in ({}, {"sign-1": PUBLIC["sign-2"]}, {"sign-1": b"short"}):
        with pytest.raises(SealError):
            unpack_record(packed, find_verify_key=ring.__getitem__)
    forged = pack_record(TYPICAL, signing_key=("sign-1", os.urandom(32)))
    with pytest.raises(SealError):
        unpack_record(forged, find_verify_key=PUBLIC.__getitem__)
    with pytest.raises(SealError):
        unpack_record(pack_record(TYPICAL, signing_key=("sign-2", SECRET)), find_verify_key=PUBLIC.__getitem__)


def test_every_truncation_and_every_flipped_bit_is_refused() -> None:
    packed = pack_record(TYPICAL, signing_key=SIGNER)
    damaged = [packed[:size] for size in range(len(packed))] + [packed + b"\0", packed + packed]
    for at in range(len(packed)):
        for bit in range(8):
            flipped = bytearray(packed)
            flipped[at] ^= 1 << bit
            damaged.append(bytes(flipped))
    for data in damaged:
        try:
            # Deflate has more than one spelling of a text, the signed JSON one: only the same record may come out.
            assert unpack_record(data, find_verify_key=PUBLIC.__getitem__) == replace(TYPICAL, signer="sign-1")
        except SealError as error:
            assert error.__cause__ is None


@given(st.binary(max_size=600))
def test_random_bytes_are_refused(data: bytes) -> None:
    for packed in (data, b"\x01" + bytes(64) + data):
        with pytest.raises(SealError) as caught:
            unpack_record(packed, find_verify_key=PUBLIC.__getitem__)
        assert caught.value.__context__ is None


def test_an_inflation_bomb_is_refused() -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    bomb = deflate.compress(b" " * 50_000_000) + deflate.flush()
    with pytest.raises(SealError):
        unpack_record(b"\x01" + bytes(64) + bomb, find_verify_key=PUBLIC.__getitem__)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"1",
        b"[" * 3000,
        to_json(TYPICAL) + b" ",
        to_json(replace(TYPICAL, patient_name="x" * 500)),
        to_json(replace(TYPICAL, cut=("no_such_field",))),
        to_json(TYPICAL).replace(b'"v":1', b'"v":2'),
        to_json(TYPICAL).replace(b'"v":1', b'"v":true'),
        to_json(TYPICAL).replace(b'"sex":"F"', b'"sex":6'),
        to_json(TYPICAL).replace(b'"sex":"F"', b'"sex":"F","sex":"F"'),
        to_json(TYPICAL).replace(b'"cut":[]', b'"cut":[[]]'),
        to_json(TYPICAL).replace(b'"cut":[]', b'"cut":7'),
        to_json(TYPICAL).replace(b'"v":1', b'"v":1,"w":1'),
        to_json(TYPICAL).replace(b"Mustermann", b"\\u004dustermann"),
        to_json(TYPICAL).replace(b"Mustermann", b"\xff"),
    ],
)
def test_only_canonical_json_of_a_record_is_read(text: bytes) -> None:
    with pytest.raises(SealError):
        from_json(text)


def test_neither_repr_nor_str_shows_identity() -> None:
    shown = f"{TYPICAL!r} {TYPICAL}"
    assert not any(getattr(TYPICAL, name) in shown for name in ("patient_name", "patient_id", "study_uid", "accession"))


def test_limits_and_fields_are_the_same_set() -> None:
    assert set(LIMITS) | {"v", "cut"} == {field.name for field in fields(Record)}


def test_the_dictionary_stands_still() -> None:
    """Changing a byte of it makes every record of version 1 unreadable."""
    assert sha256(DICTIONARY).hexdigest() == "159271792ef8cc364d2073ec8a76d10e0f8c03c104b815df041e279083af019c"
