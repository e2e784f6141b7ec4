"""The skeleton reader: agrees with pydicom, and answers nonsense with InvalidInstance in bounded time."""

from __future__ import annotations

import mmap
import struct
import warnings
import zlib
from hashlib import sha256
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import part10
from gateway.errors import BadUID, InvalidInstance, NotDicom, PalimpsestError, Unsupported
from gateway.pixelframes import MAX_FRAMES, split_fragments
from tests.fakes import CT, element, file_meta
from tests.fakes import part10 as make

PACKAGED = Path(pydicom.__file__).parent / "data" / "test_files"  # never downloaded
FILES = [path for path in sorted(PACKAGED.glob("*.dcm")) if path.stat().st_size < 1 << 20]


def reasons(data: bytes) -> str:
    with pytest.raises(PalimpsestError) as caught:
        part10.peek(data)
    return caught.value.reason


def test_an_offset_table_that_no_object_needs_is_not_read() -> None:
    size = 4 * (MAX_FRAMES + 1)
    data = struct.pack("<HHI", 0xFFFE, 0xE000, size) + bytes(size) + struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    pixels = part10.Element(0x7FE00010, "OB", 0, 0, len(data), True)
    with pytest.raises(Unsupported, match="longer than any"):
        split_fragments(data, pixels, 1)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_same_elements_as_pydicom(path: Path) -> None:
    try:
        found = part10.peek(path)
    except InvalidInstance:
        return  # said by name in the tests below
    if found.transfer_syntax in part10.DEFLATED or "truncated" in path.name:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
    data = path.read_bytes()
    elements = list(part10.walk(data, found.transfer_syntax, found.dataset_offset))
    assert [e.tag for e in elements] == [int(tag) for tag in dataset.keys()]  # noqa: SIM118  iterating gives elements, sorted
    assert elements[0].offset == found.dataset_offset and elements[-1].end == len(data)
    assert all(a.end == b.offset for a, b in zip(elements, elements[1:], strict=False))
    assert found.sop_instance_uid == dataset.SOPInstanceUID and found.sop_class_uid == dataset.SOPClassUID


def test_every_sample_is_understood_or_refused_by_name() -> None:
    refused = {}
    for path in FILES:
        try:
            part10.peek(path)
        except InvalidInstance as error:
            refused[path.name] = error.reason
    assert len(refused) < len(FILES) / 4
    assert set(refused.values()) <= {"not-part10", "missing-sop-class-uid", "missing-transfer-syntax"}


def test_peek_of_path_bytes_and_mmap_agree(tmp_path: Path) -> None:
    data = make("1.2.3.4", study="1.5", series="1.6")
    path = tmp_path / "a"
    path.write_bytes(data)
    found = part10.peek(path)
    assert (found.sop_instance_uid, found.study_uid, found.series_uid) == ("1.2.3.4", "1.5", "1.6")
    assert data[found.dataset_offset :].startswith(b"\x08\0\x16\0")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert part10.peek(mapped) == part10.peek(data) == found


def test_refusals_name_their_reason() -> None:
    assert reasons(b"") == reasons(b"DICM") == reasons(bytes(500)) == "not-part10"
    assert reasons(bytes(128) + b"DICM") == "bad-file-meta"
    assert reasons(bytes(128) + b"DICM" + b"\x02\0\x10\0UI\xff\xff12") == "bad-file-meta"
    meta = file_meta("1.2")
    assert reasons(meta) == "missing-sop-class-uid"
    assert reasons(meta + element(0x00080016, "UI", CT.encode())) == "missing-sop-instance-uid"
    assert reasons(make("1.2.x")) == "bad-sop-instance-uid"
    assert reasons(make("1" * 65)) == "bad-sop-instance-uid"
    assert reasons(make(syntax="")) == "missing-transfer-syntax"
    assert reasons(make(syntax="abc")) == "bad-transfer-syntax"
    with pytest.raises(BadUID):
        part10.peek(make("1..2"))
    with pytest.raises(NotDicom):
        part10.peek(b"x")


def test_unreadable_study_and_series_are_none_not_refused() -> None:
    found = part10.peek(make("1.2", study="x", series=""))
    assert (found.study_uid, found.series_uid) == (None, None)
    cut = make("1.2")[:-70]  # inside the pixel data
    assert part10.peek(cut).sop_instance_uid == "1.2"


