"""From an archive object and keys to the received files, every digest compared (docs/archive-object.md, section 3)."""

from __future__ import annotations

import hmac
import json
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np

from codec.bitplane import Words
from codec.blob import Frame
from codec.errors import CodecError
from codec.groupread import open_with
from codec.lattice import Plane
from codec.pixelformat import PixelFormat
from codec.plainstack import PlainStack
from stego.dictionary import DICTIONARY
from worker.opener import objects, plan, zstd
from worker.opener.carrier import Segment, frame_digest
from worker.opener.curves import ed25519_signed
from worker.opener.errors import Damaged, Refused
from worker.opener.keys import Keys
from worker.opener.objects import Sections
from worker.opener.standards import FrameDecoder
from worker.opener.symmetric import chacha20, digest, gcm_open, hkdf, xor

RUN = 16  # at least every 16th frame of an object or a group needs no other
RECORD_SIZES = (512, 768, 1024, 2048)


@dataclass(frozen=True)
class Opened:
    """One received instance. data: the file; record: who and whence, as signed; exact: byte for byte the received one.

    signed: True or False by the signer's public key, None where that is not at hand.
    """

    data: bytes = field(repr=False)
    record: dict[str, Any] = field(repr=False)
    sha256: str
    exact: bool
    signed: bool | None


def open_object(data: bytes, keys: Keys, decoder: FrameDecoder | None = None) -> Iterator[Opened]:
    """Each received instance in an archive object's file. Raises Damaged, Refused, NeedsLibrary."""
    sections = objects.read_sections(objects.find_container(data))
    chain = None
    for member in objects.members(sections):
        if objects.WHOLE in member:
            yield _whole(member, keys)
            continue
        chain = chain or Chain(member, decoder or FrameDecoder())
        yield _coded(member, keys, chain)


class Chain:
    """The frames of an object or a whole group, decoded one after another."""

    def __init__(self, sections: Sections, decoder: FrameDecoder) -> None:
        self.blobs = objects.read_frames(sections)
        self._stacks = objects.read_frames(sections, objects.STACK) if objects.STACK in sections else []
        if self._stacks and len(self._stacks) != -(-len(self.blobs) // RUN):
            raise Damaged("there is not one stack for every run of frames")
        self._shared, self._decoder = sections.get(objects.ADAPTER), decoder
        self._at, self._last = -1, None
        self._run, self._uppers, self._initial = -1, list[list[Plane]](), b""

    def frame(self, index: int) -> Frame:
        """Frame `index`, from the independent one before it on."""
        start = index - index % RUN if self._last is None or not self._at <= index < self._at + RUN else self._at + 1
        found = self._last
        for at in range(start, index + 1):
            before = found if at % RUN else None
            upper = self._opened(at // RUN)[at % RUN] if self._stacks else None
            found = self._decoder.decode(
                self.blobs[at],
                previous=None if before is None else before.words,
                memory=None if before is None else before.memory,
                shared=self._shared,
                upper=upper or None,
            )
            self._at, self._last = at, found
        if found is None:
            raise Damaged("a frame is not there")
        return found

    def initial(self, run: int) -> bytes:
        """The bytes that a run's stack begins with."""
        if not 0 <= run < len(self._stacks):
            raise Damaged("there is no such stack")
        self._opened(run)
        return self._initial

    def _opened(self, run: int) -> list[list[Plane]]:
        """Planes of the global parts of a run's frames, out of its stack."""
        if self._run != run:
            try:
                blobs = self.blobs[run * RUN : (run + 1) * RUN]
                self._uppers, self._initial = open_with(PlainStack, blobs, self._stacks[run])
            except CodecError as error:
                raise Damaged(f"a stack cannot be decoded: {error}") from error
            self._run = run
        return self._uppers


# --- seals (docs/payload-format.md, sections 1 to 6) ---


def derive(key: bytes, context: bytes, info: str) -> bytes:
    """A subkey of an object's data key."""
    return hkdf(key, digest(context), b"palimpsest/" + info.encode("ascii"))


def _open(sealed: bytes, key: bytes, context: bytes, info: str) -> bytes:
    if not hmac.compare_digest(sealed[:32], derive(key, context, "commit/v1/" + info)):
        raise Refused("a sealed part does not open: wrong key, or altered")
    return gcm_open(derive(key, context, info), sealed[32:], context)


def _data_key(sections: Sections, keys: Keys) -> bytes:
    context = objects.part_of(sections, objects.CONTEXT)
    found = keys.unwrap(objects.read_wraps(objects.part_of(sections, objects.WRAPS)), context)
    if not found:
        raise Refused("none of these keys opens this object")
    return found[0]


def _open_side(sealed: bytes, key: bytes, context: bytes, label: str) -> bytes:
    packed = _open(sealed, key, context, "side/v1/" + label)
    if len(packed) < 9:
        raise Damaged("a side part is cut off")
    method, size, body = packed[0], int.from_bytes(packed[1:9], "big"), packed[9:]
    if method == 1:
        return zstd.decompress(body, size)
    if method == 2:
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 22, "lc": 4, "lp": 0, "pb": 0}]
        body = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=filters).decompress(body, size + 1)
    if method > 2 or len(body) != size:
        raise Damaged("a side part has another length than it says")
    return body


