"""Embedded bits look uniform; and the battery that says so finds bits that are not."""

from __future__ import annotations

import numpy as np
import pytest

from stego.capsule import seal_capsule
from stego.imagekey import image_key
from stego.record import Record, pack_record
from stego.seal import Context, seal_record, wrap_key
from tests.uniformity import TESTS, battery, bits_of, verdict

OBJECTS = 48


def sealed_objects(seed: int) -> tuple[bytes, bytes]:
    """Sealed records and capsules of objects that hardly differ: one patient, one signer, one wrapping key."""
    rng = np.random.default_rng(seed)
    kek, ring_key, signer = rng.bytes(32), rng.bytes(32), rng.bytes(32)
    records, capsules = b"", b""
    for index in range(OBJECTS):
        object_id, data_key, salt = rng.bytes(16), rng.bytes(32), rng.bytes(32)
        context = Context(object_id, 512, 512, 12, False, 1, "hidden", salt)
        packed = pack_record(Record(patient_name="A^B", sop_uid=f"1.2.{index}"), signing_key=("sign-1", signer))
        sealed = seal_record(packed, data_key=data_key, context=context)
        wrap = wrap_key(data_key, kek=kek, kek_id="pat-AAAAAAAAAAAAAAAAAAAAAAAAAA")
        key = image_key(ring_key, salt, "hidden")
        records += sealed
        capsules += seal_capsule(sealed, object_id=object_id, wrap=wrap, stego_key=key, salt=salt)
    return records, capsules


def test_sealed_records_and_capsules_are_uniform() -> None:
    records, capsules = sealed_objects(11)
    found = battery({"records": records, "capsules": capsules})
    assert len(found) == 2 * len(TESTS)
    assert not verdict(found).rejected, str(verdict(found))
    assert min(found.values()) > 0.01  # with this seed; in general one in a hundred is below


def test_no_place_of_a_capsule_is_constant_or_linked_to_its_neighbour() -> None:
    """Byte by byte over many objects: each bit place is 1 half the time."""
    _, capsules = sealed_objects(12)
    places = np.unpackbits(np.frombuffer(capsules, np.uint8).reshape(OBJECTS, -1), axis=1)
    ones = places.sum(axis=0)
    assert ones.min() > 0
    assert ones.max() < OBJECTS
    assert float(((ones - OBJECTS / 2) ** 2).mean()) == pytest.approx(OBJECTS / 4, rel=0.1)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("biased", lambda rng: np.packbits(rng.random(1 << 15) < 0.52).tobytes()),
        ("sticky", lambda rng: np.packbits(np.cumsum(rng.random(1 << 15) < 0.48) & 1).tobytes()),
        ("text", lambda rng: b"palimpsest " * 400),
        ("magic", lambda rng: b"".join(b"PALM" + rng.bytes(28) for _ in range(200))),
        ("repeated", lambda rng: rng.bytes(512) * 8),
    ],
)
def test_bits_that_are_not_uniform_are_found(name: str, make: object) -> None:
    assert callable(make)
    found = battery({name: make(np.random.default_rng(1))})
    assert verdict(found).rejected


def test_uniform_bits_pass_and_fail_as_often_as_they_should() -> None:
    rng = np.random.default_rng(2)
    found = battery({str(index): rng.bytes(2048) for index in range(200)})
    result = verdict(found)
    assert not result.rejected
    assert 0.3 <= result.below / (result.tests * 0.01) <= 2.0
    for test in TESTS:
        p = np.array([value for name, value in found.items() if name.endswith(f": {test}")])
        assert 0.4 < float(p.mean()) < 0.6, test


def test_the_values_of_the_standards_examples() -> None:
    """NIST SP 800-22 rev. 1a: 2.1.8 and 2.3.8, the first 100 binary digits of pi."""
    digits = "1100100100001111110110101010001000100001011010001100001000110100110001001100011001100010100010111000"
    bits = np.array([int(digit) for digit in digits], dtype=np.uint8)
    assert TESTS["monobit"](bits) == pytest.approx(0.109599, abs=1e-6)
    assert TESTS["runs"](bits) == pytest.approx(0.500798, abs=1e-6)


def test_short_streams_say_nothing() -> None:
    with pytest.raises(ValueError, match="at least"):
        battery({"short": b"ab"})
    assert bits_of(b"\x80").tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