def test_a_declared_3_gb_element_costs_nothing() -> None:
    huge = make("1.2")[: -64 - 12] + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 3_000_000_000) + b"xx"
    found = part10.peek(huge)
    with pytest.raises(InvalidInstance) as caught:
        list(part10.walk(huge, found.transfer_syntax, found.dataset_offset))
    assert caught.value.reason == "truncated"


def nested(depth: int) -> bytes:
    opening = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, part10.UNDEFINED) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, part10.UNDEFINED
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return opening * depth + closing * depth


def test_nesting_is_walked_over_and_bounded() -> None:
    after = element(0x00400001, "LO", b"after")
    elements = list(part10.walk(nested(20) + after, part10.EXPLICIT_LE, 0))
    assert [(e.tag, e.undefined) for e in elements] == [(0x0040A730, True), (0x00400001, False)]
    assert elements[0].end == len(nested(20))
    with pytest.raises(InvalidInstance) as caught:
        list(part10.walk(nested(10_000), part10.EXPLICIT_LE, 0))
    assert caught.value.reason == "too-deep"


def test_unknown_vr_of_undefined_length_is_implicit_inside() -> None:
    item = element(0x00080100, "SH", b"CODE", explicit=False)
    value = struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    data = struct.pack("<HH2sHI", 0x0009, 0x1001, b"UN", 0, part10.UNDEFINED) + value + element(0x00100010, "PN", b"X")
    assert [e.tag for e in part10.walk(data, part10.EXPLICIT_LE, 0)] == [0x00091001, 0x00100010]


def test_big_endian_and_implicit() -> None:
    big = element(0x00080016, "UI", b"1.2", order=">") + element(0x00080018, "UI", b"1.3", order=">")
    assert part10.peek(file_meta("1.3", syntax=part10.EXPLICIT_BE) + big).sop_instance_uid == "1.3"
    plain = element(0x00080016, "UI", b"1.2", explicit=False) + element(0x00080018, "UI", b"1.3", explicit=False)
    for syntax in (part10.IMPLICIT_LE, part10.EXPLICIT_LE):  # the second lies, as some files do
        assert part10.peek(file_meta("1.3", syntax=syntax) + plain).sop_instance_uid == "1.3"


def test_deflated() -> None:
    packer = zlib.compressobj(wbits=-15)
    whole = make("1.2.3")
    offset = part10.peek(whole).dataset_offset
    packed = packer.compress(whole[offset:]) + packer.flush()
    syntax = "1.2.840.10008.1.2.1.99"
    assert part10.peek(file_meta("1.2.3", syntax=syntax) + packed).sop_instance_uid == "1.2.3"
    assert reasons(file_meta("1.2.3", syntax=syntax) + b"\xff" * 50) == "bad-deflate"


def test_pixel_digest_sees_pixels_only(tmp_path: Path) -> None:
    def digest(**changes: str | bytes) -> str | None:
        path = tmp_path / "f"
        path.write_bytes(make("1.2", **changes))  # type: ignore[arg-type]
        return part10.pixel_digest(path)

    assert digest() == digest(patient="Other^Name") == sha256(bytes(range(64))).hexdigest()
    assert digest(pixels=bytes(64)) != digest()
    (tmp_path / "f").write_bytes(b"")
    assert part10.pixel_digest(tmp_path / "f") is None


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([part10.EXPLICIT_LE, part10.IMPLICIT_LE, part10.EXPLICIT_BE]))
def test_walk_of_noise_ends_in_order_or_is_refused(noise: bytes, syntax: str) -> None:
    at = 0
    try:
        for found in part10.walk(noise, syntax, 0):
            assert found.offset == at and found.end <= len(noise)
            at = found.end
    except InvalidInstance:
        return
    assert at == len(noise)


SEED = make("1.2.3.4.5")[:-64] + nested(3)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(132, len(SEED) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(SEED)))
def test_damaged_files_are_understood_or_refused(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(SEED)
    for position, value in changes:
        data[position] = value
    try:
        found = part10.peek(bytes(data[:length]))
        list(part10.walk(bytes(data[:length]), found.transfer_syntax, found.dataset_offset))
    except InvalidInstance as error:
        assert error.reason and "1.2.3.4.5" not in str(error.problem())