def _open_record(sealed: bytes, key: bytes, context: bytes, keys: Keys) -> tuple[dict[str, Any], bool | None]:
    """(record, whether its signature holds)."""
    if len(sealed) not in RECORD_SIZES:
        raise Damaged("a record of impossible length")
    plain = _open(xor(sealed, chacha20(derive(key, context, "whiten/v1"), len(sealed))), key, context, "record/v1")
    packed = plain[2 : 2 + int.from_bytes(plain[:2], "big")]
    if packed[:1] != b"\x01":
        raise Damaged("a record of an unknown version")
    text = zlib.decompressobj(-15, DICTIONARY).decompress(packed[65:], 4096)
    record: dict[str, Any] = json.loads(text)
    public = keys.signers.get(record["signer"])
    if public is None:
        return record, None
    return record, ed25519_signed(public, b"palimpsest/record/v1\x00" + text, packed[1:65])


# --- objects sealed whole ---


def _whole(sections: Sections, keys: Keys) -> Opened:
    context, key = objects.part_of(sections, objects.CONTEXT), _data_key(sections, keys)
    data = _open_side(sections[objects.WHOLE], key, context, "whole")
    record, signed = _open_record(objects.part_of(sections, objects.RECORD), key, context, keys)
    return _finished(data, record, record["file_sha256"], signed)


def _finished(data: bytes, record: dict[str, Any], expected: str, signed: bool | None) -> Opened:
    found = sha256(data).hexdigest()
    if found != expected:
        raise Damaged("what was restored is not what was recorded")
    return Opened(data, record, found, found == record["file_sha256"], signed)


# --- coded objects ---


def _coded(sections: Sections, keys: Keys, chain: Chain) -> Opened:
    context, key = objects.part_of(sections, objects.CONTEXT), _data_key(sections, keys)
    carrier, span = objects.read_carrier(sections), objects.read_span(sections, len(chain.blobs))
    words: list[Words] = []
    digests, segment, fmt, initial = [], None, None, b""
    for number, index in enumerate(span):
        frame = chain.frame(index)
        fmt = fmt or frame.fmt
        if frame.fmt != fmt:
            raise Damaged("frames of different formats")
        if carrier.mode == objects.INITIAL and index // RUN == carrier.frame:
            initial = chain.initial(carrier.frame)[carrier.start // 8 : (carrier.start + carrier.bits) // 8]
            if len(initial) != carrier.bits // 8:
                raise Damaged("the carrier names bits that its stack does not hold")
        if carrier.mode in (objects.SEGMENTED, objects.SEALED) and number == carrier.frame:
            segment = Segment(frame, carrier.start, carrier.bits)
            digests.append(segment.untouched())
        else:
            digests.append(frame_digest(frame, frame.words))
        words.append(frame.words)
    if fmt is None or sha256(b"".join(digests)).digest() != context[52:84]:
        raise Damaged("the seals belong to other pixels")
    sealed = initial + sections.get(objects.RECORD, b"")
    if segment is not None:
        sealed = segment.message(derive(key, context, "pos/v1"), context[22:38])
        words[carrier.frame] = segment.exact(_bitmap(carrier, key, context))
    record, signed = _open_record(sealed, key, context, keys)
    side = _open_side(objects.part_of(sections, objects.SIDE), key, context, "nonpixel")
    return _spliced(side, words, fmt, record, signed)


def _bitmap(carrier: objects.Carrier, key: bytes, context: bytes) -> bytes:
    if carrier.mode == objects.SEGMENTED:
        return carrier.bitmap
    return _open(carrier.bitmap, derive(key, context, "bitmap-key/v1"), context, "bitmap/v1")[32:]


def _spliced(side: bytes, words: list[Words], fmt: PixelFormat, record: dict[str, Any], signed: bool | None) -> Opened:
    """The file from the side part and the exact words."""
    if len(side) < 9 or side[0] != 1 or side[1] > 1:
        raise Damaged("a side part of an unknown version")
    restored, at = (side[2:34].hex(), 34) if side[1] else ("", 2)
    word_bytes, big, planar, swapped, pad = struct.unpack_from("<5B", side, at)
    layout = plan.Layout(word_bytes, bool(big), bool(planar), bool(swapped), side[at + 5 : at + 5 + pad])
    steps, at = plan.read_plan(side, at + 5 + pad)
    nonpixel = side[at:]
    pixel_sha256 = sha256(b"".join(np.ascontiguousarray(w, w.dtype.newbyteorder("<")).tobytes() for w in words))
    if pixel_sha256.hexdigest() != record["pixel_sha256"] or sha256(nonpixel).hexdigest() != record["nonpixel_sha256"]:
        raise Damaged("what was restored is not what was recorded")
    pixels = plan.pixel_bytes(words, layout)
    if restored:
        plan.check_decompressed(steps, nonpixel, layout, len(pixels))
    data = plan.carry_out(steps, nonpixel, pixels)
    return _finished(data, record, restored or record["file_sha256"], signed)
