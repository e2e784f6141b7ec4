"""The whole way of a record: signed, sealed, embedded, and back; and every swap between two images refused."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from codec.bitplane import LevelTable, choose_levels, join_words, split_words
from codec.pixelformat import PixelFormat
from stego import seal, segmented
from stego.errors import SealError
from stego.record import Record, pack_record, unpack_record
from stego.seal import Context

SECRET = bytes(range(32))
RING = {"sign-1": Ed25519PrivateKey.from_private_bytes(SECRET).public_key().public_bytes_raw()}
KEKS = {"kek-1": os.urandom(32)}
FMT = PixelFormat(96, 96, 1, 16, 12, 11, True)


@dataclass(frozen=True)
class Object:
    """What an archive object carries of one image."""

    stego: NDArray[np.uint16] | NDArray[np.uint8]
    levels: LevelTable
    bitmap: bytes
    start: int
    nbits: int
    context: bytes
    wrap: bytes
    side: bytes


def image(seed: int) -> NDArray[np.uint16]:
    noise = np.random.default_rng(seed).normal(0, 30, (96, 96))
    return (noise.astype(np.int16) & 0xFFF).astype(np.uint16)


def sealed_object(seed: int) -> Object:
    words, data_key = image(seed), os.urandom(32)
    levels = choose_levels(split_words(words, FMT)[0])
    packed = pack_record(Record(patient_name=f"Doe^{seed}", source="stow"), signing_key=("sign-1", SECRET))
    nbits = 8 * seal.length_class(len(packed))
    window = segmented.suitability(words, FMT, levels, nbits)
    assert window.ok
    untouched = segmented.untouched(words, FMT, levels, window.start, nbits)
    context = Context(os.urandom(16), 96, 96, 12, True, 1, "segmented", untouched)
    sealed = seal.seal_record(packed, data_key=data_key, context=context)
    stego_key = seal.derive(data_key, context, "pos/v1")
    done = segmented.embed(words, FMT, levels, sealed, stego_key=stego_key, salt=context.object_id, start=window.start)
    side = seal.seal_side(b"header", data_key=data_key, context=context, label="nonpixel")
    wrap = seal.wrap_key(data_key, kek=KEKS["kek-1"], kek_id="kek-1")
    return Object(done.words, levels, done.bitmap, done.start, done.nbits, context.aad(), wrap, side)


def opened(thing: Object) -> tuple[Record, bytes]:
    """Record and side part; raises SealError."""
    context = Context.parse(thing.context)
    if segmented.untouched(thing.stego, FMT, thing.levels, thing.start, thing.nbits) != context.untouched:
        raise SealError
    data_key = seal.unwrap_key(thing.wrap, find_kek=KEKS.__getitem__)
    stego_key = seal.derive(data_key, context, "pos/v1")
    sealed = segmented.extract(
        thing.stego, FMT, thing.levels, thing.start, thing.nbits, stego_key=stego_key, salt=context.object_id
    )
    packed = seal.open_record(sealed, data_key=data_key, context=context)
    side = seal.open_side(thing.side, data_key=data_key, context=context, label="nonpixel")
    return unpack_record(packed, find_verify_key=RING.__getitem__), side


def test_record_image_and_side_part_come_back() -> None:
    thing = sealed_object(1)
    record, side = opened(thing)
    assert (record.patient_name, record.signer, side) == ("Doe^1", "sign-1", b"header")
    exact = segmented.exact(thing.stego, FMT, thing.levels, thing.bitmap, thing.start, thing.nbits)
    assert np.array_equal(exact, image(1)) and not np.array_equal(thing.stego, image(1))


@pytest.mark.parametrize("part", ["wrap", "context", "side", "stego"])
def test_a_part_of_another_object_is_refused(part: str) -> None:
    one, two = sealed_object(1), sealed_object(2)
    swapped = replace(one, **{part: getattr(two, part)})
    if part == "stego":  # with its own levels and window, so that only the seal can notice
        swapped = replace(swapped, levels=two.levels, start=two.start)
    with pytest.raises(SealError):
        opened(swapped)


def test_the_message_of_one_image_moved_into_another_is_refused() -> None:
    """Object, key and context of one image, with the whole carrier of the other and a context that fits its pixels."""
    one, two = sealed_object(1), sealed_object(2)
    forged = replace(Context.parse(one.context), untouched=Context.parse(two.context).untouched)
    carrier = {name: getattr(two, name) for name in ("stego", "levels", "bitmap", "start", "nbits")}
    with pytest.raises(SealError):
        opened(replace(one, context=forged.aad(), **carrier))


def test_a_changed_pixel_outside_or_inside_the_segment_is_noticed() -> None:
    thing = sealed_object(3)
    values = split_words(thing.stego, FMT)[0]
    index = thing.levels.rank(values)
    for step in (1, 2):  # the lowest bit of a level (inside the segment for some), and a bit that no carrier touches
        for at in range(0, index.size, 997):
            changed = index.copy()
            changed.reshape(-1)[at] = (changed.reshape(-1)[at] ^ step) % thing.levels.count
            words = join_words(thing.levels.value(changed), None, FMT)
            with pytest.raises(SealError):
                opened(replace(thing, stego=words))


def test_losing_the_key_loses_the_name_and_never_the_image() -> None:
    thing = sealed_object(4)
    lost: dict[str, bytes] = {}
    with pytest.raises(SealError):
        seal.unwrap_key(thing.wrap, find_kek=lost.__getitem__)
    exact = segmented.exact(thing.stego, FMT, thing.levels, thing.bitmap, thing.start, thing.nbits)
    assert np.array_equal(exact, image(4))
