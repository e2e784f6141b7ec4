"""stego.seal: inverse pairs, one indistinguishable refusal, no constant or biased byte, bounded opening."""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import random
import struct
import traceback
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stego import compress, seal
from stego.errors import RecordTooLong, SealError
from stego.seal import Context

CONTEXT = Context(bytes(range(16)), 512, 512, 12, True, 1, "segmented", bytes(range(32)))
KEY = bytes(range(100, 132))
GOLDEN_SUBKEY = "a8b9b110f63ea16489d9040bce3d30b08c50f5878225af78a4477c85bc7f4736"
GOLDEN_RECORD = "4d9050c433ce29ad242d53b45cf844ac70559be05091e38e"

contexts = st.builds(
    Context,
    object_id=st.binary(min_size=16, max_size=16),
    rows=st.integers(0, 65535),
    columns=st.integers(0, 65535),
    bits_stored=st.integers(1, 16),
    signed=st.booleans(),
    frames=st.integers(1, 2**32 - 1),
    mode=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=32),
    untouched=st.binary(min_size=32, max_size=32),
)
keys = st.binary(min_size=32, max_size=32)


def refused(act: Callable[[], object]) -> None:
    """`act` raises SealError, and nothing in what it raised tells why."""
    with pytest.raises(SealError) as caught:
        act()
    error = caught.value
    assert str(error) == "refused" and error.args == ("refused",)
    assert error.__cause__ is None and error.__context__ is None
    assert "InvalidTag" not in "".join(traceback.format_exception(error))


def other_contexts() -> list[Context]:
    return [
        replace(CONTEXT, object_id=bytes(16)),
        replace(CONTEXT, rows=513),
        replace(CONTEXT, columns=511),
        replace(CONTEXT, bits_stored=13),
        replace(CONTEXT, signed=False),
        replace(CONTEXT, frames=2),
        replace(CONTEXT, mode="beside"),
        replace(CONTEXT, untouched=bytes(32)),
    ]


@given(contexts)
def test_context_bytes_are_canonical(context: Context) -> None:
    assert Context.parse(context.aad()) == context


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=80).map(lambda b: CONTEXT.aad()[: len(b)] + b)))
def test_context_parser_refuses_what_it_did_not_write(data: bytes) -> None:
    if data != CONTEXT.aad():
        with contextlib.suppress(SealError):
            assert Context.parse(data).aad() == data


@pytest.mark.parametrize("at", range(len(CONTEXT.aad())))
def test_a_flipped_context_byte_never_reads_as_the_same_context(at: int) -> None:
    data = bytearray(CONTEXT.aad())
    data[at] ^= 1
    with contextlib.suppress(SealError):
        assert Context.parse(bytes(data)) != CONTEXT


