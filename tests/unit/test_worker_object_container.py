"""The container: sections come back, anything else is a typed error."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import IntegrityError
from stego.seal import BITMAP_OVERHEAD
from worker import container as box
from worker.container import Carrier, CarrierMode, Image, SectionType

SECTIONS = st.dictionaries(st.sampled_from(list(SectionType)), st.binary(max_size=60), min_size=1)
EXAMPLE = {SectionType.CONTEXT: b"context", SectionType.FRAMES: b"frames" * 9, SectionType.SIDE: b""}


@given(SECTIONS, st.binary(max_size=3))
def test_sections_come_back_also_with_padding_behind(sections: dict[SectionType, bytes], padding: bytes) -> None:
    found = box.parse(box.build(sections) + padding)
    assert {kind: bytes(body) for kind, body in found.items()} == sections


def test_every_truncation_and_every_flip_is_refused() -> None:
    data = box.build(EXAMPLE)
    for end in range(len(data)):
        with pytest.raises(IntegrityError):
            box.parse(data[:end])
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 0x10
        with pytest.raises(IntegrityError):
            box.parse(broken)


def test_another_version_is_named() -> None:
    data = bytearray(box.build(EXAMPLE))
    data[4] = 3
    with pytest.raises(IntegrityError) as caught:
        box.parse(data)
    assert caught.value.reason == "container-version"


def resealed(body: bytes) -> bytes:
    """A container body with a fitting trailer: what a careless or hostile writer could make."""
    return body + sha256(body).digest()


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 2**64 - 1))
def test_hostile_headers_with_a_fitting_digest_are_refused(at: int, value: int) -> None:
    body = bytearray(box.build(EXAMPLE)[: -box.TRAILER_BYTES])
    struct.pack_into("<Q", body, at % (len(body) - 8), value)
    with contextlib.suppress(IntegrityError):
        found = box.parse(resealed(bytes(body)))
        assert sum(len(part) for part in found.values()) < len(body)


def test_a_section_twice_is_refused() -> None:
    one = box.build({SectionType.SIDE: b"x"})
    section = one[16 : -box.TRAILER_BYTES]
    body = struct.pack("<4sBBHQ", b"PALM", 1, 0, 2, 16 + 2 * len(section) + 32) + section * 2
    with pytest.raises(IntegrityError):
        box.parse(resealed(body))


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=9))
def test_frames_and_wraps_come_back(blobs: list[bytes]) -> None:
    assert [bytes(b) for b in box.unpack_frames(memoryview(box.pack_frames(blobs)))] == blobs
    assert box.unpack_wraps(memoryview(box.pack_wraps(blobs))) == blobs


@given(st.sampled_from(list(CarrierMode)), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=9))
def test_carriers_come_back(mode: CarrierMode, frame: int, start: int, bitmap: bytes) -> None:
    sealed = bytes(BITMAP_OVERHEAD) if mode is CarrierMode.SEALED else b""
    carrier = Carrier(mode, frame, start, 8 * len(bitmap), sealed + bitmap)
    if mode is CarrierMode.INITIAL:
        for wrong in (replace(carrier, bitmap=b"", start=8 * frame + 1), replace(carrier, bitmap=b"", nbits=0)):
            with pytest.raises(IntegrityError):
                box.unpack_carrier(memoryview(box.pack_carrier(wrong)))
        carrier = Carrier(mode, frame, 8 * (start // 8), 8 * (len(bitmap) + 1))
    if mode is CarrierMode.BESIDE:
        if carrier != Carrier(mode):
            with pytest.raises(IntegrityError):
                box.unpack_carrier(memoryview(box.pack_carrier(carrier)))
        carrier = Carrier(mode)
    assert box.unpack_carrier(memoryview(box.pack_carrier(carrier))) == carrier


def test_there_is_one_stack_for_every_run_of_frames() -> None:
    packed = memoryview(box.pack_frames([b"", b"stack", b""]))
    assert [bytes(each) for each in box.unpack_stacks(packed, 3)] == [b"", b"stack", b""]
    for runs in (1, 2, 4):
        with pytest.raises(IntegrityError):
            box.unpack_stacks(packed, runs)


def test_a_list_of_wraps_without_end_is_refused() -> None:
    wraps = [b"wrap"] * box.MAX_WRAPS
    assert box.unpack_wraps(memoryview(box.pack_wraps(wraps))) == wraps
    with pytest.raises(IntegrityError):
        box.unpack_wraps(memoryview(box.pack_wraps([*wraps, b"one more"])))


def test_images_come_back() -> None:
    image = Image("MONOCHROME1", bytes(range(32)))
    assert box.unpack_image(memoryview(box.pack_image(image))) == image


@pytest.mark.parametrize("read", [box.unpack_frames, box.unpack_carrier, box.unpack_image, box.unpack_wraps])
@given(data=st.binary(max_size=64))
def test_any_bytes_as_a_section_give_a_value_or_a_typed_error(read: object, data: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        read(memoryview(data))  # type: ignore[operator]


def test_a_list_of_empty_frames_costs_little_more_than_its_own_bytes() -> None:
    """What is allocated before the first frame is decoded must not multiply what was sent."""
    body = memoryview(struct.pack("<I", 1 << 20) + bytes(4 << 20))
    tracemalloc.start()
    try:
        with contextlib.suppress(IntegrityError):
            box.unpack_frames(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(body)
