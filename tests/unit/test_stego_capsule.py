"""stego.capsule: an inverse pair of uniform bytes in four lengths, and one refusal for everything else."""

from __future__ import annotations

import hmac
import os
import random
from collections.abc import Callable
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from stego import recipients, seal
from stego.capsule import CAPSULE_CLASSES, Capsule, capsule_class, open_capsule, seal_capsule
from stego.errors import RecordTooLong, SealError

STEGO_KEY, SALT, ID = bytes(range(32)), sha256(b"image").digest(), bytes(range(16))
WRAP = seal.wrap_key(bytes(32), kek=bytes(32), kek_id="pat-" + "a" * 26)
LEAST = seal.LENGTH_CLASSES[0]


def made(record: bytes = bytes(LEAST), wrap: bytes = WRAP, **changes: bytes) -> bytes:
    arguments = {"object_id": ID, "stego_key": STEGO_KEY, "salt": SALT} | changes
    return seal_capsule(record, wrap=wrap, **arguments)


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(SealError) as caught:
        act()
    assert caught.value.args == ("refused",)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@settings(max_examples=80)
@given(
    size=st.sampled_from(seal.LENGTH_CLASSES),
    wrap=st.binary(max_size=180),
    object_id=st.binary(min_size=16, max_size=16),
    stego_key=st.binary(min_size=32, max_size=32),
    salt=st.binary(min_size=1, max_size=64),
    seed=st.integers(0, 2**32),
)
def test_a_capsule_opens_to_what_was_put_in(
    size: int, wrap: bytes, object_id: bytes, stego_key: bytes, salt: bytes, seed: int
) -> None:
    record = random.Random(seed).randbytes(size)
    capsule = made(record, wrap, object_id=object_id, stego_key=stego_key, salt=salt)
    assert len(capsule) == capsule_class(size, len(wrap)) in CAPSULE_CLASSES
    assert open_capsule(capsule, stego_key=stego_key, salt=salt) == Capsule(object_id, wrap, record)


def test_every_class_of_record_has_its_class_of_capsule_with_any_wrap_but_the_hybrid_one() -> None:
    longest = seal.wrap_key(bytes(32), kek=bytes(32), kek_id="k" * 64)
    curve = recipients.wrap_to("x25519", recipients.generate("x25519")[1], "n" * 64, bytes(32), b"")
    for size, expected in zip(seal.LENGTH_CLASSES, CAPSULE_CLASSES, strict=True):
        for wrap in (WRAP, longest, curve):
            assert len(made(os.urandom(size), wrap)) == expected
    hybrid = recipients.wrap_to("xwing", recipients.generate("xwing")[1], "archive", bytes(32), b"")
    assert len(made(bytes(1024), hybrid)) == 2304
    with pytest.raises(RecordTooLong):
        made(bytes(2048), hybrid)


def test_a_capsule_is_a_function_of_its_arguments_and_of_all_of_them() -> None:
    one = made()
    assert one == made()
    others = [
        made(b"\1" + bytes(LEAST - 1)),
        made(wrap=WRAP[:-1] + b"x"),
        made(object_id=bytes(16)),
        made(stego_key=bytes(32)),
        made(salt=bytes(32)),
    ]
    for other in others:  # no two share a key stream: their difference is no difference of plain texts
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 20


def test_every_wrong_opening_is_the_same_refusal() -> None:
    capsule = made()
    refused(lambda: open_capsule(capsule, stego_key=bytes(32), salt=SALT))
    refused(lambda: open_capsule(capsule, stego_key=b"short", salt=SALT))
    refused(lambda: open_capsule(capsule, stego_key=STEGO_KEY, salt=bytes(32)))
    for damaged in (b"", capsule[:-1], capsule + b"\0", capsule[1:] + b"\0", capsule * 2, os.urandom(1024), bytes(768)):
        refused(lambda damaged=damaged: open_capsule(damaged, stego_key=STEGO_KEY, salt=SALT))
    for at in range(len(capsule)):
        flipped = bytearray(capsule)
        flipped[at] ^= 1 << at % 8
        refused(lambda flipped=flipped: open_capsule(bytes(flipped), stego_key=STEGO_KEY, salt=SALT))


def test_what_is_genuine_but_broken_inside_is_refused_too() -> None:
    """An insider's capsule: the tag is right, the lengths are not."""
    room = CAPSULE_CLASSES[0] - 32
    bodies = (
        b"",
        ID + b"\xff\xff",
        ID + b"\0\0" + b"\xff\xff",
        ID + b"\0\0" + b"\0\1x",
        ID + b"\0\0" + b"\2\0" + bytes(512) + b"x",
    )
    for inner in bodies:
        refused(lambda inner=inner: open_capsule(by_hand(inner.ljust(room, b"\0")), stego_key=STEGO_KEY, salt=SALT))
    good = ID + b"\0\3abc" + b"\2\0" + bytes(512)
    opened = open_capsule(by_hand(good.ljust(room, b"\0")), stego_key=STEGO_KEY, salt=SALT)
    assert opened == Capsule(ID, b"abc", bytes(512))


def by_hand(inner: bytes) -> bytes:
    """The construction without a line of `stego.capsule` (docs/payload-format.md)."""

    def hkdf(info: bytes) -> bytes:
        return hmac.digest(hmac.digest(SALT, STEGO_KEY, "sha256"), info + b"\1", "sha256")

    tag = hmac.digest(hkdf(b"palimpsest/capsule/tag/v1"), inner, "sha256")
    key = hkdf(b"palimpsest/capsule/whiten/v1" + tag)
    return tag + Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(inner)


def test_the_construction_is_as_documented() -> None:
    inner = ID + len(WRAP).to_bytes(2, "big") + WRAP + b"\2\0" + bytes(LEAST)
    assert made() == by_hand(inner.ljust(CAPSULE_CLASSES[0] - 32, b"\0"))


def test_arguments_of_wrong_form_are_a_callers_error() -> None:
    wrong: tuple[dict[str, bytes], ...] = ({"stego_key": b"short"}, {"object_id": b""}, {"record": b"no class"})
    for changes in wrong:
        with pytest.raises(ValueError):
            made(**changes)


def test_capsules_look_uniform() -> None:
    """Chi-squared over byte values and over bits per position, with constant record, wrap and key (200 x 768 bytes)."""
    capsules = [made(salt=i.to_bytes(4, "big")) for i in range(200)]
    counts = [0] * 256
    for byte in b"".join(capsules):
        counts[byte] += 1
    expected = sum(counts) / 256
    assert sum((n - expected) ** 2 / expected for n in counts) < 400  # 255 degrees: mean 255, s.d. 22.6
    columns = [sum(each[at] >> bit & 1 for each in capsules) for at in range(768) for bit in range(8)]
    # Each is Binomial(200, 1/2): s.d. 7.07; the largest of 6144 stays within 6 s.d. with probability 1 - 2e-5.
    assert max(abs(n - 100) for n in columns) < 43