@pytest.mark.parametrize(
    "change",
    [
        {"object_id": b"short"},
        {"untouched": b""},
        {"rows": -1},
        {"frames": 2**32},
        {"bits_stored": 256},
        {"mode": ""},
        {"mode": "\u00e9"},
    ],
)
def test_a_context_of_wrong_form_is_a_callers_error(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(CONTEXT, **change)


@settings(max_examples=60)
@given(st.binary(max_size=seal.MAX_RECORD_BYTES), keys, contexts)
def test_record_opens_to_what_was_sealed(record: bytes, key: bytes, context: Context) -> None:
    sealed = seal.seal_record(record, data_key=key, context=context)
    assert len(sealed) == seal.length_class(len(record)) in seal.LENGTH_CLASSES
    assert seal.open_record(sealed, data_key=key, context=context) == record


@settings(max_examples=60)
@given(st.binary(max_size=5000), keys, contexts, st.text("abc/1", min_size=1, max_size=8))
def test_side_part_opens_to_what_was_sealed(data: bytes, key: bytes, context: Context, label: str) -> None:
    sealed = seal.seal_side(data, data_key=key, context=context, label=label)
    assert seal.open_side(sealed, data_key=key, context=context, label=label) == data
    assert b"".join(seal.open_side_pieces(sealed, data_key=key, context=context, label=label)) == data


@settings(max_examples=60)
@given(keys, keys, st.text("abc-019", min_size=1, max_size=64))
def test_wrap_opens_to_the_data_key(data_key: bytes, kek: bytes, kek_id: str) -> None:
    wrap = seal.wrap_key(data_key, kek=kek, kek_id=kek_id)
    assert seal.wrap_kek_id(wrap) == kek_id and len(wrap) == 98 + len(kek_id)
    assert seal.unwrap_key(wrap, find_kek={kek_id: kek}.__getitem__) == data_key


def test_length_classes_meet_their_edges() -> None:
    edges = [size - seal.OVERHEAD - 2 for size in seal.LENGTH_CLASSES]
    for size, edge in zip(seal.LENGTH_CLASSES, edges, strict=True):
        assert len(seal.seal_record(bytes(edge), data_key=KEY, context=CONTEXT)) == size
    assert len(seal.seal_record(bytes(edges[0] + 1), data_key=KEY, context=CONTEXT)) == seal.LENGTH_CLASSES[1]
    with pytest.raises(RecordTooLong):
        seal.seal_record(bytes(edges[-1] + 1), data_key=KEY, context=CONTEXT)


def test_every_wrong_opening_of_a_record_is_the_same_refusal() -> None:
    sealed = seal.seal_record(b"record", data_key=KEY, context=CONTEXT)
    other = seal.seal_record(b"record", data_key=KEY, context=other_contexts()[0])
    refused(lambda: seal.open_record(sealed, data_key=bytes(32), context=CONTEXT))
    refused(lambda: seal.open_record(sealed, data_key=b"short", context=CONTEXT))
    refused(lambda: seal.open_record(other, data_key=KEY, context=CONTEXT))
    for context in other_contexts():
        refused(lambda context=context: seal.open_record(sealed, data_key=KEY, context=context))
    pieces = (b"", sealed[:-1], sealed[1:], sealed + b"\0", sealed[:256], sealed * 2, bytes(512), os.urandom(512))
    for damaged in pieces:
        refused(lambda damaged=damaged: seal.open_record(damaged, data_key=KEY, context=CONTEXT))
    for at in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[at] ^= 1 << at % 8
        refused(lambda flipped=flipped: seal.open_record(bytes(flipped), data_key=KEY, context=CONTEXT))


def in_pieces(sealed: bytes, **opening: Any) -> bytes:
    return b"".join(seal.open_side_pieces(sealed, **opening))


@pytest.mark.parametrize("open_side", [seal.open_side, in_pieces])
def test_every_wrong_opening_of_a_side_part_is_the_same_refusal(open_side: Callable[..., bytes]) -> None:
    sealed = seal.seal_side(b"side" * 50, data_key=KEY, context=CONTEXT, label="nonpixel")
    refused(lambda: open_side(sealed, data_key=bytes(32), context=CONTEXT, label="nonpixel"))
    refused(lambda: open_side(sealed, data_key=b"short", context=CONTEXT, label="nonpixel"))
    refused(lambda: open_side(sealed, data_key=KEY, context=CONTEXT, label="file"))
    refused(lambda: open_side(sealed, data_key=KEY, context=CONTEXT, label="nonpixel", limit=199))
    for context in other_contexts():
        refused(lambda context=context: open_side(sealed, data_key=KEY, context=context, label="nonpixel"))
    for size in range(len(sealed)):
        refused(lambda size=size: open_side(sealed[:size], data_key=KEY, context=CONTEXT, label="nonpixel"))
    for at in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[at] ^= 1 << at % 8
        refused(lambda flipped=flipped: open_side(flipped, data_key=KEY, context=CONTEXT, label="nonpixel"))


def test_every_wrong_opening_of_a_wrap_is_the_same_refusal() -> None:
    wrap = seal.wrap_key(KEY, kek=bytes(32), kek_id="kek-1")
    ring = {"kek-1": bytes(32), "kek-2": bytes([1]) * 32, "kek-3": b"short"}
    for wrong in ({}, {"kek-1": bytes([1]) * 32}, {"kek-1": b"short"}):
        refused(lambda wrong=wrong: seal.unwrap_key(wrap, find_kek=wrong.__getitem__))
    for size in range(len(wrap)):
        refused(lambda size=size: seal.unwrap_key(wrap[:size], find_kek=ring.__getitem__))
    for at in range(len(wrap)):
        for bit in range(8):
            flipped = bytearray(wrap)
            flipped[at] ^= 1 << bit
            refused(lambda flipped=flipped: seal.unwrap_key(bytes(flipped), find_kek=ring.__getitem__))


def test_wraps_of_two_keys_share_no_bytes_but_the_header() -> None:
    """So no AES key ever seals two messages; one data key gives one wrap."""
    one, two = (seal.wrap_key(key, kek=bytes(32), kek_id="kek-1") for key in (KEY, KEY[:-1] + b"x"))
    assert one[:7] == two[:7] and one[7:23] != two[7:23] and one[23:55] != two[23:55] and one[55:] != two[55:]
    assert one == seal.wrap_key(KEY, kek=bytes(32), kek_id="kek-1")
    other_kek = seal.wrap_key(KEY, kek=b"k" * 32, kek_id="kek-1")
    assert other_kek[7:23] != one[7:23] and other_kek[23:] != one[23:]


def test_an_error_of_the_key_ring_is_not_hidden_as_a_refusal() -> None:
    def down(key_id: str) -> bytes:
        raise ConnectionError(key_id)

    with pytest.raises(ConnectionError):
        seal.unwrap_key(seal.wrap_key(KEY, kek=bytes(32), kek_id="kek-1"), find_kek=down)


def test_subkeys_are_separate() -> None:
    infos = ["record/v1", "whiten/v1", "pos/v1", "side/v1", "commit/v1"]
    assert len({seal.derive(KEY, CONTEXT, info) for info in infos}) == len(infos)
    assert len({seal.derive(KEY, context, "pos/v1") for context in (CONTEXT, *other_contexts())}) == 9
    assert len(seal.derive(KEY, CONTEXT, "pos/v1", 48)) == 48
    with pytest.raises(ValueError):
        seal.derive(b"short", CONTEXT, "pos/v1")


def test_the_format_stands_still() -> None:
    """Golden values: a change here makes old objects unreadable."""
    assert seal.derive(KEY, CONTEXT, "record/v1").hex() == GOLDEN_SUBKEY
    assert seal.seal_record(b"golden", data_key=KEY, context=CONTEXT)[:24].hex() == GOLDEN_RECORD


def test_sealed_records_look_uniform() -> None:
    """Chi-squared over byte values and over bits per position: no magic, no length, no bias (200 x 512 bytes)."""
    rng = random.Random(3)
    records = [
        seal.seal_record(
            bytes(i % 400), data_key=rng.randbytes(32), context=replace(CONTEXT, object_id=rng.randbytes(16))
        )
        for i in range(200)
    ]
    counts = [0] * 256
    for byte in b"".join(records):
        counts[byte] += 1
    expected = sum(counts) / 256
    assert sum((n - expected) ** 2 / expected for n in counts) < 400  # 255 degrees: mean 255, s.d. 22.6
    columns = [sum(record[at] >> bit & 1 for record in records) for at in range(512) for bit in range(8)]
    # Each is Binomial(200, 1/2): s.d. 7.07; the largest of 4096 stays within 6 s.d. with probability 1 - 1e-5,
    # and with this seed always.
    assert max(abs(n - 100) for n in columns) < 43


def unpacked_in_pieces(packed: bytes, limit: int) -> bytes:
    return b"".join(compress.side_pieces(io.BytesIO(packed), limit))


UNPACKERS = pytest.mark.parametrize("unpack_side", [compress.unpack_side, unpacked_in_pieces])


@UNPACKERS
def test_a_compressed_bomb_is_bounded(unpack_side: Callable[[bytes, int], bytes]) -> None:
    zeros = bytes(1 << 26)
    bombs = (
        (1, zstandard.ZstdCompressor(level=3).compress(zeros)),
        (2, lzma.compress(zeros, format=lzma.FORMAT_RAW, filters=[compress._LZMA_FILTER])),
    )
    for method, bomb in bombs:
        for declared in (10, 1 << 20, len(zeros)):
            packed = struct.pack(">BQ", method, declared) + bomb
            tracemalloc.start()
            refused(lambda packed=packed: unpack_side(packed, 1 << 20))
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
            tracemalloc.stop()
        assert unpack_side(struct.pack(">BQ", method, len(zeros)) + bomb, len(zeros)) == zeros


@UNPACKERS
def test_a_hostile_zstd_window_is_refused(unpack_side: Callable[[bytes, int], bytes]) -> None:
    """A frame header that asks for a 2 GiB window (RFC 8878 3.1.1.1.2)."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, 21 << 3]) + b"\x03\x00\x00" + b"x"
    refused(lambda: unpack_side(struct.pack(">BQ", 1, 100) + frame, 1 << 20))


@given(st.one_of(st.binary(max_size=3000), st.text("DICOM^ 01", max_size=3000).map(str.encode)))
def test_packed_side_parts_unpack(data: bytes) -> None:
    packed = compress.pack_side(data)
    assert compress.unpack_side(packed, len(data)) == data and len(packed) <= len(data) + 9


@UNPACKERS
@pytest.mark.parametrize("method", [0, 1, 2])
def test_every_method_reads_back_and_refuses_a_cut_or_prolonged_body(
    method: int, unpack_side: Callable[[bytes, int], bytes]
) -> None:
    data = b"1.2.840.10008.1.2.1 " * 40
    bodies = (data, zstandard.ZstdCompressor().compress(data), compress.pack_side(data)[9:])
    assert compress.pack_side(data)[0] == 2
    packed = struct.pack(">BQ", method, len(data)) + bodies[method]
    assert unpack_side(packed, 10_000) == data
    refused(lambda: unpack_side(packed[:-1], 10_000))
    for size in (len(data) - 1, len(data) + 1):
        refused(lambda size=size: unpack_side(struct.pack(">BQ", method, size) + bodies[method], 10_000))


@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 2**64 - 1))
def test_unpacking_garbage_is_a_refusal_or_the_declared_length(body: bytes, method: int, size: int) -> None:
    with contextlib.suppress(SealError):
        assert len(compress.unpack_side(struct.pack(">BQ", method, size) + body, 1 << 16)) == size <= 1 << 16


def test_the_openers_refuse_random_bytes_of_any_length() -> None:
    rng = random.Random(7)
    for size in [*range(120), *(rng.randrange(4096) for _ in range(200)), *seal.LENGTH_CLASSES]:
        data = rng.randbytes(size)
        refused(lambda data=data: seal.open_record(data, data_key=KEY, context=CONTEXT))
        refused(lambda data=data: seal.open_side(data, data_key=KEY, context=CONTEXT, label="x"))
        refused(lambda data=data: seal.unwrap_key(data, find_kek=lambda _: bytes(32)))


def test_a_large_side_part_in_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "_CHUNK", 1000)
    data = os.urandom(10_001)
    sealed = seal.seal_side(memoryview(data), data_key=KEY, context=CONTEXT, label="file")
    monkeypatch.undo()
    assert seal.open_side(memoryview(sealed), data_key=KEY, context=CONTEXT, label="file") == data
